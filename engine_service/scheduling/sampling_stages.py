"""The steps between logits and the draw, and their order: docs/sampling.md."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum, unique

from service_common.errors import InvalidArgumentError


@unique
class Stage(IntEnum):
    """Numbered as in kernels/sampling_row.cl, and in the default order; GREEDY and MIROSTAT are none of a request's."""

    PENALTIES = 1
    DRY = 2
    TOP_N_SIGMA = 3
    TEMPERATURE = 4
    GREEDY = 5  # takes the largest logit
    TOP_K = 6
    TYPICAL_P = 7
    TOP_P = 8
    MIN_P = 9
    XTC = 10
    MIROSTAT = 11


DEFAULT_ORDER = tuple(stage for stage in Stage if stage not in (Stage.GREEDY, Stage.MIROSTAT))

_STAGE_OF = {
    "repetition_penalty": Stage.PENALTIES,
    "frequency_penalty": Stage.PENALTIES,
    "presence_penalty": Stage.PENALTIES,
    "penalty_window": Stage.PENALTIES,
    "dry": Stage.DRY,
    "top_n_sigma": Stage.TOP_N_SIGMA,
    "temperature": Stage.TEMPERATURE,
    "top_k": Stage.TOP_K,
    "typical_p": Stage.TYPICAL_P,
    "top_p": Stage.TOP_P,
    "min_p": Stage.MIN_P,
    "xtc": Stage.XTC,
}
_REPLACED_BY_MIROSTAT = ("top_k", "typical_p", "top_p", "min_p", "top_n_sigma", "xtc")


def checked_order(order: Sequence[Stage], names: Sequence[str]) -> tuple[Stage, ...]:
    """`order`, DEFAULT_ORDER where it is empty; `names` are the parameters that are set.

    InvalidArgumentError where a stage is named twice, or the stage of a parameter that is set is left out.
    """
    if not order:
        return DEFAULT_ORDER
    for index, stage in enumerate(order):
        if stage in order[:index]:
            raise InvalidArgumentError(f"params.sampling.order[{index}]", stage.name, "is there already")
    for name in names:
        if name in _STAGE_OF and _STAGE_OF[name] not in order:
            limit = f"must hold {_STAGE_OF[name].name}, since {name} is set"
            raise InvalidArgumentError("params.sampling.order", [stage.name for stage in order], limit)
    return tuple(order)


def check_mirostat_is_alone(names: Sequence[str]) -> None:
    """Raises InvalidArgumentError where one of the parameters that are set is one that mirostat takes the place of."""
    for name in names:
        if name in _REPLACED_BY_MIROSTAT:
            raise InvalidArgumentError(f"params.sampling.{name}", "set", "must not be set beside mirostat")
