"""Figures as people read them."""

from __future__ import annotations

from datetime import timedelta


def size(num_bytes: int) -> str:
    """`3.5 MiB`."""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    value = float(num_bytes)
    while value >= 1024 and len(units) > 1:
        value /= 1024
        del units[0]
    return f"{num_bytes} B" if units[0] == "B" else f"{value:.1f} {units[0]}"


def count(number: int) -> str:
    """`1.1 B`, as models are called; below a million every digit."""
    for limit, letter in ((10**12, "T"), (10**9, "B"), (10**6, "M")):
        if number >= limit:
            return f"{number / limit:.1f} {letter}"
    return f"{number:,}"


def age(seconds: float) -> str:
    """`4.2 s`, from a minute on `0:03:05`, from a day on `1 day, 3:00:00`."""
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=int(seconds)))
