"""quantize.cl against docs/numerics.md section 2."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from engine_service.compute.kernel_library import KernelLibrary
from tests.kernels import reference_ops
from tests.kernels.reference_ops import Quantized

Floats = NDArray[np.float32]


def quantise(library: KernelLibrary, x: Floats) -> Quantized:
    """The kernel's result for rows x."""
    device = library.device
    groups = -(-x.shape[1] // 32)
    result = Quantized(
        np.full((len(x), groups * 32), 99, np.int8),
        np.full((len(x), groups), np.nan, np.float32),
        np.full((len(x), groups, 2), 99, np.int16),
    )
    buffers = [device.upload(array, "array") for array in (x, *result)]
    kernel = library.kernel("quantize", "quantize_rows")
    kernel.set_args(*buffers, np.int32(x.shape[1]))
    device.run(kernel, len(x))
    device.read(buffers[1], result.q)
    device.read(buffers[2], result.scale)
    device.read(buffers[3], result.sums)
    return result


def assert_matches(library: KernelLibrary, x: Floats) -> Quantized:
    actual = quantise(library, x)
    for got, expected in zip(actual, reference_ops.quantize(x), strict=True):
        np.testing.assert_array_equal(got, expected)
    return actual


@pytest.mark.parametrize("k", [1, 31, 32, 33, 172, 2048])
def test_rows_of_any_width_match_the_definition(library: KernelLibrary, k: int) -> None:
    """Codes, scales and half sums are the definition's bits, padding included, for rows of very different size."""
    rng = np.random.default_rng(k)
    assert_matches(library, (rng.standard_normal((5, k)) * np.exp2(rng.uniform(-40, 40, (5, 1)))).astype(np.float32))


def test_ties_round_to_even(library: KernelLibrary) -> None:
    """Values half-way between codes go to the even one."""
    x = np.resize(np.array([127, 0.5, 1.5, 2.5, -0.5, -1.5, 126.5, -126.5], np.float32), (1, 32))
    assert list(assert_matches(library, x).q[0, :8]) == [127, 0, 2, 2, 0, -2, 126, -126]


def test_codes_never_leave_127(library: KernelLibrary) -> None:
    """No rounding of amax, of its reciprocal or of the product makes a code of 128."""
    amax = np.random.default_rng(0).uniform(1, 2, (4096, 1)).astype(np.float32)
    codes = assert_matches(library, np.tile(np.concatenate([amax, -amax], axis=1), (1, 16))).q
    assert codes.min() == -127
    assert codes.max() == 127


def test_vanishing_groups_are_zero(library: KernelLibrary) -> None:
    """A group below 2^-60 has scale 0 and codes 0; one at 2^-60 does not."""
    x = np.zeros((3, 64), np.float32)
    x[1], x[2, 40] = np.float32(2.0**-61), np.float32(2.0**-60)
    assert (assert_matches(library, x).scale > 0).tolist() == [[False, False], [False, False], [False, True]]
