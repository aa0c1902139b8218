"""Memory for large buffers: pieces of regions that are aligned and apart from each other."""

from __future__ import annotations

import mmap

import numpy as np
import pytest

from engine_service.compute.device import Device
from engine_service.compute.huge_pages import HugePages
from service_common.errors import DeviceError

MIB = 1 << 20


def test_pieces_are_zeroed_aligned_and_apart() -> None:
    """What is written to one piece is in no other, also where a new region begins; each starts at a page."""
    pages = HugePages()
    pieces = [np.frombuffer(pages.take(nbytes), np.uint8) for nbytes in (1, 4097, 40 * MIB, 30 * MIB, 100 * MIB, 5)]
    for value, piece in enumerate(pieces, start=1):
        assert not piece.any()
        piece[:] = value
    assert all((piece == value).all() for value, piece in enumerate(pieces, start=1))
    assert all(piece.ctypes.data % 4096 == 0 for piece in pieces)


def test_a_system_without_huge_pages_gives_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the mapping cannot be advised, it is used as it is."""
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", -1)
    assert len(HugePages().take(MIB)) == MIB


def test_a_large_buffer_is_read_back_as_written(device: Device) -> None:
    """A buffer in a region of its own behaves as any other: writes at an offset, views, reads."""
    array = np.arange(2 * MIB, dtype=np.uint16)
    buffer = device.upload(array, "large")
    device.write(buffer, np.full(3, 7, np.uint16), offset=2 * MIB)
    array[MIB : MIB + 3] = 7
    found = np.empty_like(array)
    device.read(buffer, found)
    assert (found == array).all()


def test_memory_that_cannot_be_had_is_a_device_error(device: Device) -> None:
    """More than the address space holds is refused with the buffer's name, not with a MemoryError or a crash."""
    with pytest.raises(DeviceError, match="buffer=huge"):
        device.empty((1 << 40) - 1, "huge")
