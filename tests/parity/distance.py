"""How far logits are from E."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def distance(logits: NDArray[Any], exact: NDArray[np.float64]) -> float:
    """‖logits − E‖ / ‖E‖ over all rows."""
    return float(np.linalg.norm(logits - exact) / np.linalg.norm(exact))


def decided_rows(logits: NDArray[Any], exact: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Rows in which E's margin between best and second exceeds 4 × max |logits − E|: there the argmax must agree."""
    ordered = np.sort(exact, axis=-1)
    margin = ordered[:, -1] - ordered[:, -2]
    return np.asarray(margin > 4 * np.abs(logits - exact).max(axis=-1))
