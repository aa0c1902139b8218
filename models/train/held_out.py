"""Held-out questions, scored while training: right means that each expected token is the model's first choice."""

from __future__ import annotations

import random
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from models.train.batches import LONG, SHORT, Batch, encode
from models.train.conversation import document
from models.train.examination import examination
from models.train.question import Question
from models.train.transformer import Params, Shape, forward

_ROWS = 10


class Examiner:
    """Scores weights; the questions are encoded once."""

    def __init__(self, tokenizer: Tokenizer, shape: Shape, num_questions: int = 50, seed: int = 0) -> None:
        self._batches = {
            name: _batches([_encoded(tokenizer, question) for question in questions])
            for name, questions in examination(seed, num_questions).items()
        }
        self._right = jax.jit(partial(_right, shape=shape))

    def scores(self, params: Params) -> dict[str, float]:
        """Share of right answers, 0 to 1, per skill and distance."""
        return {
            name: float(np.concatenate([self._right(params, batch) for batch in batches]).mean())
            for name, batches in self._batches.items()
        }


def _right(params: Params, batch: Batch, shape: Shape) -> jax.Array:
    chosen = jnp.argmax(forward(params, batch, shape), axis=-1)
    return jnp.all((chosen == batch.targets) | (batch.weights == 0), axis=1)


def _encoded(tokenizer: Tokenizer, question: Question) -> tuple[list[int], list[float]]:
    return encode(tokenizer, document(random.Random(0), [question], system=False))


def _batches(documents: list[tuple[list[int], list[float]]]) -> list[Batch]:
    """Rows just long enough for the longest of the documents: one of the two lengths of training."""
    row_len = SHORT if max(len(ids) for ids, _ in documents) <= SHORT else LONG
    rows = [_row(ids, learned, row_len) for ids, learned in documents]
    groups = [rows[start : start + _ROWS] for start in range(0, len(rows), _ROWS)]
    return [Batch(*(np.stack(column) for column in zip(*group, strict=True))) for group in groups]


def _row(ids: list[int], learned: list[float], row_len: int) -> Batch:
    padding = [0] * (row_len + 1 - len(ids))
    tokens, counts = np.array(ids + padding, np.int32), np.array(learned + padding, np.float32)
    documents = np.array([1] * len(ids) + padding, np.int32)
    return Batch(tokens[:-1], tokens[1:], counts[1:], documents[:-1], np.arange(row_len, dtype=np.int32))
