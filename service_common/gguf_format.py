"""The GGUF container format: its constants, and a cursor that never reads past what is there.

Source: docs/gguf.md of the ggml project. Version 3 is described there; version 2 has the same layout.
"""

from __future__ import annotations

import struct
from typing import Any, BinaryIO, NoReturn

import numpy as np
from gguf import GGUFValueType

from service_common.errors import ModelFileError

MAGIC = b"GGUF"
SUPPORTED_VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MIN_ALIGNMENT, MAX_ALIGNMENT = 8, 1 << 20
MAX_KEY_BYTES = 65535
MAX_TENSOR_NAME_BYTES = 64
MAX_DIMS = 4

# The format sets no limit on these. Ours keep time and memory bounded where the file's size does not: a sparse file
# can claim a terabyte. The largest vocabularies in use (256,000 tokens with merges) take about 20 MB.
MAX_METADATA_BYTES = 128 << 20
MAX_ARRAY_ELEMENTS = 1 << 22
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 16

SCALAR_DTYPES: dict[GGUFValueType, np.dtype[Any]] = {
    GGUFValueType.UINT8: np.dtype("<u1"),
    GGUFValueType.INT8: np.dtype("<i1"),
    GGUFValueType.UINT16: np.dtype("<u2"),
    GGUFValueType.INT16: np.dtype("<i2"),
    GGUFValueType.UINT32: np.dtype("<u4"),
    GGUFValueType.INT32: np.dtype("<i4"),
    GGUFValueType.UINT64: np.dtype("<u8"),
    GGUFValueType.INT64: np.dtype("<i8"),
    GGUFValueType.FLOAT32: np.dtype("<f4"),
    GGUFValueType.FLOAT64: np.dtype("<f8"),
    GGUFValueType.BOOL: np.dtype("<u1"),
}

# Types whose numbers were taken out of the format, by ggml.h.
REMOVED_TENSOR_TYPES = {
    4: "Q4_2",
    5: "Q4_3",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class Cursor:
    """Reads the part of a file before the tensor data, front to back.

    Every length is compared with what is left before anything is read or allocated, and each failure is a
    ModelFileError that names `file` and the field being read.
    """

    def __init__(self, stream: BinaryIO, size: int, file: str) -> None:
        """`stream` stands at its beginning and holds `size` bytes."""
        self._stream, self._size, self.file = stream, size, file
        self._end = min(size, MAX_METADATA_BYTES)
        self.position = 0

    def fail(self, field: str, value: object, limit: str) -> NoReturn:
        """Raise a ModelFileError about this file."""
        raise ModelFileError(self.file, field, value, limit)

    def require(self, nbytes: int, field: str, value: object) -> None:
        """Fail, showing `value`, unless `nbytes` more bytes are there to be read."""
        left = self._end - self.position
        if nbytes > left:
            end = "the file" if self._end == self._size else f"the {MAX_METADATA_BYTES} bytes that metadata may take"
            self.fail(field, value, f"it needs {nbytes} bytes and {left} are left of {end}")

    def take(self, nbytes: int, field: str) -> bytes:
        """The next `nbytes` bytes."""
        if nbytes > self._end - self.position:
            self.require(nbytes, field, f"cut off at byte {self._end}")
        data = self._stream.read(nbytes)
        if len(data) != nbytes:
            self.fail("size", self.position + len(data), f"the file shrank from {self._size} bytes while it was read")
        self.position += nbytes
        return data

    def u32(self, field: str) -> int:
        """The next unsigned 32-bit integer."""
        return int(_U32.unpack(self.take(4, field))[0])

    def u64(self, field: str) -> int:
        """The next unsigned 64-bit integer."""
        return int(_U64.unpack(self.take(8, field))[0])

    def count(self, field: str, *, entry_bytes: int, maximum: int) -> int:
        """A number of entries of at least `entry_bytes` each, of which at most `maximum` are allowed."""
        count = self.u64(field)
        self.require(count * entry_bytes, field, count)
        if count > maximum:
            self.fail(field, count, f"at most {maximum}")
        return count

    def string(self, field: str, *, maximum: int = MAX_METADATA_BYTES) -> bytes:
        """A string: its length in bytes, then that many bytes."""
        nbytes = self.u64(field)
        if nbytes > maximum:
            self.fail(f"length of {field}", nbytes, f"at most {maximum} bytes")
        if nbytes > self._end - self.position:
            self.require(nbytes, f"length of {field}", nbytes)
        return self.take(nbytes, field)
