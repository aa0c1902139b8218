"""What the scheduler and the model runner know of constrained output: no library, no grammar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from service_common.errors import RequestError


class Constraint(Protocol):
    """What the output of one choice has to match, and how far it has got. One thread at a time may call."""

    @property
    def error(self) -> RequestError | None:
        """Why the choice cannot go on, once that is so."""

    def masks(self, tail: Sequence[int]) -> NDArray[np.uint32]:
        """Which tokens may come next: after the accepted ones, and after each prefix of the draft `tail` behind them.

        (len(tail) + 1, ceil(vocab_size / 32)), packed as the sampler takes it. A row behind a draft token that may not
        come, and all rows once there is an `error`, allow everything: nothing of them is used. Changes no state but
        `error`.
        """

    def accept(self, token_id: int) -> bool:
        """Takes in the next token of the output; whether more may follow. False also where there is an `error` now."""


class Grammar(Protocol):
    """A constraint as asked for, compiled. Any thread may call."""

    def start(self) -> Constraint:
        """The constraint for one choice, nothing accepted yet."""
