"""common.cl: the arithmetic that all kernels share has the bits of docs/numerics.md, natively and portably."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import pyopencl as cl
import pytest
from numpy.typing import NDArray

from engine_service.compute.device import Device
from tests.kernels import reference_ops

Floats = NDArray[np.float32]

_SOURCE = """
__kernel void scalar_ops(__global const float *a, __global const float *b, __global float *out) {
  size_t i = get_global_id(0), n = get_global_size(0);
  out[i] = clf_exp(a[i]);
  out[n + i] = a[i] / b[i];
  out[2 * n + i] = sqrt(fabs(b[i]));
  out[3 * n + i] = clf_fma(a[i], b[i], a[n - 1 - i]);
  out[4 * n + i] = clf_rint(a[i]);
}

__kernel void vector_ops(__global const float *a, __global const float *b, __global float *out) {
  size_t i = get_global_id(0) * 8, n = get_global_size(0) * 8;
  float copy[8];
  clf_store8(copy, clf_load8(b + i));
  v8f x = clf_load8(a + i), y = clf_load8(copy);
  clf_store8(out + i, clf_exp8(x));
  clf_store8(out + n + i, x / y);
  clf_store8(out + 2 * n + i, clf_max8(x, y));
  clf_store8(out + 3 * n + i, clf_fma8(x, y, (v8f)(a[n - 1 - i])));
  clf_store8(out + 4 * n + i, clf_rint8(x));
}

__kernel void folds(__global const float *a, __global float *out) {
  size_t i = get_global_id(0);
  out[2 * i] = clf_sum8(clf_load8(a + 8 * i));
  out[2 * i + 1] = clf_hmax8(clf_load8(a + 8 * i));
}

__kernel void to_half(__global const float *a, __global ushort *out) {
  size_t i = get_global_id(0) * 8;
  if (i % 16) clf_store8h(out + i, clf_load8(a + i));
  else for (size_t k = i; k < i + 8; k++) out[k] = clf_to_half(a[k]);
}

__kernel void from_half(__global const ushort *a, __global float *out) {
  size_t i = get_global_id(0) * 8;
  if (i % 16) clf_store8(out + i, clf_load8h(a + i));
  else for (size_t k = i; k < i + 8; k++) out[k] = clf_from_half(a[k]);
}
"""


@pytest.fixture(scope="module", params=["", "-DCLF_PORTABLE"], ids=["native", "portable"])
def program(request: pytest.FixtureRequest, device: Device) -> cl.Program:
    """The kernels above behind common.cl."""
    common = (files("engine_service.kernels") / "common.cl").read_text(encoding="utf-8")
    built: cl.Program = cl.Program(device.context, common + _SOURCE).build(["-cl-std=CL1.2", request.param])
    return built


def run(
    device: Device,
    program: cl.Program,
    name: str,
    inputs: list[NDArray[np.generic]],
    out: NDArray[np.generic],
    items: int,
) -> None:
    buffers = [device.upload(array, name) for array in (*inputs, out)]
    kernel = cl.Kernel(program, name)
    kernel.set_args(*buffers)
    device.run(kernel, items)
    device.read(buffers[-1], out)


def operands(count: int) -> tuple[Floats, Floats]:
    """Values of exponentials' range, of rounding ties, and of magnitudes 2^±40."""
    rng = np.random.default_rng(0)
    a = np.concatenate([rng.uniform(-90, 90, count // 2), rng.integers(-300, 300, count // 2) / 2]).astype(np.float32)
    a[:6] = [88, 88.5, -87, np.nextafter(np.float32(-87), np.float32(-88)), 0, -0.0]
    b = (rng.standard_normal(count) * np.exp2(rng.uniform(-40, 40, count))).astype(np.float32)
    return a, b


def assert_same_bits(actual: Floats, expected: Floats) -> None:
    np.testing.assert_array_equal(actual.view(np.uint32), expected.astype(np.float32).view(np.uint32))


def test_scalar_arithmetic_is_correctly_rounded(device: Device, program: cl.Program) -> None:
    """exp is section 3's; division, square root and fma have one rounding, and rint ties to even, on 10^6 values."""
    a, b = operands(1 << 20)
    out = np.empty((5, len(a)), np.float32)
    run(device, program, "scalar_ops", [a, b], out, len(a))
    expected = (reference_ops.exp(a), a / b, np.sqrt(np.abs(b)), reference_ops.fma(a, b, a[::-1]), np.rint(a) + 0)
    for actual, values in zip(out, expected, strict=True):
        assert_same_bits(actual, values)


def test_vector_arithmetic_equals_scalar_arithmetic(device: Device, program: cl.Program) -> None:
    """Each lane of the vector forms has the bits of the definition."""
    a, b = operands(1 << 16)
    out = np.empty((5, len(a)), np.float32)
    run(device, program, "vector_ops", [a, b], out, len(a) // 8)
    addend = np.repeat(a[::-1][::8], 8)
    expected = (reference_ops.exp(a), a / b, np.maximum(a, b), reference_ops.fma(a, b, addend), np.rint(a) + 0)
    for actual, values in zip(out, expected, strict=True):
        assert_same_bits(actual, values)


def test_exp_is_accurate_and_saturates(device: Device, program: cl.Program) -> None:
    """Within 1e-7 of exp in float64 over [-87, 88]; below it is +0, above it is exp(88)."""
    a = np.linspace(-87, 88, 1 << 16, dtype=np.float32)
    a[:3] = [-np.inf, -1e30, 1e30]
    out = np.empty((5, len(a)), np.float32)
    run(device, program, "scalar_ops", [a, np.ones_like(a)], out, len(a))
    np.testing.assert_allclose(out[0, 3:], np.exp(a[3:].astype(np.float64)), rtol=1e-7)
    assert_same_bits(out[0, :2], np.zeros(2, np.float32))
    assert out[0, 2] == out[0, -1]


def test_folds_keep_the_defined_order(device: Device, program: cl.Program) -> None:
    """Lane sums add s[l] + s[l + w] for w = 4, 2, 1; the maximum is exact."""
    _, b = operands(1 << 12)
    out = np.empty((len(b) // 8, 2), np.float32)
    run(device, program, "folds", [b], out, len(out))
    s = b.reshape(-1, 8)
    s4 = s[:, :4] + s[:, 4:]
    s2 = s4[:, :2] + s4[:, 2:]
    assert_same_bits(out, np.stack([s2[:, 0] + s2[:, 1], s.max(axis=1)], axis=1))


def test_halves_are_converted_exactly(device: Device, program: cl.Program) -> None:
    """All finite halves, subnormals included, become the right f32; f32 becomes the nearest half, ties to even."""
    halves = np.arange(1 << 16, dtype=np.uint16).reshape(2, -1)[:, : 31 << 10].reshape(-1)
    values = np.empty(len(halves), np.float32)
    run(device, program, "from_half", [halves], values, len(halves) // 8)
    assert_same_bits(values, halves.view(np.float16).astype(np.float32))
    between = np.concatenate([values, (values[:-1] + values[1:]) / 2, values[:1], values * np.float32(1.0001)])
    between = np.clip(between, -65504, 65504)
    back = np.empty(len(between), np.uint16)
    run(device, program, "to_half", [between], back, len(between) // 8)
    np.testing.assert_array_equal(back, between.astype(np.float16).view(np.uint16))
