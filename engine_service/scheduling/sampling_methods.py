"""Parameters of the sampling methods that have several. `create` checks the values; the constructors trust them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from engine_service.scheduling.ranges import integer_in_range, number_in_range, positive_number
from service_common.errors import InvalidArgumentError

_T = TypeVar("_T")
_MAX_COUNT = (1 << 31) - 1
_DRY, _XTC, _MIROSTAT = (f"params.sampling.{name}" for name in ("dry", "xtc", "mirostat"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Dry:
    """The penalty for going on with a repetition; `breaker_ids` are the tokens beyond which no run goes."""

    multiplier: float = 0.0
    base: float = 1.75
    allowed_length: int = 2
    window: int = 0
    breaker_ids: frozenset[int] = frozenset()

    @classmethod
    def create(
        cls,
        *,
        breaker_ids: frozenset[int],
        multiplier: float | None = None,
        base: float | None = None,
        allowed_length: int | None = None,
        window: int | None = None,
    ) -> Dry:
        """Checked parameters; None takes the default."""
        return cls(
            multiplier=number_in_range(f"{_DRY}.multiplier", _or(multiplier, 0.0), 0.0, 100.0),
            base=number_in_range(f"{_DRY}.base", _or(base, 1.75), 1.0, 16.0),
            allowed_length=integer_in_range(f"{_DRY}.allowed_length", _or(allowed_length, 2), 1, 1024),
            window=integer_in_range(f"{_DRY}.window", _or(window, 0), 0, _MAX_COUNT),
            breaker_ids=breaker_ids,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Xtc:
    """How often the most likely tokens are dropped, and which they are."""

    probability: float = 0.0
    threshold: float = 0.1

    @classmethod
    def create(cls, *, probability: float | None = None, threshold: float | None = None) -> Xtc:
        """Checked parameters; None takes the default."""
        return cls(
            probability=number_in_range(f"{_XTC}.probability", _or(probability, 0.0), 0.0, 1.0),
            threshold=positive_number(f"{_XTC}.threshold", _or(threshold, 0.1), 1.0),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Mirostat:
    """The surprise that is aimed at, in bits, and how fast the limit follows."""

    target: float
    learning_rate: float = 0.1

    @classmethod
    def create(cls, *, target: float | None = None, learning_rate: float | None = None) -> Mirostat:
        """Checked parameters; None takes the default, which `target` has none."""
        if target is None:
            raise InvalidArgumentError(f"{_MIROSTAT}.target", "not set", "must be above 0 and at most 100")
        return cls(
            target=positive_number(f"{_MIROSTAT}.target", target, 100.0),
            learning_rate=positive_number(f"{_MIROSTAT}.learning_rate", _or(learning_rate, 0.1), 1.0),
        )


NO_DRY, NO_XTC = Dry(), Xtc()


def _or(value: _T | None, default: _T) -> _T:
    return default if value is None else value
