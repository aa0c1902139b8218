"""Pictures of results. They need matplotlib, the extra `bench`; without it reports have tables alone."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from engine_service.bench.figures import RATE_UNIT, Results, figures_of

_INCHES_PER_BAR, _WIDTH_INCHES = 0.22, 8.0


def plot_ratios(results: Results, path: Path) -> bool:
    """Draws ours ÷ llama.cpp's with its spread, a bar per model and workload; False where there is nothing to draw.

    Nothing is drawn without ratios, or without matplotlib.
    """
    bars = [
        (f"{model} {workload}", figure["ratio"], *figure["ratio_spread"])
        for model, entry in results.items()
        for workload, figure in figures_of(entry).items()
        if figure["ratio"] is not None and figure["unit"] == RATE_UNIT
    ]
    if not bars or find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure

    names, ratios, lows, highs = zip(*reversed(bars), strict=True)
    figure = Figure(figsize=(_WIDTH_INCHES, 1 + _INCHES_PER_BAR * len(bars)), layout="constrained")
    axes = figure.add_subplot()
    below = [ratio - low for ratio, low in zip(ratios, lows, strict=True)]
    above = [high - ratio for ratio, high in zip(ratios, highs, strict=True)]
    axes.barh(names, ratios, xerr=[below, above], color="tab:blue", ecolor="black", capsize=2)
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_xlabel("tokens/s, CLForge ÷ llama.cpp: median of the pairs, and their spread")
    figure.savefig(path, metadata={"Date": None})
    return True
