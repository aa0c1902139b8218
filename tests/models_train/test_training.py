"""The training itself; runs where JAX is installed (`pip install -e '.[train]'`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="training needs the extra 'train', which CI does not install")

from models.train import checkpoint, gguf_file, vocabulary  # noqa: E402
from models.train.batches import Batch, make_batch  # noqa: E402
from models.train.checkpoint import Progress  # noqa: E402
from models.train.optimizer import State, make_optimizer, make_step  # noqa: E402
from models.train.transformer import Shape, forward, initial  # noqa: E402

_SHAPE = Shape(num_layers=1)
_TOKENIZER = vocabulary.learn(1, num_examples=2000)
_OPTIONS = {"--steps": 100, "--seed": 1, "--from-gguf": None}


def _batch(step: int) -> Batch:
    return make_batch(_TOKENIZER, 1, step, 1024)


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    """Two steps, a checkpoint and two more give the weights of four steps, bit for bit."""
    optimizer = make_optimizer(0.005, 100)
    step = jax.jit(make_step(optimizer, _SHAPE))

    def run(state: State, steps: range) -> State:
        for number in steps:
            state, _ = step(state, _batch(number))
        return state

    params = initial(_SHAPE, 1)
    fresh: State = (params, optimizer.init(params))
    history = Progress([1.0, 0.5], [(2, {"sums": 0.25})])
    checkpoint.save(tmp_path / "run.npz", run(fresh, range(2)), history, _OPTIONS)
    half, progress = checkpoint.restore(tmp_path / "run.npz", fresh, _OPTIONS)
    assert progress == history
    for resumed, whole in zip(
        jax.tree.leaves(run(half, range(2, 4))), jax.tree.leaves(run(fresh, range(4))), strict=True
    ):
        np.testing.assert_array_equal(resumed, whole)


def test_a_checkpoint_of_other_options_is_refused(tmp_path: Path) -> None:
    """Another seed means another vocabulary, other steps another schedule: the message names them."""
    params = initial(_SHAPE, 1)
    checkpoint.save(tmp_path / "run.npz", params, Progress([], []), _OPTIONS)
    with pytest.raises(ValueError, match=r"holds a run with --steps 100, --seed 1: give the same"):
        checkpoint.restore(tmp_path / "run.npz", params, _OPTIONS | {"--steps": 50, "--seed": 2})


def test_training_goes_on_from_the_file(tmp_path: Path) -> None:
    """The vocabulary comes back as it was, and weights within Q8_0's rounding: half of 1/127 of a block's largest."""
    params = initial(_SHAPE, 1)
    gguf_file.write(tmp_path / "model.gguf", params, _SHAPE, _TOKENIZER)
    back, tokenizer = gguf_file.read(tmp_path / "model.gguf", _SHAPE)
    assert tokenizer.to_str() == _TOKENIZER.to_str()
    for found, expected in zip(jax.tree.leaves(back), jax.tree.leaves(params), strict=True):
        largest = float(np.abs(expected).max())
        np.testing.assert_allclose(found, expected, atol=largest / 127 * 0.51)


@pytest.mark.parametrize("num_layers", [1, 3])
def test_a_file_of_another_shape_is_refused(tmp_path: Path, num_layers: int) -> None:
    """Neither are layers left out nor is one missed."""
    two = Shape(num_layers=2)
    gguf_file.write(tmp_path / "model.gguf", initial(two, 1), two, _TOKENIZER)
    with pytest.raises(ValueError, match=f"another model than one of {num_layers} layers"):
        gguf_file.read(tmp_path / "model.gguf", Shape(num_layers=num_layers))


def test_no_place_sees_the_future_or_another_document() -> None:
    """Changing a token changes no logits before it, nor those of other documents of the row."""
    batch = _batch(0)
    row, params = 0, initial(_SHAPE, 1)
    changed = 100
    ids = batch.token_ids.copy()
    ids[row, changed] = (ids[row, changed] + 1) % _SHAPE.vocab_size
    before, after = forward(params, batch, _SHAPE)[row], forward(params, batch._replace(token_ids=ids), _SHAPE)[row]
    differs = np.asarray((before != after).any(axis=-1))
    assert differs[changed]
    assert not differs[:changed].any()
    assert not differs[batch.documents[row] != batch.documents[row, changed]].any()
