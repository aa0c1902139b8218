"""The words that the examples are made of, written for this project."""

import random

NAMES = (
    "Anna Ben Clara David Ella Finn Grace Hugo Iris Jack Kate Leo Mia Noah Olive Paul Rosa Sam Tom Lily "
    "Max Nina Oscar Ruby Ivan Alice Lucy Emma Adam Eva Peter Maria Felix Nora Simon Julia Martin Sara Victor Zoe"
).split()
GIRLS = frozenset(
    "Anna Clara Ella Grace Iris Kate Mia Olive Rosa Lily Nina Ruby "
    "Alice Lucy Emma Eva Maria Nora Julia Sara Zoe".split()
)
ANIMALS = (
    "cat dog fox bear bird rabbit mouse frog horse sheep cow goat duck hen owl deer wolf lion tiger monkey "
    "turtle snail bee ant fish whale crab seal pig donkey squirrel hedgehog badger otter swan goose beaver mole"
).split()
THINGS = (
    "ball book box bag hat coat shoe cup plate spoon lamp chair table bed door window key clock bell drum "
    "kite boat train car bike rope map coin ring stone shell feather leaf flower basket bottle candle ladder "
    "blanket pillow mirror button letter pencil paper brush bucket hammer wheel flag whistle lantern umbrella"
).split()
FOODS = (
    "apple pear plum cherry lemon orange grape banana berry bread butter cheese honey cake soup rice bean carrot "
    "potato tomato onion egg milk tea salt sugar nut cookie pie jam melon peach mushroom pumpkin strawberry"
).split()
NATURE = (
    "tree river lake hill forest garden field farm beach sea island mountain valley cave bridge road village "
    "town market school house tower castle mill barn meadow pond park cloud rain snow wind sun moon star"
).split()
COLOURS = "red blue green yellow white black brown grey pink purple golden silver".split()
ADJECTIVES = (
    "big small old new long short warm cold soft hard quiet loud happy sad brave kind clever tired hungry "
    "shy gentle quick slow bright dark round tall strong funny lucky strange lovely tiny heavy light"
).split()
VERBS = (
    "walk run jump sing dance read write draw cook eat drink sleep swim climb build find carry open close "
    "push pull throw catch help listen look wait play work paint count laugh smile whisper"
).split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve".split()

COMMON = (*ANIMALS, *THINGS, *FOODS, *NATURE, *COLOURS, *ADJECTIVES, *VERBS)
"""Plain words, to be copied, listed and spelled."""

_ONSETS = "b c d f g h j k l m n p r s t v w z br cl dr fl gr pl st tr sh th".split()
_VOWELS = "a e i o u a e i o ai ea oo".split()
_CODAS = "n r s t l m d k p nd rt st".split() + [""] * 6


def made_up(rng: random.Random, syllables: int | None = None) -> str:
    """A lower-case word of 1 to 3 syllables that most likely does not exist: what cannot be known by heart."""
    return "".join(
        rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(syllables or rng.randint(1, 3))
    )
