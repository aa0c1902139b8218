"""How file rows get to the device: in pieces, by a kernel that is tried before, or without it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from engine_service.compute import kernel_library, kernel_sources
from engine_service.compute.device import Device
from engine_service.compute.kernel_library import KernelLibrary
from engine_service.compute.quant_layouts import Layout, pack, packed_bytes
from engine_service.compute.weight_packer import WeightPacker
from tests.engine_service.kernels_builder import layout_named
from tests.engine_service.matrix_data import Bytes, file_rows


def written(library: KernelLibrary, layout: Layout, raw: Bytes, k: int) -> tuple[Bytes, list[int]]:
    """What the device has after a write, and the numbers of rows that were told."""
    device = library.device
    target = device.empty(packed_bytes(layout, len(raw), k), "target")
    told = list(WeightPacker(library).write(target, layout, raw, k))
    out = np.empty(target.size, np.uint8)
    device.read(target, out)
    return out, told


@pytest.mark.parametrize("name", ["F32", "Q6_K"])
def test_pieces_are_bounded_and_join_without_gaps(device: Device, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """No more than four megabytes of the file are lent at once, and the pieces make the whole matrix."""
    layout, lent = layout_named(name), list[int]()
    lend = Device.lend

    def noting(self: Device, array: Bytes) -> Any:
        lent.append(array.nbytes)
        return lend(self, array)

    monkeypatch.setattr(Device, "lend", noting)
    raw = file_rows(layout.tensor_type, 6003, 1024)
    out, told = written(KernelLibrary(device), layout, raw, 1024)
    assert len(told) > 2
    assert told == sorted(set(told))
    assert told[-1] == 6003
    assert max(lent) <= 4 << 20
    np.testing.assert_array_equal(out, pack(layout, raw, 1024))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("^ 0x80808080", "", "WRONG_RESULT"),
        ("first_group + group", "group", "WRONG_RESULT"),
        ("__kernel void repack(", "__kernel void repack(no_such_type x, ", "no_such_type"),
    ],
)
def test_a_kernel_that_fails_gives_way_to_numpy(
    device: Device, monkeypatch: pytest.MonkeyPatch, old: str, new: str, reason: str
) -> None:
    """One that is wrong, or that the compiler refuses, costs a warning with the reason; the bytes are the same."""
    text = kernel_sources.operation_text("repack")
    assert old in text
    monkeypatch.setattr(kernel_library, "operation_text", lambda _: text.replace(old, new))
    layout = layout_named("Q8_0")
    raw = file_rows(layout.tensor_type, 13, 64)
    with capture_logs() as logs:
        out, _ = written(KernelLibrary(device), layout, raw, 64)
    (warning,) = logs
    assert (warning["log_level"], warning["layout"]) == ("warning", "Q8_0")
    assert reason in warning["reason"]
    np.testing.assert_array_equal(out, pack(layout, raw, 64))
