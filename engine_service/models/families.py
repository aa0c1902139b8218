"""What sets the served architectures apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

RopeStyle: TypeAlias = Literal["adjacent", "halves"]


@dataclass(frozen=True, slots=True)
class Family:
    """Which elements rotate as a pair, and whether a file may bring rotary frequency factors."""

    rope_style: RopeStyle
    rope_freqs: bool


FAMILIES = {"llama": Family("adjacent", rope_freqs=True), "qwen2": Family("halves", rope_freqs=False)}
