"""What a kernel has to do in a step, at the least: the bytes that it moves and the operations that it does.

Counted for people who read a profile, never in a step that serves: a launch carries a function of the step's shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

from engine_service.scheduling.messages import ScheduledChunk


class StepShape(NamedTuple):
    """What decides about a step's work.

    `num_context_tokens` is the sum of the sequences' lengths after the step, `num_attended` the sum over the step's
    tokens of how many each attends to, itself included.
    """

    num_tokens: int
    num_logit_rows: int
    num_context_tokens: int
    num_attended: int

    @classmethod
    def of(cls, chunks: Sequence[ScheduledChunk]) -> Self:
        """The shape of a step that holds `chunks`."""
        attended = (chunk.num_tokens * chunk.start + chunk.num_tokens * (chunk.num_tokens + 1) // 2 for chunk in chunks)
        return cls(
            num_tokens=sum(chunk.num_tokens for chunk in chunks),
            num_logit_rows=sum(chunk.num_rows for chunk in chunks),
            num_context_tokens=sum(chunk.start + chunk.num_tokens for chunk in chunks),
            num_attended=sum(attended),
        )


class Work(NamedTuple):
    """Bytes read and written, each once however often a cache serves them; additions and multiplications."""

    nbytes: int
    num_ops: int


WorkOf = Callable[[StepShape], Work]


def no_work(shape: StepShape) -> Work:
    """For launches whose work nobody has counted."""
    return Work(0, 0)


def row_work(nbytes: int, num_ops: int = 0, *, only_logit_rows: bool = False) -> WorkOf:
    """So much for each token of the step, or for each row whose logits are wanted."""

    def work(shape: StepShape) -> Work:
        num_rows = shape.num_logit_rows if only_logit_rows else shape.num_tokens
        return Work(num_rows * nbytes, num_rows * num_ops)

    return work


def matmul_work(weight_bytes: int, rows: int, cols: int, *, only_logit_rows: bool) -> WorkOf:
    """The weights [rows][cols] once, f32 rows in and out, and a product and a sum for each weight and row."""
    of_rows = row_work(4 * (rows + cols), 2 * rows * cols, only_logit_rows=only_logit_rows)

    def work(shape: StepShape) -> Work:
        nbytes, num_ops = of_rows(shape)
        return Work(nbytes + weight_bytes if num_ops else 0, num_ops)

    return work


def attention_work(num_heads: int, head_dim: int, *, context_bytes: int) -> WorkOf:
    """K and V, `context_bytes` a token, queries and results; scores, and values weighted by them."""

    def work(shape: StepShape) -> Work:
        queries_and_results = shape.num_tokens * 2 * 4 * num_heads * head_dim
        nbytes = shape.num_context_tokens * context_bytes + queries_and_results
        return Work(nbytes, 4 * shape.num_attended * num_heads * head_dim)

    return work
