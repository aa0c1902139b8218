"""The rotary table: right by the formula, by llama.cpp, at its boundaries, and the same bits on every host."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from engine_service.models.hyperparameters import MAX_CONTEXT_LENGTH, Hyperparameters, RopeScaling
from engine_service.models.rotary import cos_sin, rope_freq_factors, rotary_frequencies, rotary_table
from engine_service.models.tensor_table import read_hyperparameters
from service_common.errors import ModelFileError
from service_common.gguf_reader import GGUFReader
from tests.gguf_builder import tiny_llama

# (pair, cos, sin) at position 100 by ggml_rope_ext of llama.cpp: 64 dimensions, base 10000, YaRN with factor 4 and an
# original context of 1024.
LLAMA_CPP_YARN = (
    (0, 0.981862, -0.576563),
    (5, 0.17217, -1.125537),
    (8, -0.459343, 1.041864),
    (12, -0.352125, 1.082814),
    (16, 1.063464, 0.406842),
    (20, 1.135073, 0.089923),
    (31, 1.138623, 0.003796),
)

# (cos, sin) of all pairs at position 100 by the same: 16 dimensions, base 500000, YaRN with factor 8, attention factor
# 1.3 and an original context of 8192, frequency factors 1, 1.5, 2, … 4.5.
LLAMA_CPP_YARN_FACTORS = (
    (1.354123, -0.79516),
    (1.468659, 0.555849),
    (-0.478302, 1.495712),
    (1.536925, 0.322166),
    (1.570024, 0.030842),
    (1.570327, 0.001538),
    (1.570327, 0.000261),
    (1.570327, 4.5e-05),
)


def model(rope_dim: int = 16, rope_base: float = 10000.0, scaling: RopeScaling | None = None) -> Hyperparameters:
    """Hyper-parameters of which only the rotary ones matter."""
    return Hyperparameters(
        architecture="llama",
        num_layers=1,
        hidden_size=rope_dim,
        ffn_size=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=rope_dim,
        vocab_size=1,
        context_length=256,
        rms_norm_eps=1e-5,
        rope_style="adjacent",
        rope_base=rope_base,
        rope_dim=rope_dim,
        rope_scaling=scaling or RopeScaling(),
        attention_bias=False,
        tied_embeddings=True,
    )


def direct(num_positions: int, rope_dim: int, base: float, stretch: float = 1.0) -> NDArray[np.float32]:
    """The table by math.cos and math.sin, number by number."""
    pairs = range(rope_dim // 2)
    angles = [
        [position * base ** (-2 * pair / rope_dim) / stretch for pair in pairs] for position in range(num_positions)
    ]
    return np.array([[(math.cos(angle), math.sin(angle)) for angle in row] for row in angles], np.float32)


def assert_within_one_ulp(table: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    """Equal to the next float32 of the number 1 at most, and to the bit nearly everywhere."""
    np.testing.assert_allclose(table, expected, rtol=0, atol=2.0**-24)
    assert (table == expected).mean() > 0.999


@pytest.mark.parametrize(("rope_dim", "base"), [(8, 10000.0), (64, 500000.0), (128, 1e6), (2, 10000.0)])
def test_it_follows_the_formula(rope_dim: int, base: float) -> None:
    """Entry (position, i) is cos and sin of position × base^(−2i / rope_dim) (MODEL-1)."""
    table = rotary_table(model(rope_dim, base), 300, None)
    assert table.shape == (300, rope_dim // 2, 2)
    assert table.dtype == np.float32
    assert_within_one_ulp(table, direct(300, rope_dim, base))


def test_linear_scaling_divides_the_position() -> None:
    """Under 'linear' with factor 4, position 4p is rotated as position p without scaling."""
    scaled = rotary_table(model(scaling=RopeScaling("linear", 4.0)), 64, None)
    np.testing.assert_array_equal(scaled[::4], rotary_table(model(), 16, None))
    assert_within_one_ulp(scaled, direct(64, 16, 10000.0, stretch=4.0))


def test_frequency_factors_divide_the_frequencies() -> None:
    """A factor of 8 on pair 1 slows pair 1 by 8 and leaves the others alone."""
    plain, slowed = rotary_table(model(), 64, None), rotary_table(model(), 64, np.array([1, 8, 1, 1, 1, 1, 1, 1], "f4"))
    np.testing.assert_array_equal(slowed[::8, 1], plain[:8, 1])
    np.testing.assert_array_equal(np.delete(slowed, 1, axis=1), np.delete(plain, 1, axis=1))


def test_yarn_agrees_with_llama_cpp() -> None:
    """Values at position 100 that ggml_rope_ext (llama.cpp) gives for the same parameters."""
    yarn = RopeScaling("yarn", 4.0, original_context_length=1024)
    table = rotary_table(model(64, scaling=yarn), 101, None)[100]
    for pair, cos, sin in LLAMA_CPP_YARN:
        np.testing.assert_allclose(table[pair], (cos, sin), rtol=0, atol=5e-6)


def test_yarn_with_all_its_parameters_agrees_with_llama_cpp() -> None:
    """The same with an attention factor, frequency factors and another base."""
    yarn = RopeScaling("yarn", 8.0, attn_factor=1.3, original_context_length=8192)
    factors = np.array([1 + 0.5 * pair for pair in range(8)], np.float32)
    table = rotary_table(model(16, 500000.0, yarn), 101, factors)[100]
    np.testing.assert_allclose(table, LLAMA_CPP_YARN_FACTORS, rtol=0, atol=5e-6)


def test_yarn_keeps_fast_pairs_and_stretches_slow_ones() -> None:
    """Pairs before the first correction dimension keep their frequency, those after the second are slowed by s."""
    plain = rotary_frequencies(model(128), None)
    yarn = rotary_frequencies(model(128, scaling=RopeScaling("yarn", 4.0, original_context_length=4096)), None)
    ratio = yarn / plain
    # 128 ln(4096 / (32 × 2π)) / (2 ln 10000) = 20.9 and 128 ln(4096 / 2π) / (2 ln 10000) = 45.03.
    np.testing.assert_allclose(ratio[:21], 1.0, rtol=1e-15)
    np.testing.assert_allclose(ratio[46:], 0.25, rtol=1e-15)
    assert (np.diff(ratio[20:47]) < 0).all()


@pytest.mark.parametrize("original", [1, 2**24])
def test_yarn_is_defined_for_any_original_context(original: int) -> None:
    """Correction dimensions outside the head are clamped; the table stays finite."""
    table = rotary_table(model(scaling=RopeScaling("yarn", 4.0, original_context_length=original)), 64, None)
    assert np.isfinite(table).all()


def test_position_zero_does_not_rotate() -> None:
    """At position 0 cos is the magnitude, 1 without YaRN, and sin is 0."""
    np.testing.assert_array_equal(rotary_table(model(), 1, None)[0], [(1, 0)] * 8)
    yarn = rotary_table(model(scaling=RopeScaling("yarn", math.e, 2.0, original_context_length=256)), 1, None)[0]
    np.testing.assert_allclose(yarn, [(2.2, 0)] * 8, rtol=1e-7)


def test_a_position_does_not_depend_on_the_tables_length() -> None:
    """Positions around the internal chunk of 4096 are the same in a short and a long table (BUG-9, BUG-15)."""
    long = rotary_table(model(), 8200, None)
    for length in (0, 1, 4095, 4096, 4097):
        np.testing.assert_array_equal(rotary_table(model(), length, None), long[:length])
    assert_within_one_ulp(long, direct(8200, 16, 10000.0))


@pytest.mark.parametrize("num_positions", [-1, MAX_CONTEXT_LENGTH + 1])
def test_a_table_of_impossible_length_is_refused(num_positions: int) -> None:
    """A length outside the domain is an error before anything is allocated (BUG-15)."""
    with pytest.raises(ValueError, match=f"num_positions is {num_positions}; must be 0 to {MAX_CONTEXT_LENGTH}"):
        rotary_table(model(), num_positions, None)


def test_cos_and_sin_are_accurate_over_the_whole_domain() -> None:
    """Within 2.3e-16 of the true value at random angles, at multiples of π/4 and at both ends of the domain."""
    rng = np.random.default_rng(3)
    last = math.pi / 2 * MAX_CONTEXT_LENGTH * 0.999
    angles = np.concatenate([rng.random(100_000) * last, np.arange(10_000) * math.pi / 4, [0.0, 1e-300, 1e-9, last]])
    cos, sin = cos_sin(angles)
    np.testing.assert_allclose(cos, np.cos(angles.astype(np.longdouble)).astype(np.float64), rtol=0, atol=2.3e-16)
    np.testing.assert_allclose(sin, np.sin(angles.astype(np.longdouble)).astype(np.float64), rtol=0, atol=2.3e-16)


def test_the_bits_are_the_same_on_every_host() -> None:
    """The table's digest is a constant: no operation in it is a library's to round (D9)."""
    yarn = RopeScaling("yarn", 4.0, attn_factor=1.1, original_context_length=8192)
    digest = hashlib.sha256()
    for hyperparameters in (model(128, 500000.0), model(64, 10000.0, yarn)):
        digest.update(rotary_table(hyperparameters, 5000, None).astype("<f4").tobytes())
    assert digest.hexdigest() == "783a88d32bd4506f6f359aceddc00f973f82eb0935125de18268f0afba3fade2"


def test_factors_are_read_from_the_file(tmp_path: Path) -> None:
    """rope_freqs.weight comes back as float32; a model without it has none."""
    factors = np.linspace(1, 8, 8, dtype=np.float32)
    tiny_llama(tmp_path / "with.gguf", seed=1, tensors={"rope_freqs.weight": factors})
    tiny_llama(tmp_path / "without.gguf", seed=1)
    with GGUFReader(tmp_path / "with.gguf") as reader:
        read = rope_freq_factors(reader, read_hyperparameters(reader))
    assert read is not None
    np.testing.assert_array_equal(read, factors)
    with GGUFReader(tmp_path / "without.gguf") as reader:
        assert rope_freq_factors(reader, read_hyperparameters(reader)) is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0, -1.0, 0.5])
def test_factors_that_would_break_the_table_are_refused(bad: float, tmp_path: Path) -> None:
    """NaN, infinite, zero, negative and tiny factors are an error that shows the value."""
    factors = np.array([1, 2, bad, 4, 5, 6, 7, 8], np.float32)
    tiny_llama(tmp_path / "bad.gguf", seed=1, tensors={"rope_freqs.weight": factors})
    with (
        GGUFReader(tmp_path / "bad.gguf") as reader,
        pytest.raises(ModelFileError, match=f"rope_freqs.weight is {bad}"),
    ):
        rope_freq_factors(reader, read_hyperparameters(reader))


def test_factors_of_another_type_are_refused(tmp_path: Path) -> None:
    """Only F32 factors are read."""
    tiny_llama(tmp_path / "half.gguf", seed=1, tensors={"rope_freqs.weight": np.ones(8, np.float16)})
    with GGUFReader(tmp_path / "half.gguf") as reader, pytest.raises(ModelFileError, match="is F16; must be F32"):
        rope_freq_factors(reader, read_hyperparameters(reader))
