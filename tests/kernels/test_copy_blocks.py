"""copy_blocks.cl: whole blocks of K and V, scales included, and no other byte."""

from __future__ import annotations

import numpy as np
import pytest

from engine_service.compute.kernel_library import KernelLibrary
from tests.kernels.kv_pages import DEFINES, unwritten_pages


@pytest.mark.parametrize("kv_cache_type", DEFINES)
@pytest.mark.parametrize(("num_kv_heads", "head_dim", "block_size"), [(1, 8, 8), (3, 12, 24), (2, 64, 32)])
def test_targets_become_their_sources_and_nothing_else_changes(
    library: KernelLibrary, kv_cache_type: str, num_kv_heads: int, head_dim: int, block_size: int
) -> None:
    """Of seven random blocks, three are copied over others, one of them twice: bytes are as numpy has them (KV-13)."""
    copies, rng = np.array([[5, 0], [2, 3], [5, 6]], np.int32), np.random.default_rng(0)
    pages = unwritten_pages(7, num_kv_heads, head_dim, block_size, kv_cache_type)
    for plane in pages:
        plane.view(np.uint8)[:] = rng.integers(0, 256, plane.view(np.uint8).shape, np.uint8)
    sizes: dict[str, int | str] = {"NUM_KV_HEADS": num_kv_heads, "HEAD_DIM": head_dim, "BLOCK_SIZE": block_size}
    kernel = library.kernel("copy_blocks", "copy_blocks", **sizes, **DEFINES[kv_cache_type])
    buffers = [library.device.upload(array, "input") for array in (copies, *pages)]
    kernel.set_args(*buffers)
    library.device.run(kernel, len(copies) * num_kv_heads * 2)
    for plane, buffer in zip(pages, buffers[1:], strict=True):
        copied = np.empty_like(plane)
        library.device.read(buffer, copied)
        plane[copies[:, 1]] = plane[copies[:, 0]]
        assert copied.tobytes() == plane.tobytes()
