"""A bounded reader of GGUF files: hostile input gives one ModelFileError, in bounded time and memory.

The gguf library's reader trusts lengths and multiplies them in fixed-width integers, so only its enumerations are
used here.
"""

from __future__ import annotations

import io
import mmap
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
from gguf import GGUFValueType
from numpy.typing import NDArray

from service_common.errors import ModelFileError
from service_common.gguf_format import (
    DEFAULT_ALIGNMENT,
    MAGIC,
    MAX_ALIGNMENT,
    MAX_KEYS,
    MAX_TENSORS,
    MIN_ALIGNMENT,
    SUPPORTED_VERSIONS,
    Cursor,
)
from service_common.gguf_metadata import Metadata, parse_key_values
from service_common.gguf_tensors import TensorInfo, parse_tensors, place_tensors

_MIN_KEY_VALUE_BYTES = 8 + 1 + 4 + 1  # length, one byte of key, type, one byte of value
_MIN_TENSOR_INFO_BYTES = 8 + 1 + 4 + 8 + 4 + 8  # length, one byte of name, n_dims, one dimension, type, offset
_KINDS = {
    stat.S_IFDIR: "folder",
    stat.S_IFIFO: "FIFO",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFSOCK: "socket",
}


class GGUFReader(Metadata):
    """An open GGUF file, version 2 or 3, little-endian: key-values by the getters of `Metadata`, and tensors.

    Attributes:
        name: the path, or the name given with bytes; what errors carry.
        tensors: every tensor by name, in file order.

    Key-values are read at once; tensor data stays in the file, mapped, until it is asked for. The reader owns a
    file descriptor: close it, or use it as a context manager.
    """

    tensors: Mapping[str, TensorInfo]

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open and check `path`. Only regular files: a FIFO, device or folder is refused without being opened."""
        file = str(path)
        stream = _open_regular(file)
        try:
            size = os.fstat(stream.fileno()).st_size
            self._parse(stream, size, file)
            self._data = _map(stream, size, file) if self.tensors else b""
        except OSError as error:
            stream.close()
            raise _unreadable(file, error) from error
        except BaseException:
            stream.close()
            raise

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> Self:
        """The same reader over bytes in memory; `name` stands for the file in errors."""
        reader = cls.__new__(cls)
        reader._parse(io.BytesIO(data), len(data), name)
        reader._data = data
        return reader

    def _parse(self, stream: BinaryIO, size: int, file: str) -> None:
        cursor = Cursor(stream, size, file)
        num_tensors, num_keys = _parse_header(cursor)
        super().__init__(file, parse_key_values(cursor, num_keys))
        alignment = self._alignment()
        tensors = parse_tensors(cursor, num_tensors)
        self.tensors = place_tensors(cursor, tensors, alignment=alignment, file_bytes=size)
        self._stream = stream

    def _alignment(self) -> int:
        key = "general.alignment"
        alignment = self.get_int(key, DEFAULT_ALIGNMENT, minimum=MIN_ALIGNMENT, maximum=MAX_ALIGNMENT)
        if key in self and self.key_values[key].type != GGUFValueType.UINT32:
            self.refuse(key, "must be of type UINT32")
        if alignment & (alignment - 1):
            self.refuse(key, "must be a power of two")
        return alignment

    def tensor_bytes(self, name: str) -> NDArray[np.uint8]:
        """The tensor's bytes as they are in the file: uint8, (rows, row_bytes), a read-only view.

        The view stays valid after close(). A file that shrank since it was opened is a ModelFileError here; one
        that shrinks while the view is read ends the process with SIGBUS, as with any mapped file.
        """
        if self._stream.closed:
            raise ValueError(f"{self.name}: tensor_bytes({name!r}) on a closed reader")
        if name not in self.tensors:
            raise ModelFileError(self.name, name, "absent", "the tensor is required")
        info = self.tensors[name]
        if isinstance(self._data, mmap.mmap):
            size = os.fstat(self._stream.fileno()).st_size
            if size < info.offset + info.nbytes:
                limit = f"{name} ends at byte {info.offset + info.nbytes}: the file shrank after it was opened"
                raise ModelFileError(self.name, "size", size, limit)
        view = np.frombuffer(self._data, np.uint8, info.nbytes, info.offset)
        return view.reshape(info.rows, info.row_bytes)

    def key_value_bytes(self, key: str) -> bytes:
        """The bytes that hold `key`, its type and its value in the file."""
        extent = self.key_values[key]
        self._stream.seek(extent.start)
        data = self._stream.read(extent.end - extent.start)
        if len(data) != extent.end - extent.start:
            limit = f"{key} ends at byte {extent.end}: the file shrank after it was opened"
            raise ModelFileError(self.name, "size", extent.start + len(data), limit)
        return data

    def close(self) -> None:
        """Close the file. Views of tensors stay valid and hold the mapping until they are gone. Idempotent."""
        self._data = b""
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _parse_header(cursor: Cursor) -> tuple[int, int]:
    """Check magic and version; returns the numbers of tensors and of key-values."""
    magic = cursor.take(len(MAGIC), "magic")
    if magic != MAGIC:
        cursor.fail("magic", magic, f"must be {MAGIC!r}; this is not a GGUF file")
    version = cursor.u32("version")
    if version & 0xFFFF == 0 and version:
        cursor.fail("version", f"0x{version:08x}", "this is a big-endian file; only little-endian ones are supported")
    if version not in SUPPORTED_VERSIONS:
        cursor.fail("version", version, "must be 2 or 3")
    num_tensors = cursor.count("tensor_count", entry_bytes=_MIN_TENSOR_INFO_BYTES, maximum=MAX_TENSORS)
    num_keys = cursor.count("metadata_kv_count", entry_bytes=_MIN_KEY_VALUE_BYTES, maximum=MAX_KEYS)
    return num_tensors, num_keys


def _open_regular(file: str) -> BinaryIO:
    try:
        # Asked before opening, since opening a device can have effects. O_NONBLOCK and the second question are for a
        # path that changes in between.
        _require_regular(file, Path(file).stat().st_mode)
        stream = os.fdopen(os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb", buffering=1 << 16)
    except (OSError, ValueError) as error:
        raise _unreadable(file, error) from error
    try:
        _require_regular(file, os.fstat(stream.fileno()).st_mode)
    except BaseException:
        stream.close()
        raise
    return stream


def _map(stream: BinaryIO, size: int, file: str) -> mmap.mmap:
    try:
        return mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_READ)
    except ValueError as error:
        now = os.fstat(stream.fileno()).st_size
        raise ModelFileError(file, "size", now, f"the file shrank from {size} bytes while it was read") from error


def _require_regular(file: str, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise ModelFileError(
            file, "path", f"a {_KINDS.get(stat.S_IFMT(mode), 'special file')}", "must be a regular file"
        )


def _unreadable(file: str, error: OSError | ValueError) -> ModelFileError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return ModelFileError(file, "path", reason, "must be a readable file")
