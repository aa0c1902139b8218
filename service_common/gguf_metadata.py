"""The key-values of a GGUF file: parsing, and typed access with ranges."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias, overload

import numpy as np
from gguf import GGUFValueType
from numpy.typing import NDArray

from service_common.errors import ModelFileError
from service_common.gguf_format import MAX_ARRAY_ELEMENTS, MAX_KEY_BYTES, SCALAR_DTYPES, Cursor

Value: TypeAlias = int | float | bool | str | list[str] | NDArray[Any]

_U64_MAX = 2**64 - 1


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One key's value, and the bytes [start, end) of the file that hold key and value.

    Text is UTF-8 where the file's is; other bytes are kept as surrogate escapes. An array of numbers or booleans is
    a read-only numpy array, an array of strings a list.
    """

    type: GGUFValueType
    value: Value
    start: int
    end: int

    def shown(self) -> object:
        """The value as an error message shows it."""
        if isinstance(self.value, list | np.ndarray):
            return f"an array of {len(self.value)} values"
        return self.value


def parse_key_values(cursor: Cursor, count: int) -> dict[str, KeyValue]:
    """Read `count` key-values, in file order."""
    key_values: dict[str, KeyValue] = {}
    for index in range(count):
        start = cursor.position
        key = _parse_key(cursor, f"key {index}")
        if key in key_values:
            cursor.fail(f"key {index}", key, "a key may stand only once")
        value_type = _parse_type(cursor, f"type of {key}")
        value = _parse_value(cursor, key, value_type)
        key_values[key] = KeyValue(value_type, value, start, cursor.position)
    return key_values


def _parse_key(cursor: Cursor, field: str) -> str:
    raw = cursor.string(field, maximum=MAX_KEY_BYTES)
    if not raw:
        cursor.fail(field, "empty", "must be 1 to 65535 bytes")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        cursor.fail(field, raw, "must be UTF-8")


def _parse_value(cursor: Cursor, key: str, value_type: GGUFValueType) -> Value:
    if value_type == GGUFValueType.ARRAY:
        return _parse_array(cursor, key)
    if value_type == GGUFValueType.STRING:
        return _text(cursor.string(key))
    scalar: Value = _parse_numbers(cursor, key, value_type, 1)[0].item()
    return scalar


def _parse_array(cursor: Cursor, key: str) -> Value:
    element_type = _parse_type(cursor, f"element type of {key}")
    if element_type == GGUFValueType.ARRAY:
        cursor.fail(f"element type of {key}", "ARRAY", "arrays of arrays are not supported")
    is_text = element_type == GGUFValueType.STRING
    entry_bytes = 8 if is_text else SCALAR_DTYPES[element_type].itemsize
    count = cursor.count(f"length of {key}", entry_bytes=entry_bytes, maximum=MAX_ARRAY_ELEMENTS)
    if is_text:
        return [_text(cursor.string(key)) for _ in range(count)]
    return _parse_numbers(cursor, key, element_type, count)


def _parse_type(cursor: Cursor, field: str) -> GGUFValueType:
    number = cursor.u32(field)
    try:
        return GGUFValueType(number)
    except ValueError:
        cursor.fail(field, number, "must be a value type of the format, 0 to 12")


def _parse_numbers(cursor: Cursor, key: str, value_type: GGUFValueType, count: int) -> NDArray[Any]:
    dtype = SCALAR_DTYPES[value_type]
    numbers: NDArray[Any] = np.frombuffer(cursor.take(count * dtype.itemsize, key), dtype)
    if value_type != GGUFValueType.BOOL:
        return numbers
    if numbers.size and numbers.max() > 1:
        cursor.fail(key, int(numbers.max()), "a boolean is 0 or 1")
    return numbers.view(np.bool_)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


class Metadata:
    """Typed access to a file's key-values. Every failure is a ModelFileError with the key and its limit.

    `name` is the path, or what stands for it: the name that errors carry.
    A getter without `default` requires the key; with one, an absent key gives the default, unchecked.
    """

    def __init__(self, name: str, key_values: Mapping[str, KeyValue]) -> None:
        self.name = name
        self.key_values = key_values

    def __contains__(self, key: str) -> bool:
        """Whether the file has `key`."""
        return key in self.key_values

    def get_int(self, key: str, default: int | None = None, *, minimum: int = 0, maximum: int = _U64_MAX) -> int:
        """An integer of any width, minimum ≤ value ≤ maximum."""
        if default is not None and key not in self:
            return default
        value = self._value(key)
        if isinstance(value, bool) or not isinstance(value, int):
            self.refuse(key, "must be one integer")
        if not minimum <= value <= maximum:
            self.refuse(key, f"must be {minimum} to {maximum}")
        return value

    def get_float(
        self, key: str, default: float | None = None, *, minimum: float = -math.inf, maximum: float = math.inf
    ) -> float:
        """A finite number, minimum ≤ value ≤ maximum; integers are taken too."""
        if default is not None and key not in self:
            return default
        value = self._value(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.refuse(key, "must be one number")
        if not (math.isfinite(value) and minimum <= value <= maximum):
            self.refuse(key, f"must be finite, {minimum:g} to {maximum:g}")
        return float(value)

    def get_bool(self, key: str, default: bool | None = None) -> bool:
        """A boolean."""
        if default is not None and key not in self:
            return default
        value = self._value(key)
        if not isinstance(value, bool):
            self.refuse(key, "must be a boolean")
        return value

    def get_str(self, key: str, default: str | None = None) -> str:
        """Text, valid as UTF-8."""
        if default is not None and key not in self:
            return default
        value = self._value(key)
        if not isinstance(value, str):
            self.refuse(key, "must be a string")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            self.refuse(key, "must be UTF-8")
        return value

    @overload
    def get_array(self, key: str, kind: type[str]) -> list[str]: ...
    @overload
    def get_array(self, key: str, kind: type[int]) -> NDArray[np.int64]: ...
    @overload
    def get_array(self, key: str, kind: type[float]) -> NDArray[np.float64]: ...
    def get_array(self, key: str, kind: type[str] | type[int] | type[float]) -> list[str] | NDArray[Any]:
        """The array under `key`: strings as a list (other bytes than UTF-8 as surrogate escapes), integers of any
        width as int64, floats of any width as float64. Numbers are not checked for NaN."""
        value = self._value(key)
        if kind is str:
            if not isinstance(value, list):
                self.refuse(key, "must be an array of strings")
            return value
        dtype_kinds, dtype, name = ("iu", np.int64, "integers") if kind is int else ("f", np.float64, "floats")
        if not isinstance(value, np.ndarray) or value.dtype.kind not in dtype_kinds:
            self.refuse(key, f"must be an array of {name}")
        if value.dtype == np.uint64 and value.size and int(value.max()) >= 2**63:
            self.refuse(key, "must be an array of integers below 2^63")
        return value.astype(dtype)

    def _value(self, key: str) -> Value:
        if key not in self.key_values:
            raise ModelFileError(self.name, key, "absent", "it is required")
        return self.key_values[key].value

    def refuse(self, key: str, limit: str) -> NoReturn:
        """Raise a ModelFileError that shows `key`, its value and `limit`."""
        raise ModelFileError(self.name, key, self.key_values[key].shown(), limit)
