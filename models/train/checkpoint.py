"""What a training run keeps on disk: weights, optimizer state and its history, replaced in one step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple, TypeVar

import jax
import numpy as np

State = TypeVar("State")


class Progress(NamedTuple):
    """How a run has gone."""

    losses: list[float]
    """Of each step done, in nats."""
    scores: list[tuple[int, dict[str, float]]]
    """Steps done, and the share of right answers per skill at that point."""


def save(path: Path, state: object, progress: Progress) -> None:
    """Writes a checkpoint beside the old one and then puts it in its place."""
    arrays = {f"leaf{index}": np.asarray(leaf) for index, leaf in enumerate(jax.tree.leaves(state))}
    arrays["progress"] = np.array(json.dumps(progress))
    fresh = path.with_suffix(".new.npz")
    np.savez(fresh, allow_pickle=False, **arrays)
    fresh.replace(path)


def restore(path: Path, like: State) -> tuple[State, Progress]:
    """The state and the progress of a checkpoint.

    Raises:
        ValueError: it was made with another shape of model or another optimizer than ``like``.
    """
    leaves, treedef = jax.tree.flatten(like)
    with np.load(path, allow_pickle=False) as file:
        found = [file[f"leaf{index}"] for index in range(len(file.files) - 1)]
        losses, scores = json.loads(str(file["progress"]))
    if [leaf.shape for leaf in found] != [np.shape(leaf) for leaf in leaves]:
        raise ValueError(f"{path} holds a run of another shape: delete it, or give the options that it was made with")
    return jax.tree.unflatten(treedef, found), Progress(losses, [(step, each) for step, each in scores])
