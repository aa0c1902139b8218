"""The tensor table of a GGUF file: what each tensor is and where its bytes lie."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from service_common.gguf_format import MAX_DIMS, MAX_TENSOR_NAME_BYTES, REMOVED_TENSOR_TYPES, Cursor


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a file.

    `shape` is in numpy order, (rows, ..., cols) with the contiguous dimension last. `offset` counts from the
    beginning of the file; the tensor's bytes are [offset, offset + nbytes), row after row.
    """

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    offset: int

    @property
    def num_elements(self) -> int:
        """How many weights the tensor holds."""
        return math.prod(self.shape)

    @property
    def rows(self) -> int:
        """The number of rows: the product of all dimensions but the last."""
        return math.prod(self.shape[:-1])

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        block_elements, block_bytes = GGML_QUANT_SIZES[self.type]
        return int(self.shape[-1] // block_elements * block_bytes)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor, without padding."""
        return self.rows * self.row_bytes


def parse_tensors(cursor: Cursor, count: int) -> dict[str, TensorInfo]:
    """Read `count` tensor infos, in file order. Their offsets count from the data section, as in the file."""
    tensors: dict[str, TensorInfo] = {}
    for index in range(count):
        name = _parse_name(cursor, f"name of tensor {index}")
        if name in tensors:
            cursor.fail(f"name of tensor {index}", name, "a tensor name may stand only once")
        tensors[name] = _parse_info(cursor, name)
    return tensors


def place_tensors(
    cursor: Cursor, tensors: dict[str, TensorInfo], *, alignment: int, file_bytes: int
) -> dict[str, TensorInfo]:
    """The same tensors with offsets from the beginning of the file, checked: aligned, inside the file, disjoint.

    The data section begins at the first multiple of `alignment` at or after the cursor.
    """
    data_start = -(-cursor.position // alignment) * alignment
    placed: dict[str, TensorInfo] = {}
    for info in tensors.values():
        if info.offset % alignment:
            cursor.fail(f"offset of {info.name}", info.offset, f"must be a multiple of the alignment, {alignment}")
        absolute = replace(info, offset=data_start + info.offset)
        if absolute.offset + absolute.nbytes > file_bytes:
            limit = f"its {info.nbytes} bytes from byte {absolute.offset} on pass the file's end at {file_bytes}"
            cursor.fail(f"offset of {info.name}", info.offset, limit)
        placed[info.name] = absolute
    for first, second in pairwise(sorted(placed.values(), key=lambda info: info.offset)):
        if first.offset + first.nbytes > second.offset:
            limit = f"it overlaps {first.name}, which ends at byte {first.offset + first.nbytes}"
            cursor.fail(f"offset of {second.name}", f"byte {second.offset} of the file", limit)
    return placed


def _parse_name(cursor: Cursor, field: str) -> str:
    raw = cursor.string(field, maximum=MAX_TENSOR_NAME_BYTES)
    if not raw or b"\0" in raw:
        cursor.fail(field, raw, "must not be empty and must not hold NUL")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        cursor.fail(field, raw, "must be UTF-8")


def _parse_info(cursor: Cursor, name: str) -> TensorInfo:
    num_dims = cursor.u32(f"n_dims of {name}")
    if not 1 <= num_dims <= MAX_DIMS:
        cursor.fail(f"n_dims of {name}", num_dims, f"must be 1 to {MAX_DIMS}")
    dims = tuple(cursor.u64(f"dimension {axis} of {name}") for axis in range(num_dims))
    # Each below 2^63, so that signed readers agree; their product needs no bound here, Python integers do not wrap.
    for axis, size in enumerate(dims):
        if not 1 <= size < 2**63:
            cursor.fail(f"dimension {axis} of {name}", size, "must be 1 to 2^63 - 1")
    tensor_type = _parse_type(cursor, f"type of {name}")
    block_elements, _ = GGML_QUANT_SIZES[tensor_type]
    if dims[0] % block_elements:
        limit = f"a row of {tensor_type.name} must be a multiple of {block_elements}"
        cursor.fail(f"dimension 0 of {name}", dims[0], limit)
    return TensorInfo(name, dims[::-1], tensor_type, cursor.u64(f"offset of {name}"))


def _parse_type(cursor: Cursor, field: str) -> GGMLQuantizationType:
    number = cursor.u32(field)
    if number in REMOVED_TENSOR_TYPES:
        removed = f"{REMOVED_TENSOR_TYPES[number]} ({number})"
        cursor.fail(field, removed, "this type was removed from the format; convert the model again")
    try:
        return GGMLQuantizationType(number)
    except ValueError:
        cursor.fail(field, number, "not a tensor type of the format")
