"""Short stories in plain English, told from a handful of plots: something to stream, and filler for recall."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from models.train.question import article
from models.train.words import ANIMALS, COLOURS, FOODS, GIRLS, NAMES, THINGS

_KINDS = ("little", "young", "small", "kind", "brave", "clever", "happy", "shy", "curious", "gentle", "lonely", "quiet")
_PLACES = (
    "in the forest", "by the river", "on a farm", "near the lake", "in a village", "under an old tree", "in a garden",
    "by the sea", "on a hill", "near a mill", "in a valley", "beside a pond", "at the edge of a meadow",
)  # fmt: skip
_GOALS = (
    "in the forest", "by the river", "near the lake", "on the hill", "in the garden", "behind the barn", "on the beach",
    "at the market", "next to the bridge", "in the cave", "under the tall tree", "in the meadow",
)  # fmt: skip
_TIMES = ("One morning", "One day", "One sunny afternoon", "On a rainy day", "One cold evening", "Early one morning")
_WEATHER = (
    "The sun was warm and the sky was blue.", "A soft wind moved the leaves.", "It was raining a little.",
    "The birds were singing.", "There was snow on the ground.", "White clouds went slowly by.",
    "The grass was still wet.", "The air smelled of flowers.", "Everything was quiet.",
)  # fmt: skip


class Cast(NamedTuple):
    """Who and what a story is about."""

    name: str
    kind: str
    he: str
    him: str
    his: str
    friend: str
    friend_kind: str
    thing: str
    colour: str
    food: str
    place: str


def story(rng: random.Random, hero_kind: str | None = None, thing: str | None = None) -> str:
    """A story of 8 to 16 sentences, about a given kind of hero and a thing where they are named."""
    return " ".join(passages(rng, hero_kind, thing))


def passages(rng: random.Random, hero_kind: str | None = None, thing: str | None = None) -> list[str]:
    """The story's pieces in order, each one sentence or one speech."""
    cast = _cast(rng, hero_kind, thing)
    opening = [
        rng.choice(("Once upon a time", "Long ago", "Once"))
        + f", there was {article(rng.choice(_KINDS))} {cast.kind} named {cast.name}, who lived {cast.place}."
    ]
    if rng.random() < 0.6:
        opening.append(f"{cast.name} loved {_love(rng, cast)}.")
    plot = rng.choice(_PLOTS_ABOUT_A_THING if thing else _PLOTS)
    return [*opening, *plot(rng, cast)]


def _cast(rng: random.Random, kind: str | None, thing: str | None) -> Cast:
    name, friend = rng.sample(NAMES, 2)
    girl = name in GIRLS
    people = "girl" if girl else "boy"
    hero, friend_kind = kind or rng.choice((*ANIMALS, people, people)), rng.choice(ANIMALS)
    if hero in ("girl", "boy"):
        name = rng.choice([each for each in NAMES if (each in GIRLS) == (hero == "girl") and each != friend])
        girl = hero == "girl"
    he, him, his = ("she", "her", "her") if girl else ("he", "him", "his")
    return Cast(
        name, hero, he, him, his, friend, friend_kind, thing or rng.choice(THINGS), rng.choice(COLOURS),
        rng.choice(FOODS), rng.choice(_PLACES),
    )  # fmt: skip


def _love(rng: random.Random, cast: Cast) -> str:
    return rng.choice((
        "to sing", "to run and jump", "to play with friends", "to look at the stars", "to find new things",
        f"to eat {cast.food} for dinner", "to help others", "to sleep in the sun", "to swim in the pond",
    ))  # fmt: skip


def _start(rng: random.Random, cast: Cast) -> list[str]:
    goal = rng.choice(_GOALS)
    first = rng.choice((
        f"{rng.choice(_TIMES)}, {cast.name} went for a walk {goal}.",
        f"{rng.choice(_TIMES)}, {cast.name} was playing {goal}.",
        f"{rng.choice(_TIMES)}, {cast.name} sat {goal} and looked around.",
    ))  # fmt: skip
    return [first] + ([rng.choice(_WEATHER)] if rng.random() < 0.7 else [])


def _lost_thing(rng: random.Random, c: Cast) -> list[str]:
    where, owner = rng.choice(_GOALS), f"{article(c.friend_kind)} named {c.friend}"
    return [
        *_start(rng, c),
        f"There {c.he} found a {c.colour} {c.thing}.",
        rng.choice((f'"Who lost this {c.thing}?" {c.he} asked.', f'"This {c.thing} is not mine," {c.he} said.')),
        f"{c.name} asked everyone, but nobody knew.",
        f"Then {c.he} met {owner}, who was very sad.",
        f'"I lost my {c.thing} {where}," said {c.friend}.',
        f'"Is it {c.colour}?" asked {c.name}.',
        f'"Yes!" said {c.friend}. "That is my {c.thing}!"',
        f"{c.name} gave the {c.thing} back, and {c.friend} smiled.",
        *_friends(rng, c),
    ]


def _stuck(rng: random.Random, c: Cast) -> list[str]:
    where, tool = rng.choice(_GOALS), rng.choice(("rope", "ladder", "basket", "blanket"))
    return [
        *_start(rng, c),
        f"Then {c.he} heard a small voice.",
        f'"Help! I am stuck {where}!" it said.',
        f"It was {article(c.friend_kind)} named {c.friend}.",
        rng.choice((f"{c.name} was afraid, but {c.he} wanted to help.", f"{c.name} ran as fast as {c.he} could.")),
        f"First {c.he} pulled, but it did not work.",
        f"Then {c.he} had an idea and went home to get a {tool}.",
        f"With the {tool}, it was easy, and soon {c.friend} was free.",
        f'"Thank you! You are so brave," said {c.friend}.',
        *_friends(rng, c),
    ]


def _sharing(rng: random.Random, c: Cast) -> list[str]:
    return [
        *_start(rng, c),
        f"{c.name} had some {c.food} for lunch and was very hungry.",
        f"Then {article(c.friend_kind)} came by, and its name was {c.friend}.",
        f'"I have not eaten all day," said {c.friend}.',
        rng.choice((f"{c.name} thought for a moment.", f"{c.name} looked at the {c.food} and then at {c.friend}.")),
        f'"Come and sit with me," {c.he} said. "We can share."',
        f"So they ate the {c.food} together, and it was enough for both.",
        f"After that, {c.friend} showed {c.name} a secret: a {c.colour} {c.thing} under a stone.",
        f'"It is for you, because you are kind," said {c.friend}.',
        *_friends(rng, c),
    ]


def _building(rng: random.Random, c: Cast) -> list[str]:
    wish = rng.choice(("a boat", "a house", "a kite", "a bridge", "a big nest", "a swing"))
    noun = wish.split()[-1]
    return [
        *_start(rng, c),
        f'"I want to build {wish}," said {c.name}.',
        f"{c.name} took some wood, a hammer and a {c.colour} {c.thing}, and started to work.",
        f"But it was hard, and the {noun} broke.",
        f"{c.name} was sad and wanted to stop.",
        f'Then {c.friend} the {c.friend_kind} came and said, "Let us try again together."',
        rng.choice(
            (f"They worked all day, and {c.friend} told funny stories.", "They worked until the sun went down.")
        ),
        f"In the end, the {noun} was strong and beautiful.",
        f'"We did it!" said {c.name}, and they danced with joy.',
        *_friends(rng, c),
    ]


def _fear(rng: random.Random, c: Cast) -> list[str]:
    return [
        f"But {c.name} was afraid of the dark.",
        f"Every night {c.he} kept a {c.colour} lantern next to {c.his} bed.",
        f"{rng.choice(('One night', 'One winter night'))}, the light went out, and {c.name} could not sleep.",
        f"There was a noise at the door, and {c.his} heart jumped.",
        f'"Who is there?" {c.he} asked.',
        f'"It is only me, {c.friend} the {c.friend_kind}," said a soft voice. "I am afraid too."',
        f"{c.name} opened the door and let {c.friend} in.",
        f"They ate some {c.food} and looked out of the window.",
        "The moon was round and the stars were bright.",
        f'"The night is beautiful," said {c.name}, and {c.he} was not afraid any more.',
        *_friends(rng, c),
    ]


def _race(rng: random.Random, c: Cast) -> list[str]:
    goal = rng.choice(("the old bridge", "the tall tree", "the mill", "the big stone", "the market"))
    return [
        *_start(rng, c),
        f'Then {c.friend} the {c.friend_kind} said, "Let us race to {goal}!"',
        f'"You are faster than me," said {c.name}, "but I will try."',
        f"They ran, and {c.friend} was far ahead.",
        f"But {c.friend} fell over a {c.thing} and hurt a leg.",
        f"{c.name} could win now, but {c.he} stopped.",
        f'"Are you hurt? Let me help you," {c.he} said.',
        f"Slowly they walked to {goal} together.",
        f'"We both won," said {c.friend}.',
        *_friends(rng, c),
    ]


def _friends(rng: random.Random, c: Cast) -> list[str]:
    return [
        rng.choice((
            f"From that day on, {c.name} and {c.friend} were best friends.",
            f"Then they went home, and {c.name} slept very well.",
            f"That evening, {c.name} told everyone about {c.his} new friend.",
            f"{c.name} and {c.friend} laughed and ate {c.food} together.",
            f"And {c.name} was very happy.",
        ))
    ]  # fmt: skip


_Plot = Callable[[random.Random, Cast], list[str]]
_PLOTS_ABOUT_A_THING: tuple[_Plot, ...] = (_lost_thing, _sharing, _building, _race)
_PLOTS: tuple[_Plot, ...] = (*_PLOTS_ABOUT_A_THING, _stuck, _fear)
