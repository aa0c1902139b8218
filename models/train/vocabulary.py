"""The vocabulary: byte-level BPE, learned from the examples, every digit a token of its own."""

from __future__ import annotations

import random
from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from models.train.curriculum import SKILLS
from models.train.skills.stories import story
from models.train.words import COMMON, DAYS, MONTHS, NAMES

START, END = "<|im_start|>", "<|im_end|>"
SPECIAL_IDS = {END: 0, START: 1}
SIZE = 1024
PRE_TOKENIZER = "qwen2"
"""``tokenizer.ggml.pre``: one that splits digits singly."""
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The rule of that name (llama.cpp, src/llama-vocab.cpp, LLAMA_VOCAB_PRE_TYPE_QWEN2)."""
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def learn(seed: int, num_examples: int = 20_000) -> Tokenizer:
    """A vocabulary of ``SIZE`` tokens from ``num_examples`` examples, held-out ones too, the special ones first."""
    tokenizer = _tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        special_tokens=list(SPECIAL_IDS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(random.Random(seed), num_examples), trainer)
    return tokenizer


def known(tokens: Sequence[str], merges: Sequence[str]) -> Tokenizer:
    """The vocabulary of a file: its tokens by id, and its merges in order, each two tokens with a space between."""
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    tokenizer = _tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, pairs))
    tokenizer.add_special_tokens(list(SPECIAL_IDS))
    return tokenizer


def _tokenizer(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _texts(rng: random.Random, num_examples: int) -> list[str]:
    """Examples of every kind, and each plain word often enough to become a token."""
    texts = [" " + " ".join(rng.sample(COMMON, len(COMMON))) for _ in range(num_examples // 100)]
    texts += [" " + " ".join((*NAMES, *DAYS, *MONTHS)) for _ in range(num_examples // 100)]
    skills = tuple(SKILLS.values())
    for _ in range(num_examples // 10):
        question = rng.choice(skills)(rng)
        texts += ["user\n", "assistant\n", question.text, question.answer, story(rng)]
    return texts
