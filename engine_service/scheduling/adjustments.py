"""What the host makes of a row's history: changes to single logits, in the form that the device takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

# Mirrors adjustment of kernels/sampling_row.cl: x becomes (x > 0 ? x / divisor : x * divisor) - subtrahend.
ADJUSTMENT = np.dtype([("token_id", "<i4"), ("divisor", "<f4"), ("subtrahend", "<f4")])
AdjustmentArray: TypeAlias = NDArray[Any]  # of dtype ADJUSTMENT, one dimension

NONE: AdjustmentArray = np.empty(0, ADJUSTMENT)


class Adjustments(NamedTuple):
    """A row's adjustments: `biases` come before all stages, the others in stages PENALTIES and DRY."""

    biases: AdjustmentArray = NONE
    penalties: AdjustmentArray = NONE
    dry: AdjustmentArray = NONE


NO_ADJUSTMENTS = Adjustments()


def subtract(token_ids: Any, subtrahends: Any) -> AdjustmentArray:
    """Adjustments that take `subtrahends` (one for all, or one each) from the logits of `token_ids`."""
    result = np.empty(len(token_ids), ADJUSTMENT)
    result["token_id"] = token_ids
    result["divisor"] = 1
    result["subtrahend"] = subtrahends
    return result


def ban(token_ids: Sequence[int]) -> AdjustmentArray:
    """Adjustments after which these tokens are never chosen while another one is left."""
    return subtract(token_ids, np.inf) if token_ids else NONE
