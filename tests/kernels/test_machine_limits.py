"""machine_limits.cl: the kernels that find the machine's limits really do the work that is counted."""

from __future__ import annotations

import numpy as np
import pytest

from engine_service.compute.kernel_library import KernelLibrary


@pytest.mark.parametrize("num_items", [1, 3, 8])
def test_copy_copies_every_vector_and_no_more(library: KernelLibrary, num_items: int) -> None:
    """However many items share it, all is copied up to the given length, and what lies behind stays as it was."""
    source = np.random.default_rng(0).standard_normal((100, 8)).astype(np.float32)
    kernel, copied = library.kernel("machine_limits", "copy"), np.empty_like(source)
    buffers = library.device.upload(source, "source"), library.device.zeros(source.nbytes, "target")
    kernel.set_args(*buffers, np.int32(97))
    library.device.run(kernel, num_items)
    library.device.read(buffers[1], copied)
    assert (copied[:97] == source[:97]).all()
    assert not copied[97:].any()


def test_multiply_add_does_every_round(library: KernelLibrary) -> None:
    """Each of 12 chains of 8 lanes is s = s × x + y as often as it was told: exact in powers of two."""
    kernel, sums = library.kernel("machine_limits", "multiply_add"), np.zeros(3, np.float32)
    buffer = library.device.upload(sums, "sums")
    kernel.set_args(buffer, np.int32(5), np.float32(2.0), np.float32(1.0))
    library.device.run(kernel, len(sums))
    library.device.read(buffer, sums)
    starts = np.arange(12) + 2
    assert (sums == 8 * (starts * 2**5 + 2**5 - 1).sum()).all()
