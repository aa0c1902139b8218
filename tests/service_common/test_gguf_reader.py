"""Hostile GGUF files are refused in one clear error; sound ones are read exactly."""

from __future__ import annotations

import os
import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFValueType

from service_common.errors import ModelFileError
from service_common.gguf_reader import GGUFReader
from tests.gguf_builder import (
    array_value,
    file_bytes,
    key_value,
    string,
    tensor_info,
    text_value,
    tiny_llama,
    u32,
    u32_value,
    u64,
)

F32, Q8_0 = GGMLQuantizationType.F32, GGMLQuantizationType.Q8_0
MAX_SECONDS, MAX_PEAK_BYTES = 2.0, 8 << 20


def refused(data: bytes) -> ModelFileError:
    """The error that `data` gives, after a check that it was given in bounded time and memory."""
    tracemalloc.start()
    start = time.monotonic()
    try:
        with pytest.raises(ModelFileError) as caught:
            GGUFReader.from_bytes(data, "hostile.gguf")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.monotonic() - start < MAX_SECONDS
    assert peak < MAX_PEAK_BYTES
    assert str(caught.value).startswith("hostile.gguf: ")
    return caught.value


def header(num_tensors: int, num_keys: int) -> bytes:
    """A 30-byte file that claims these counts."""
    return file_bytes(num_tensors=num_tensors, num_keys=num_keys) + bytes(6)


BAD_HEADERS = {
    "empty": (b"", "magic", "needs 4 bytes and 0 are left"),
    "magic only": (b"GGUF", "version", "needs 4 bytes and 0 are left"),
    "wrong magic": (file_bytes(magic=b"GGML"), "magic", "not a GGUF file"),
    "version 0": (file_bytes(version=0), "version", "must be 2 or 3"),
    "version 1": (file_bytes(version=1), "version", "must be 2 or 3"),
    "version 4": (file_bytes(version=4), "version", "must be 2 or 3"),
    "version byte-swapped": (file_bytes(version=3 << 24), "version", "big-endian"),
    "tensor count -1": (header(-1, 0), "tensor_count", "are left of the file"),
    "tensor count 2^32": (header(2**32, 0), "tensor_count", "are left of the file"),
    "tensor count that wraps times 33": (header(2**64 // 33 + 1, 0), "tensor_count", "are left of the file"),
    "key count -1": (header(0, -1), "metadata_kv_count", "are left of the file"),
    "key count 2^32": (header(0, 2**32), "metadata_kv_count", "are left of the file"),
    "key count one too many": (file_bytes([u32_value("a", 1)], num_keys=2), "metadata_kv_count", "are left"),
}


@pytest.mark.parametrize(("data", "field", "limit"), BAD_HEADERS.values(), ids=BAD_HEADERS.keys())
def test_a_bad_header_is_refused(data: bytes, field: str, limit: str) -> None:
    """Wrong magic, versions and counts are refused by field (GGUF-3)."""
    error = refused(data)
    assert error.field == field
    assert limit in error.limit


def one_key(entry: bytes) -> bytes:
    """A 160-byte file of one key-value and zeros."""
    data = file_bytes([entry])
    return data + bytes(max(0, 160 - len(data)))


def array_of(element_type: int, count: int) -> bytes:
    """A 160-byte file whose key `a` is an array that claims `count` elements."""
    return one_key(array_value("a", element_type, count))


UINT8, UINT64, ARRAY = GGUFValueType.UINT8, GGUFValueType.UINT64, GGUFValueType.ARRAY
STRING, BOOL = GGUFValueType.STRING, GGUFValueType.BOOL

BAD_KEYS = {
    "key length 2^63": (one_key(string("a", length=2**63)), "length of key 0", "at most 65535"),
    "key length 2^64-1": (one_key(string("a", length=-1)), "length of key 0", "at most 65535"),
    "key of 64 KiB": (file_bytes([u32_value("k" * 65536, 1)]), "length of key 0", "at most 65535"),
    "empty key": (one_key(u32_value("", 1)), "key 0", "1 to 65535 bytes"),
    "duplicate key": (file_bytes([u32_value("a", 1)] * 2), "key 1", "only once"),
    "key of other bytes than UTF-8": (one_key(key_value(b"\xff\xfe", 4, u32(1))), "key 0", "UTF-8"),
    "key of an encoded surrogate": (one_key(key_value(b"\xed\xa0\x80", 4, u32(1))), "key 0", "UTF-8"),
    "string length 2^63": (one_key(key_value("a", STRING, u64(2**63))), "length of a", "at most"),
    "string length 2^64-1": (one_key(key_value("a", STRING, u64(-1))), "length of a", "at most"),
    "string of 1 GiB": (one_key(key_value("a", STRING, u64(2**30))), "length of a", "at most"),
    "string one byte too long": (file_bytes([key_value("a", STRING, string("abc", length=4))]), "length of a", "left"),
    "value type 13": (one_key(key_value("a", 13, bytes(8))), "type of a", "0 to 12"),
    "value type 2^32-1": (one_key(key_value("a", -1, bytes(8))), "type of a", "0 to 12"),
    "element type 13": (array_of(13, 1), "element type of a", "0 to 12"),
    "array of arrays": (array_of(ARRAY, 1), "element type of a", "arrays of arrays"),
    "array that wraps": (array_of(UINT64, 2**61 + 1), "length of a", "are left"),
    "array past the end": (array_of(UINT8, 161), "length of a", "are left"),
    "array of 2^64-1 strings": (array_of(STRING, -1), "length of a", "are left"),
    "string array past the end": (
        file_bytes([array_value("a", STRING, 2, string("ok") + string("no", length=99))]),
        "length of a",
        "are left",
    ),
    "boolean 2": (one_key(key_value("a", BOOL, b"\2")), "a", "0 or 1"),
    "boolean 2 in an array": (one_key(array_value("a", BOOL, 3, b"\1\0\2")), "a", "0 or 1"),
    "alignment 0": (one_key(u32_value("general.alignment", 0)), "general.alignment", "must be 8 to"),
    "alignment 4": (one_key(u32_value("general.alignment", 4)), "general.alignment", "must be 8 to"),
    "alignment 13": (one_key(u32_value("general.alignment", 13)), "general.alignment", "power of two"),
    "alignment 2^31": (one_key(u32_value("general.alignment", 2**31)), "general.alignment", "must be 8 to"),
    "alignment as a string": (one_key(text_value("general.alignment", "32")), "general.alignment", "integer"),
    "alignment of 64 bits": (
        one_key(key_value("general.alignment", UINT64, u64(32))),
        "general.alignment",
        "type UINT32",
    ),
}


@pytest.mark.parametrize(("data", "field", "limit"), BAD_KEYS.values(), ids=BAD_KEYS.keys())
def test_a_bad_key_value_is_refused(data: bytes, field: str, limit: str) -> None:
    """Hostile lengths, types and values of keys are refused by field."""
    error = refused(data)
    assert error.field == field
    assert limit in error.limit


def tensors(*infos: bytes, data: bytes = bytes(64), num_tensors: int | None = None) -> bytes:
    """A file of these tensor infos, padding and `data`."""
    return file_bytes([], infos, data, num_tensors=num_tensors)


BAD_TENSORS = {
    "n_dims 0": (tensors(tensor_info(num_dims=0)), "n_dims of t", "1 to 4"),
    "n_dims 5": (tensors(tensor_info(dims=(1,) * 5)), "n_dims of t", "1 to 4"),
    "n_dims 2^32-1": (tensors(tensor_info(num_dims=-1)), "n_dims of t", "1 to 4"),
    "dimension 0": (tensors(tensor_info(dims=(0,))), "dimension 0 of t", "1 to 2^63"),
    "second dimension 0": (tensors(tensor_info(dims=(4, 0))), "dimension 1 of t", "1 to 2^63"),
    "dimension -1": (tensors(tensor_info(dims=(-1,))), "dimension 0 of t", "1 to 2^63"),
    "product that overflows": (tensors(tensor_info(dims=(2**62, 2**62, 2**62))), "offset of t", "pass the file's end"),
    "product that wraps to 1": (
        tensors(tensor_info(dims=(274177, 67280421310721))),
        "offset of t",
        "pass the file's end",
    ),
    "product that wraps to 0": (tensors(tensor_info(dims=(2**32, 2**32))), "offset of t", "pass the file's end"),
    "row of part of a block": (tensors(tensor_info(dims=(33,), tensor_type=Q8_0)), "dimension 0 of t", "of 32"),
    "matrix whose rows are part of a block": (
        tensors(tensor_info(dims=(16, 2), tensor_type=Q8_0)),
        "dimension 0 of t",
        "of 32",
    ),
    "unknown type": (tensors(tensor_info(tensor_type=999)), "type of t", "not a tensor type"),
    "type 2^32-1": (tensors(tensor_info(tensor_type=-1)), "type of t", "not a tensor type"),
    "removed type Q4_2": (tensors(tensor_info(tensor_type=4)), "type of t", "removed"),
    "removed type Q4_0_8_8": (tensors(tensor_info(tensor_type=33)), "type of t", "removed"),
    "name of 65 bytes": (tensors(tensor_info("n" * 65)), "length of name of tensor 0", "at most 64"),
    "name length 2^64-1": (tensors(string("t", length=-1), bytes(64)), "length of name of tensor 0", "at most 64"),
    "empty name": (tensors(tensor_info("")), "name of tensor 0", "not be empty"),
    "duplicate name": (tensors(tensor_info(), tensor_info(offset=32)), "name of tensor 1", "only once"),
    "NUL in a name": (tensors(tensor_info("a\0b")), "name of tensor 0", "NUL"),
    "name of other bytes than UTF-8": (tensors(tensor_info(b"\xff")), "name of tensor 0", "UTF-8"),
    "offset unaligned": (tensors(tensor_info(offset=16)), "offset of t", "multiple of the alignment, 32"),
    "offset past the end": (tensors(tensor_info(offset=64)), "offset of t", "pass the file's end"),
    "end one byte past the end": (tensors(tensor_info(dims=(65,), tensor_type=24)), "offset of t", "pass the file's"),
    "offset that wraps": (tensors(tensor_info(offset=2**64 - 32)), "offset of t", "pass the file's end"),
    "overlap": (tensors(tensor_info("a", (16,)), tensor_info("b", (4,), offset=32)), "offset of b", "overlaps a"),
    "same place": (tensors(tensor_info("a"), tensor_info("b")), "offset of b", "overlaps a"),
    "padding past the end": (file_bytes([], [tensor_info()], alignment=1), "offset of t", "pass the file's end"),
    "one info missing": (tensors(tensor_info(), num_tensors=2), "name of tensor 1", "not be empty"),
    "data missing": (tensors(tensor_info(), data=b""), "offset of t", "pass the file's end"),
    "data one byte short": (tensors(tensor_info(), data=bytes(15)), "offset of t", "pass the file's end"),
}


@pytest.mark.parametrize(("data", "field", "limit"), BAD_TENSORS.values(), ids=BAD_TENSORS.keys())
def test_a_bad_tensor_is_refused(data: bytes, field: str, limit: str) -> None:
    """Hostile shapes, types, names and offsets of tensors are refused by field (GGUF-3, GGUF-6)."""
    error = refused(data)
    assert error.field == field
    assert limit in error.limit


def test_the_largest_allowed_sizes_are_read() -> None:
    """A key of 65535 bytes, a tensor name of 64 bytes and four dimensions are within the limits."""
    entries = [u32_value("k" * 65535, 7)]
    data = file_bytes(entries, [tensor_info("n" * 64, (2, 1, 3, 1))], bytes(24))
    reader = GGUFReader.from_bytes(data, "largest.gguf")
    assert reader.get_int("k" * 65535) == 7
    assert reader.tensors["n" * 64].shape == (1, 3, 1, 2)
    assert reader.tensor_bytes("n" * 64).shape == (3, 8)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small valid model."""
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    tiny_llama(path, seed=1)
    return path


@pytest.fixture
def own_model(tmp_path: Path) -> Path:
    """A small valid model that the test may change."""
    path = tmp_path / "tiny.gguf"
    tiny_llama(path, seed=2)
    return path


def test_a_file_cut_anywhere_is_refused(model_path: Path) -> None:
    """A good file cut at any offset of its header and its first 4 KB of data, or by one byte, is refused."""
    data = model_path.read_bytes()
    with GGUFReader(model_path) as reader:
        data_start = min(info.offset for info in reader.tensors.values())
    for length in [*range(data_start + 4096), len(data) - 1]:
        with pytest.raises(ModelFileError):
            GGUFReader.from_bytes(data[:length], "cut.gguf")


def test_a_file_with_changed_bytes_is_read_or_refused(model_path: Path) -> None:
    """Random damage to the header gives a ModelFileError or a readable file, and no other exception."""
    good = model_path.read_bytes()
    rng = np.random.default_rng(5)
    outcomes = set()
    for _ in range(2000):
        data = bytearray(good)
        for position in rng.integers(0, 2000, size=rng.integers(1, 8)):
            data[position] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, int(rng.integers(256))])
        try:
            reader = GGUFReader.from_bytes(bytes(data), "damaged.gguf")
        except ModelFileError:
            outcomes.add("refused")
        else:
            outcomes.add("read")
            assert all(reader.tensor_bytes(name).nbytes == info.nbytes for name, info in reader.tensors.items())
    assert outcomes == {"refused", "read"}


@pytest.mark.parametrize("kind", ["folder", "FIFO", "character device"])
def test_only_regular_files_are_opened(kind: str, tmp_path: Path) -> None:
    """A folder, a FIFO without a writer and a device are refused at once, by what they are."""
    path = tmp_path / "special"
    if kind == "folder":
        path.mkdir()
    elif kind == "FIFO":
        os.mkfifo(path)
    else:
        path = Path("/dev/zero")
    with pytest.raises(ModelFileError, match=f"path is a {kind}; must be a regular file"):
        GGUFReader(path)


def test_a_path_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    """An absent file and a path that no file can have give a ModelFileError with the reason."""
    with pytest.raises(ModelFileError, match="No such file"):
        GGUFReader(tmp_path / "absent.gguf")
    with pytest.raises(ModelFileError, match="null byte"):
        GGUFReader("a\0b")


SPARSE_STARTS = {
    "zeros": (b"", "magic"),
    "strings": (file_bytes([array_value("a", STRING, 2**33)]), "length of a"),
    "numbers": (file_bytes([array_value("a", UINT8, 2**33)]), "length of a"),
    "one string": (file_bytes([key_value("a", STRING, u64(2**33))]), "length of a"),
    "keys": (file_bytes(num_keys=2**33), "metadata_kv_count"),
    "more keys than allowed": (file_bytes(num_keys=2**20), "metadata_kv_count"),
    "tensors": (file_bytes(num_tensors=2**33), "tensor_count"),
}


@pytest.mark.parametrize(("start", "field"), SPARSE_STARTS.values(), ids=SPARSE_STARTS.keys())
def test_a_sparse_terabyte_is_refused_in_bounded_time(start: bytes, field: str, tmp_path: Path) -> None:
    """Counts that a 1 TB file has room for are held to the limits of metadata, not of the file."""
    path = tmp_path / "sparse.gguf"
    path.write_bytes(start)
    os.truncate(path, 2**40)
    began = time.monotonic()
    with pytest.raises(ModelFileError) as caught:
        GGUFReader(path)
    assert caught.value.field == field
    assert time.monotonic() - began < MAX_SECONDS


def test_a_file_that_shrinks_is_refused_when_its_data_are_asked_for(own_model: Path) -> None:
    """A tensor that the file no longer holds is an error; one that it still holds is read."""
    with GGUFReader(own_model) as reader:
        first, *_, last = reader.tensors.values()
        os.truncate(own_model, last.offset + last.nbytes - 1)
        assert reader.tensor_bytes(first.name).nbytes == first.nbytes
        with pytest.raises(ModelFileError, match="shrank after it was opened"):
            reader.tensor_bytes(last.name)


def test_a_file_that_shrinks_is_refused_when_a_key_is_asked_for(tmp_path: Path) -> None:
    """A key-value that the file no longer holds is an error."""
    path = tmp_path / "long.gguf"
    path.write_bytes(file_bytes([u32_value("a", 1), text_value("long", "x" * 300_000)]))
    with GGUFReader(path) as reader:
        os.truncate(path, 200_000)
        with pytest.raises(ModelFileError, match="shrank after it was opened"):
            reader.key_value_bytes("long")


def test_a_refused_file_leaves_no_descriptor_behind(own_model: Path) -> None:
    """Opening and refusing, opening and closing: the process has as many open files as before."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    with GGUFReader(own_model):
        pass
    own_model.write_bytes(own_model.read_bytes()[:-1])
    for _ in range(3):
        with pytest.raises(ModelFileError):
            GGUFReader(own_model)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_not_a_number_in_the_data_is_read_as_it_is() -> None:
    """NaN and infinite scales are the arithmetic's business: the bytes come back unchanged."""
    block = struct.pack("<e", float("nan")) + bytes(range(32)) + struct.pack("<e", float("inf")) + bytes(32)
    reader = GGUFReader.from_bytes(tensors(tensor_info(dims=(32, 2), tensor_type=Q8_0), data=block), "nan.gguf")
    assert reader.tensor_bytes("t").tobytes() == block


@pytest.mark.parametrize("version", [2, 3])
def test_tensors_are_found_where_the_file_has_them(version: int) -> None:
    """Shapes are in numpy order, offsets from the file's beginning, rows as in the file, in both versions."""
    first, second = np.arange(6, dtype="<f4").reshape(2, 3), np.arange(4, dtype="<f4")
    infos = [tensor_info("b", (4,), offset=64), tensor_info("a", (3, 2))]
    data = first.tobytes() + bytes(40) + second.tobytes()
    key = u32_value("general.alignment", 64)
    reader = GGUFReader.from_bytes(file_bytes([key], infos, data, alignment=64, version=version), "two.gguf")
    assert list(reader.tensors) == ["b", "a"]
    assert reader.tensors["a"].shape == (2, 3)
    assert reader.tensors["a"].num_elements == 6
    assert reader.tensors["a"].offset % 64 == 0
    assert reader.tensors["b"].offset == reader.tensors["a"].offset + 64
    np.testing.assert_array_equal(reader.tensor_bytes("a").view("<f4"), first)
    np.testing.assert_array_equal(reader.tensor_bytes("b").view("<f4"), second[np.newaxis])


BLOCK_BYTES = {"Q4_0": 18, "Q8_0": 34, "Q2_K": 84, "Q3_K": 110, "Q4_K": 144, "Q5_K": 176, "Q6_K": 210}


@pytest.mark.parametrize(("type_name", "nbytes"), BLOCK_BYTES.items())
def test_a_block_has_its_exact_size(type_name: str, nbytes: int) -> None:
    """One block of each type takes exactly its bytes: the file may end with it and not one byte sooner (GGUF-2)."""
    elements = 256 if type_name.endswith("K") else 32
    info = tensor_info(dims=(elements,), tensor_type=GGMLQuantizationType[type_name])
    reader = GGUFReader.from_bytes(tensors(info, data=bytes(nbytes)), "block.gguf")
    assert reader.tensor_bytes("t").shape == (1, nbytes)
    assert refused(tensors(info, data=bytes(nbytes - 1))).field == "offset of t"


def test_every_value_type_is_read_exactly() -> None:
    """Scalars and arrays come back with their values; arrays of numbers are read-only numpy arrays."""
    entries = [
        key_value("u8", GGUFValueType.UINT8, b"\xff"),
        key_value("i8", GGUFValueType.INT8, b"\xff"),
        key_value("u16", GGUFValueType.UINT16, struct.pack("<H", 65535)),
        key_value("i16", GGUFValueType.INT16, struct.pack("<h", -2)),
        key_value("i32", GGUFValueType.INT32, struct.pack("<i", -3)),
        key_value("u64", GGUFValueType.UINT64, u64(2**64 - 1)),
        key_value("i64", GGUFValueType.INT64, struct.pack("<q", -(2**63))),
        key_value("f32", GGUFValueType.FLOAT32, struct.pack("<f", 0.5)),
        key_value("f64", GGUFValueType.FLOAT64, struct.pack("<d", 0.1)),
        key_value("yes", BOOL, b"\1"),
        text_value("text", "grün"),
        array_value("ints", GGUFValueType.INT16, 2, struct.pack("<2h", -1, 5)),
        array_value("floats", GGUFValueType.FLOAT32, 2, struct.pack("<2f", 1.5, float("nan"))),
        array_value("texts", STRING, 2, string("a") + string(b"\xff\x80")),
        array_value("none", STRING, 0),
    ]
    reader = GGUFReader.from_bytes(file_bytes(entries), "values.gguf")
    integers = [reader.get_int(key, minimum=-(2**63)) for key in ("u8", "i8", "u16", "i16", "i32", "u64", "i64")]
    assert integers == [255, -1, 65535, -2, -3, 2**64 - 1, -(2**63)]
    assert (reader.get_float("f32"), reader.get_float("f64"), reader.get_float("u8")) == (0.5, 0.1, 255.0)
    assert reader.get_bool("yes") is True
    assert reader.get_str("text") == "grün"
    assert reader.get_array("ints", int).tolist() == [-1, 5]
    np.testing.assert_array_equal(reader.get_array("floats", float), [1.5, np.nan])
    assert reader.get_array("texts", str) == ["a", "\udcff\udc80"]
    assert reader.get_array("none", str) == []
    assert "text" in reader
    assert "texte" not in reader
    stored = reader.key_values["ints"].value
    assert isinstance(stored, np.ndarray)
    assert not stored.flags.writeable


def test_a_getter_refuses_a_value_out_of_its_range() -> None:
    """Wrong type, out of range, not finite, not UTF-8 and absent are errors that show key, value and limit."""
    entries = [
        u32_value("int", 7),
        key_value("nan", GGUFValueType.FLOAT32, struct.pack("<f", float("nan"))),
        key_value("infinite", GGUFValueType.FLOAT32, struct.pack("<f", float("inf"))),
        key_value("yes", BOOL, b"\1"),
        text_value("bytes", b"\xff"),
        array_value("ints", GGUFValueType.INT16, 2, bytes(4)),
        array_value("huge", UINT64, 1, u64(2**63)),
    ]
    reader = GGUFReader.from_bytes(file_bytes(entries), "bad.gguf")
    for call, message in (
        (lambda: reader.get_int("int", minimum=8, maximum=9), "bad.gguf: int is 7; must be 8 to 9"),
        (lambda: reader.get_int("yes"), "yes is True; must be one integer"),
        (lambda: reader.get_int("ints"), "ints is an array of 2 values; must be one integer"),
        (lambda: reader.get_int("absent"), "absent is absent; it is required"),
        (lambda: reader.get_float("nan"), "nan is nan; must be finite"),
        (lambda: reader.get_float("infinite"), "infinite is inf; must be finite"),
        (lambda: reader.get_float("int", maximum=6), "int is 7; must be finite, -inf to 6"),
        (lambda: reader.get_float("yes"), "yes is True; must be one number"),
        (lambda: reader.get_bool("int"), "int is 7; must be a boolean"),
        (lambda: reader.get_str("int"), "int is 7; must be a string"),
        (lambda: reader.get_str("bytes"), "bytes is .*; must be UTF-8"),
        (lambda: reader.get_array("int", str), "int is 7; must be an array of strings"),
        (lambda: reader.get_array("ints", float), "ints is an array of 2 values; must be an array of floats"),
        (lambda: reader.get_array("huge", int), "huge is an array of 1 values; must be an array of integers below"),
    ):
        with pytest.raises(ModelFileError, match=message):
            call()
    assert reader.get_int("absent", 3) == 3
    assert reader.get_float("absent", 0.5) == 0.5
    assert reader.get_bool("absent", False) is False
    assert reader.get_str("absent", "") == ""


def test_a_file_and_its_bytes_are_read_alike(model_path: Path) -> None:
    """A path and the same bytes in memory give the same keys, tensors and data (D1)."""
    with GGUFReader(model_path) as from_file:
        from_memory = GGUFReader.from_bytes(model_path.read_bytes(), "memory")
        assert from_memory.tensors == from_file.tensors
        assert list(from_memory.key_values) == list(from_file.key_values)
        for key in from_file.key_values:
            assert from_memory.key_value_bytes(key) == from_file.key_value_bytes(key)
        for name in from_file.tensors:
            np.testing.assert_array_equal(from_memory.tensor_bytes(name), from_file.tensor_bytes(name))


def test_views_are_read_only_and_outlive_the_reader(model_path: Path) -> None:
    """close() is idempotent, leaves views readable, and refuses new ones."""
    reader = GGUFReader(model_path)
    view = reader.tensor_bytes("output_norm.weight")
    before = view.copy()
    reader.close()
    reader.close()
    np.testing.assert_array_equal(view, before)
    assert not view.flags.writeable
    with pytest.raises(ValueError, match="closed reader"):
        reader.tensor_bytes("output_norm.weight")


def test_an_absent_tensor_is_named(model_path: Path) -> None:
    """Asking for a tensor that the file does not have is a ModelFileError with its name."""
    with GGUFReader(model_path) as reader, pytest.raises(ModelFileError, match=r"blk\.9\.ffn_up\.weight is absent"):
        reader.tensor_bytes("blk.9.ffn_up.weight")


def test_real_files_open(shared_data: Path) -> None:
    """The real model and every real vocabulary open, with the counts their makers wrote."""
    num_tokens = {}
    for path in [*sorted((shared_data / "vocab").glob("*.gguf")), shared_data / "models" / "stories260K.gguf"]:
        with GGUFReader(path) as reader:
            num_tokens[path.stem] = len(reader.get_array("tokenizer.ggml.tokens", str))
            assert all(reader.tensor_bytes(name).nbytes == info.nbytes for name, info in reader.tensors.items())
    assert num_tokens["ggml-vocab-llama-bpe"] == 128256
    assert num_tokens["ggml-vocab-qwen2"] == 151936
    assert num_tokens["stories260K"] == 512
    assert len(num_tokens) == 7
