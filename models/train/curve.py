"""The training as a picture."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt

from models.train.checkpoint import Progress


def draw_curve(path: Path, progress: Progress, tokens_per_step: int) -> None:
    """Above, the loss of each step and its moving mean; below, the share of held-out questions answered rightly."""
    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 8), layout="constrained", sharex=True)
    _draw_losses(above, progress.losses, tokens_per_step)
    for name in progress.scores[0][1] if progress.scores else ():
        steps, scores = zip(*((step, scores[name]) for step, scores in progress.scores), strict=True)
        style = "--" if name.startswith("recall") else "-"
        below.plot(np.array(steps) * tokens_per_step / 1e6, scores, style, marker=".", label=name)
    below.set(xlabel="tokens seen (millions)", ylabel="held-out questions right", ylim=(0, 1.02))
    below.legend(fontsize="x-small", ncols=3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_losses(axes: plt.Axes, losses: list[float], tokens_per_step: int) -> None:
    tokens = np.arange(1, len(losses) + 1) * tokens_per_step / 1e6
    width = max(1, len(losses) // 200)
    smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
    axes.plot(tokens, losses, ".", markersize=1, color="lightgrey", label="one step")
    axes.plot(tokens[width - 1 :], smooth, color="tab:blue", label=f"mean of {width} steps")
    axes.set(ylabel="loss on answers (nats per token)", yscale="log", title="clforge-tiny: training")
    axes.legend()
