"""What a training run keeps on disk: weights, optimizer state, options and history, replaced in one step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import jax
import numpy as np

State = TypeVar("State")
Options = Mapping[str, float | str | None]
"""What a run was started with, by the names of the command line; the same options give the same weights."""


class Progress(NamedTuple):
    """How a run has gone."""

    losses: list[float]
    """Of each step done, in nats."""
    scores: list[tuple[int, dict[str, float]]]
    """Steps done, and the share of right answers per skill at that point."""


def save(path: Path, state: object, progress: Progress, options: Options) -> None:
    """Writes a checkpoint beside the old one and then puts it in its place."""
    arrays = {f"leaf{index}": np.asarray(leaf) for index, leaf in enumerate(jax.tree.leaves(state))}
    arrays["history"] = np.array(json.dumps({"progress": progress, "options": options}))
    fresh = path.with_suffix(".new.npz")
    np.savez(fresh, allow_pickle=False, **arrays)
    fresh.replace(path)


def restore(path: Path, like: State, options: Options) -> tuple[State, Progress]:
    """The state and the progress of a checkpoint; ``like`` is a state of the same form.

    Raises:
        ValueError: it was made with other options, whose vocabulary, examples or learning rates are not these ones'.
    """
    leaves, treedef = jax.tree.flatten(like)
    with np.load(path, allow_pickle=False) as file:
        history = json.loads(str(file["history"]))
        _check(path, history["options"], options)
        found = [file[f"leaf{index}"] for index in range(len(leaves))]
    losses, scores = history["progress"]
    return jax.tree.unflatten(treedef, found), Progress(losses, [(step, each) for step, each in scores])


def _check(path: Path, made_with: Options, options: Options) -> None:
    other = [f"{name} {made_with.get(name)}" for name, value in options.items() if made_with.get(name) != value]
    if other:
        raise ValueError(f"{path} holds a run with {', '.join(other)}: give the same, or another folder with --out")
