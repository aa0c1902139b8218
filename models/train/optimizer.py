"""How weights change: Muon for the matrices, Adam for the rest."""

from __future__ import annotations

from collections.abc import Callable

import jax
import optax

from models.train.batches import Batch
from models.train.transformer import Params, Shape, loss

State = tuple[Params, optax.OptState]
Step = Callable[[State, Batch], tuple[State, jax.Array]]

_WARMUP_STEPS = 100
_DECAY_FROM = 0.3


def make_optimizer(peak: float, steps: int) -> optax.GradientTransformation:
    """Muon (Jordan et al., 2024) at ``peak`` for the layers' matrices, Adam at a tenth of it for embedding and norms.

    The rate rises over 100 steps and, after 0.3 of ``steps``, falls linearly to nothing.
    """
    warmup = optax.schedules.linear_schedule(0.0, 1.0, _WARMUP_STEPS)
    decay = optax.schedules.linear_schedule(1.0, 0.0, int(steps * (1 - _DECAY_FROM)), int(steps * _DECAY_FROM))

    def rate(largest: float) -> optax.Schedule:
        return lambda count: largest * warmup(count) * decay(count)

    kinds = {
        "matrix": optax.contrib.muon(rate(peak), weight_decay=0.01),
        "other": optax.adamw(rate(peak / 10), b2=0.95, weight_decay=0.0),
    }
    return optax.chain(optax.clip_by_global_norm(1.0), optax.multi_transform(kinds, _kinds))


def _kinds(params: Params) -> Params:
    """The name of its optimizer in the place of each weight."""
    layers = [
        {name: "matrix" if weight.ndim == 2 else "other" for name, weight in layer.items()} for layer in params.layers
    ]
    return Params("other", layers, "other")


def make_step(optimizer: optax.GradientTransformation, shape: Shape) -> Step:
    """A function that takes one step and also returns the loss before it."""

    def step(state: State, batch: Batch) -> tuple[State, jax.Array]:
        params, opt_state = state
        value, gradients = jax.value_and_grad(loss)(params, batch, shape)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    return step
