"""Batches: documents packed into rows, the same for the same seed and step on any machine."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from models.train.conversation import Document, Segment, long_document, short_document
from models.train.vocabulary import SPECIAL_IDS

SHORT, LONG = 256, 1024
"""Tokens of a row: most steps are of short rows, every third of rows that hold a far-away fact."""


class Batch(NamedTuple):
    """Rows of packed documents, each (num_rows, row_len)."""

    token_ids: NDArray[np.int32]
    targets: NDArray[np.int32]
    """The token that follows each."""
    weights: NDArray[np.float32]
    """1 where the target is one that the model shall say, else 0."""
    documents: NDArray[np.int32]
    """Which document of the row a token belongs to, from 1; 0 is padding. No token sees another document."""
    positions: NDArray[np.int32]
    """Place in the document, from 0."""


class Recipe(NamedTuple):
    """What a batch depends on, besides its step."""

    vocabulary: str
    """The tokenizer as JSON."""
    seed: int
    tokens_per_step: int


def batches(recipe: Recipe, steps: range, workers: int) -> Iterator[Batch]:
    """The batches of ``steps`` in order, made by ``workers`` processes."""
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(_Maker(recipe), steps, chunksize=4)


class _Maker:
    """Makes the batch of a step; cheap to send to a worker process."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe

    def __call__(self, step: int) -> Batch:
        recipe = self._recipe
        return make_batch(_tokenizer(recipe.vocabulary), recipe.seed, step, recipe.tokens_per_step)


@cache
def _tokenizer(vocabulary: str) -> Tokenizer:
    return Tokenizer.from_str(vocabulary)


def make_batch(tokenizer: Tokenizer, seed: int, step: int, num_tokens: int) -> Batch:
    """The batch of a step: ``num_tokens`` // row length rows."""
    rng = random.Random(f"{seed}:{step}")
    row_len, make = (LONG, long_document) if step % 3 == 2 else (SHORT, short_document)
    rows = [_row(tokenizer, rng, make, row_len) for _ in range(num_tokens // row_len)]
    return Batch(*(np.stack(column) for column in zip(*rows, strict=True)))


def _row(tokenizer: Tokenizer, rng: random.Random, make: Document, row_len: int) -> Batch:
    """One row, filled with documents until four did not fit; after the first failure only short ones are tried."""
    ids, learned = np.zeros(row_len + 1, np.int32), np.zeros(row_len + 1, np.float32)
    documents, positions = np.zeros(row_len + 1, np.int32), np.zeros(row_len + 1, np.int32)
    used = number = failures = 0
    while failures < 4 and used < row_len - 24:
        document = encode(tokenizer, make(rng))
        end = used + len(document[0])
        if end > row_len + 1:
            failures, make = failures + 1, short_document
            continue
        number += 1
        ids[used:end], learned[used:end] = document
        documents[used:end], positions[used:end] = number, np.arange(end - used)
        used = end
    same = documents[1:] == documents[:-1]
    return Batch(ids[:-1], ids[1:], learned[1:] * same, documents[:-1], positions[:-1])


def encode(tokenizer: Tokenizer, segments: list[Segment]) -> tuple[list[int], list[float]]:
    """Ids of a document, and 1.0 for each that is learned."""
    encoded = iter(tokenizer.encode_batch([segment.text for segment in segments if segment.special is None]))
    ids: list[int] = []
    learned: list[float] = []
    for segment in segments:
        piece: list[int] = next(encoded).ids if segment.special is None else [SPECIAL_IDS[segment.special]]
        ids += piece
        learned += [float(segment.learned)] * len(piece)
    return ids, learned
