"""Checks of parameters. What is out of range, NaN included, is an InvalidArgumentError with field, value and range."""

from __future__ import annotations

from collections.abc import Sequence

from service_common.errors import InvalidArgumentError


def number_in_range(field: str, value: float, low: float, high: float) -> float:
    """`value`, if it is in [low, high]."""
    if not low <= value <= high:  # false for NaN too
        raise InvalidArgumentError(field, value, f"must be between {low:g} and {high:g}")
    return value


def positive_number(field: str, value: float, high: float) -> float:
    """`value`, if it is in (0, high]."""
    if not 0 < value <= high:
        raise InvalidArgumentError(field, value, f"must be above 0 and at most {high:g}")
    return value


def integer_in_range(field: str, value: int, low: int, high: int) -> int:
    """`value`, if it is in [low, high]."""
    if not low <= value <= high:
        raise InvalidArgumentError(field, value, f"must be between {low} and {high}")
    return value


def limited_list(field: str, value: Sequence[object], most: int, what: str, least: int = 0) -> None:
    """Checks that `value` holds `least` to `most` things, which are `what`."""
    if not least <= len(value) <= most:
        limit = f"must hold at most {most}" if least == 0 else f"must hold between {least} and {most}"
        raise InvalidArgumentError(field, f"a list of {len(value)} {what}", limit)


def token_ids_in_vocabulary(field: str, value: Sequence[int], vocab_size: int) -> tuple[int, ...]:
    """`value` as a tuple, if each id is in [0, vocab_size); else the error names the first that is not."""
    if value and not (min(value) >= 0 and max(value) < vocab_size):
        index, token_id = next((i, t) for i, t in enumerate(value) if not 0 <= t < vocab_size)
        raise InvalidArgumentError(f"{field}[{index}]", token_id, f"must be below the vocabulary's {vocab_size} tokens")
    return tuple(value)
