"""Weights from a model file to the device: each tensor is repacked into its layout, piece by piece."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyopencl as cl
from numpy.typing import NDArray

from engine_service.compute.kernel_library import KernelLibrary
from engine_service.compute.quant_layouts import Layout, layout_for, packed_bytes
from engine_service.compute.weight_packer import WeightPacker
from service_common.errors import ModelFileError
from service_common.gguf_reader import GGUFReader

Progress = Callable[[int, int], None]


class Matrix(NamedTuple):
    """A weight matrix (rows, cols) on the device; `y = W @ x` maps cols to rows."""

    buffer: cl.Buffer
    layout: Layout
    rows: int
    cols: int


class Weights:
    """Loads tensors by name, each one once; asking again returns the same buffer (BUG-11).

    `progress(done, total)` is told bytes of the file as they are loaded.
    """

    def __init__(self, library: KernelLibrary, reader: GGUFReader, progress: Progress) -> None:
        self._device, self._reader, self._progress = library.device, reader, progress
        self._packer = WeightPacker(library)
        self._matrices: dict[str, Matrix] = {}
        self._loaded_bytes = 0
        self._total_bytes = sum(tensor.nbytes for tensor in reader.tensors.values())
        self.device_bytes = 0

    def matrix(self, name: str) -> Matrix:
        """The two-dimensional tensor `name`, in the layout of its type."""
        if name not in self._matrices:
            self._matrices[name] = self._load_matrix(name)
        return self._matrices[name]

    def vector(self, name: str) -> cl.Buffer:
        """The one-dimensional tensor `name` as f32."""
        return self._device.upload(self.host_vector(name), name)

    def optional_vector(self, name: str) -> cl.Buffer | None:
        """As `vector`; None where the model has no such tensor."""
        return self.vector(name) if name in self._reader.tensors else None

    def host_vector(self, name: str) -> NDArray[np.float32]:
        """The one-dimensional tensor `name` as f32 on the host. ModelFileError for a quantised type."""
        tensor = self._reader.tensors[name]
        raw = self._reader.tensor_bytes(name).reshape(-1)
        self._advance(tensor.nbytes)
        match tensor.type.name:
            case "F32":
                return raw.view(np.float32).copy()
            case "F16":
                return raw.view(np.float16).astype(np.float32)
            case "BF16":
                return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        raise ModelFileError(self._reader.name, f"type of tensor {name}", tensor.type.name, "must be F32, F16 or BF16")

    def _load_matrix(self, name: str) -> Matrix:
        tensor = self._reader.tensors[name]
        rows, cols = tensor.shape
        layout = layout_for(tensor.type)
        nbytes = packed_bytes(layout, rows, cols)
        buffer = self._device.empty(nbytes, name)
        done_before = self._loaded_bytes
        for num_rows in self._packer.write(buffer, layout, self._reader.tensor_bytes(name), cols):
            self._progress(done_before + num_rows * tensor.row_bytes, self._total_bytes)
        self.device_bytes += nbytes
        self._loaded_bytes += tensor.nbytes
        return Matrix(buffer, layout, rows, cols)

    def _advance(self, nbytes: int) -> None:
        self._loaded_bytes += nbytes
        self._progress(self._loaded_bytes, self._total_bytes)
