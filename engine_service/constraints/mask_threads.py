"""The threads on which masks are computed while the device runs the forward pass (D11)."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine_service.scheduling.constraint import Constraint

Masks = NDArray[np.uint32]


class MaskRequest(NamedTuple):
    """Masks wanted of a constraint: after what it has accepted, and after each prefix of a draft."""

    constraint: Constraint
    tail: tuple[int, ...] = ()


class MaskThreads:
    """Computes the masks of a step. Its threads start when first needed."""

    def __init__(self, num_threads: int) -> None:
        self._num_threads = num_threads
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="masks")

    def start(self, requests: Sequence[MaskRequest]) -> PendingMasks:
        """Begins; nothing else may touch the constraints until `PendingMasks.wait` has returned."""
        shares = [requests[first :: self._num_threads] for first in range(self._num_threads)]
        return PendingMasks([self._pool.submit(_compute, share) for share in shares if share])

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown()


class PendingMasks:
    """The masks of one step, on their way."""

    def __init__(self, shares: Sequence[Future[list[Masks]]]) -> None:
        self._shares = shares

    def wait(self) -> list[Masks]:
        """Constraint.masks of each request, in order."""
        found = [share.result() for share in self._shares]
        num_shares, count = len(found), sum(map(len, found))
        return [found[index % num_shares][index // num_shares] for index in range(count)]


def _compute(requests: Sequence[MaskRequest]) -> list[Masks]:
    return [request.constraint.masks(request.tail) for request in requests]
