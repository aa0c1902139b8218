"""Weights on the device: each tensor once, in the layout that is documented, with progress."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from engine_service.compute.device import Device
from engine_service.compute.kernel_library import KernelLibrary
from engine_service.compute.quant_layouts import layout_for, pack, packed_bytes
from engine_service.compute.weights import Weights
from service_common.gguf_reader import GGUFReader
from tests.gguf_builder import tiny_llama


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    tiny_llama(path, seed=2, tensor_type=GGMLQuantizationType.Q8_0, tied=True)
    return path


def test_a_tensor_is_held_once_however_often_it_is_asked_for(device: Device, model: Path) -> None:
    """Tied embeddings serve as input and output from the same buffer (BUG-11)."""
    with GGUFReader(model) as reader:
        weights = Weights(KernelLibrary(device), reader, lambda done, total: None)
        weights.matrix("blk.0.ffn_up.weight")  # of the same type, whose kernel is tried first
        before = device.allocated_bytes
        first = weights.matrix("token_embd.weight")
        once = device.allocated_bytes - before
        assert weights.matrix("token_embd.weight") is first
        assert device.allocated_bytes - before == once == packed_bytes(first.layout, first.rows, first.cols)


def test_the_device_holds_the_documented_layout(device: Device, model: Path) -> None:
    """What is uploaded piece by piece is the whole tensor as `pack` lays it out (MODEL-6)."""
    with GGUFReader(model) as reader:
        matrix = Weights(KernelLibrary(device), reader, lambda done, total: None).matrix("blk.0.ffn_up.weight")
        raw, info = reader.tensor_bytes("blk.0.ffn_up.weight"), reader.tensors["blk.0.ffn_up.weight"]
        out = np.empty(matrix.buffer.size, np.uint8)
        device.read(matrix.buffer, out)
        assert (out == pack(layout_for(info.type), raw, matrix.cols)).all()


def test_progress_ends_at_the_whole_file(device: Device, model: Path) -> None:
    """Figures only grow, and the last one says that all tensors are there."""
    told: list[tuple[int, int]] = []
    with GGUFReader(model) as reader:
        weights = Weights(KernelLibrary(device), reader, lambda done, total: told.append((done, total)))
        for name, info in reader.tensors.items():
            weights.matrix(name) if len(info.shape) == 2 else weights.vector(name)
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1]
    assert weights.device_bytes > 0
