"""Runs every portable kernel on ragged shapes and prints what each one gave, hashed: a JSON list of (kernel, hash).

`python -m tests.kernels.oclgrind_program short|full`, under Oclgrind and under another driver alike.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pyopencl as cl
from numpy.typing import NDArray
from structlog.testing import capture_logs

from engine_service.compute.device import Device, list_devices
from engine_service.compute.kernel_library import KernelLibrary
from engine_service.compute.launches import SeparateProgram
from engine_service.compute.model_kernels import ModelKernels, small_model_kernels
from engine_service.compute.quant_layouts import ROWS, pack
from engine_service.compute.self_test import TOLERANCE
from engine_service.compute.self_test_cases import CHUNKS, SelfTestCases
from engine_service.compute.weight_packer import WeightPacker
from tests.engine_service.kernels_builder import ALL_LAYOUTS, dealt_out, in_all_roles, layout_named

Chunks = tuple[tuple[int, int], ...]

_F32, _Q8_0 = layout_named("F32"), layout_named("Q8_0")


class HashingDevice(Device):
    """Hashes all that is read from it. Frees no buffer: Oclgrind takes what is next in its place for uninitialised."""

    def __init__(self, handle: cl.Device) -> None:
        super().__init__(handle)
        self.digest = hashlib.sha256()
        self._buffers: list[cl.Buffer] = []

    def read(self, buffer: cl.Buffer, out: NDArray[Any], offset: int = 0) -> None:
        super().read(buffer, out, offset)
        self.digest.update(out.tobytes())

    def lend(self, array: NDArray[Any]) -> cl.Buffer:
        """A copy: Oclgrind takes the host's memory for uninitialised."""
        return self.upload(array, "lent")

    def empty(self, nbytes: int, name: str) -> cl.Buffer:
        """The sampler reads whole reports but has written of them what was asked for: the rest is made the same."""
        buffer = self.zeros(nbytes, "reports") if name == "sampler.reports" else super().empty(nbytes, name)
        self._buffers.append(buffer)
        return buffer


def repack(device: Device, library: KernelLibrary) -> Iterator[str]:
    """Repacks rows of every layout, the last group of rows being ragged; AssertionError where a kernel is wrong."""
    packer = WeightPacker(library)
    for layout in ALL_LAYOUTS:
        k = 2 * layout.block
        raw = np.random.default_rng(0).integers(0, 256, (ROWS + 3, layout.file_row_bytes(k)), np.uint8)
        expected = pack(layout, raw, k)
        target = device.empty(expected.nbytes, "tiles")
        with capture_logs() as warnings:
            list(packer.write(target, layout, raw, k))
        assert warnings == []
        out = np.empty_like(expected)
        device.read(target, out)
        assert np.array_equal(out, expected), f"repack {layout.name} differs from pack"
        yield f"repack {layout.name}"


def short_cases() -> Iterator[tuple[ModelKernels, Chunks]]:
    """Every source, layout and variant of an operation at least once."""
    yield small_model_kernels(dealt_out(ALL_LAYOUTS)), ((260, 1), (0, 3), (6, 1))
    f32_only = in_all_roles(_F32)
    yield small_model_kernels(f32_only, head_dim=10, rope_style="halves", block_size=24, kv_cache_type="f32"), ((9, 9),)
    yield small_model_kernels(f32_only, head_dim=10, kv_cache_type="int8"), ((9, 9), (0, 1))


def full_cases() -> Iterator[tuple[ModelKernels, Chunks]]:
    """Every variant of every kernel, then shapes of attention and batches around the tiles' sizes."""
    yield from short_cases()
    yield small_model_kernels(in_all_roles(*ALL_LAYOUTS)), CHUNKS
    f32_and_q8_0 = in_all_roles(_F32, _Q8_0)
    for num_tokens in (1, 2, 3, 4, 5, 7, 8, 9, 17):
        yield small_model_kernels(f32_and_q8_0), ((0, num_tokens),)
    heads = ((1, 1, 2), (3, 1, 8), (14, 2, 64), (4, 4, 80), (5, 1, 128))
    caches = ((8, "f16"), (24, "f32"), (256, "f16"), (16, "int8"))
    for (num_heads, num_kv_heads, head_dim), (block_size, kv_cache_type) in product(heads, caches):
        kernels = small_model_kernels(
            in_all_roles(_F32),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            rope_style="halves",
            block_size=block_size,
            kv_cache_type=kv_cache_type,
        )
        yield kernels, ((255, 3), (0, 9), (31, 1), (510, 4))


def main(form: str) -> None:
    """Prints the list; AssertionError where a kernel is wrong."""
    handles = sorted(list_devices(), key=lambda handle: handle.platform.name == "Oclgrind")
    device = HashingDevice(handles[0])  # Oclgrind's where it is the only one, which it is when it runs this program
    program = SeparateProgram(KernelLibrary(device, portable=True))
    hashes = []
    hashes += [(kernel, device.digest.hexdigest()) for kernel in repack(device, program.library)]
    for kernels, chunks in {"short": short_cases, "full": full_cases}[form]():
        for kernel, difference in SelfTestCases(program, kernels, chunks).differences():
            assert difference <= TOLERANCE, f"{kernel} is off by {difference}"
            hashes.append((kernel, device.digest.hexdigest()))
            device.digest = hashlib.sha256()
    print(json.dumps(hashes))


if __name__ == "__main__":
    main(sys.argv[1])
