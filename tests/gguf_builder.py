"""Builders of GGUF files for tests: hostile ones byte by byte, small valid models with the gguf library."""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping, Sequence
from os import PathLike
from typing import Any, NamedTuple

import gguf
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from numpy.typing import NDArray


def u32(value: int) -> bytes:
    """A little-endian unsigned 32-bit integer; the value is taken modulo 2^32."""
    return struct.pack("<I", value % 2**32)


def u64(value: int) -> bytes:
    """A little-endian unsigned 64-bit integer; the value is taken modulo 2^64."""
    return struct.pack("<Q", value % 2**64)


def string(text: bytes | str, *, length: int | None = None) -> bytes:
    """A GGUF string; `length` overrides the true one."""
    raw = text.encode() if isinstance(text, str) else text
    return u64(len(raw) if length is None else length) + raw


def key_value(key: bytes | str, value_type: int, payload: bytes) -> bytes:
    """A key with a value of `value_type` whose bytes are `payload`."""
    return string(key) + u32(value_type) + payload


def text_value(key: str, text: bytes | str) -> bytes:
    """A key with a string."""
    return key_value(key, GGUFValueType.STRING, string(text))


def u32_value(key: str, value: int) -> bytes:
    """A key with an unsigned 32-bit integer."""
    return key_value(key, GGUFValueType.UINT32, u32(value))


def array_value(key: str, element_type: int, count: int, payload: bytes = b"") -> bytes:
    """A key with an array that claims `count` elements."""
    return key_value(key, GGUFValueType.ARRAY, u32(element_type) + u64(count) + payload)


def tensor_info(
    name: bytes | str = "t",
    dims: Sequence[int] = (4,),
    tensor_type: int = GGMLQuantizationType.F32,
    offset: int = 0,
    *,
    num_dims: int | None = None,
) -> bytes:
    """A tensor info; `num_dims` overrides the number of `dims`, which are in file order (columns first)."""
    n_dims = u32(len(dims) if num_dims is None else num_dims)
    return string(name) + n_dims + b"".join(map(u64, dims)) + u32(tensor_type) + u64(offset)


def file_bytes(
    key_values: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    num_tensors: int | None = None,
    num_keys: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A whole file: header, key-values, tensor infos, padding to `alignment`, `data`."""
    counts = u64(len(tensors) if num_tensors is None else num_tensors)
    counts += u64(len(key_values) if num_keys is None else num_keys)
    head = magic + u32(version) + counts + b"".join(key_values) + b"".join(tensors)
    return head + bytes(-len(head) % alignment if tensors else 0) + data


_PIECES = [
    "▁",
    *"etaoinshrdlucmfwypvbgkjqxz.,!?'",
    "he",
    "▁t",
    "▁the",
    "in",
    "▁a",
    "er",
    "on",
    "▁s",
    "re",
    "nd",
    "▁and",
]


class Tensor(NamedTuple):
    """A tensor for the gguf library: its array, and its type where the array's dtype does not tell."""

    array: NDArray[Any]
    type: GGMLQuantizationType | None


class _KBlock(NamedTuple):
    """Where a K-quant block keeps its f16 scale and minimum; random bytes there would be NaN, elsewhere any byte is
    valid. `spread` is the standard deviation of code × group scale, `mean_code` what the minimum has to cancel."""

    scale_offset: int
    min_offset: int | None
    mean_code: float
    spread: float


_K_BLOCKS = {
    GGMLQuantizationType.Q2_K: _KBlock(80, 82, 1.5, 14.5),
    GGMLQuantizationType.Q3_K: _KBlock(108, None, 0, 40),
    GGMLQuantizationType.Q4_K: _KBlock(0, 2, 7.5, 270),
    GGMLQuantizationType.Q5_K: _KBlock(0, 2, 15.5, 535),
    GGMLQuantizationType.Q6_K: _KBlock(208, None, 0, 1350),
}


def tokenizer_keys() -> dict[str, Any]:
    """A SentencePiece-BPE vocabulary of 302 tokens: <unk>, <s>, </s>, 256 byte tokens, letters and a few pieces."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *_PIECES]
    types = [gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * 2]
    types += [gguf.TokenType.BYTE] * 256 + [gguf.TokenType.NORMAL] * len(_PIECES)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(rank) for rank in range(len(_PIECES))],
        "tokenizer.ggml.token_type": [int(token_type) for token_type in types],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
    }


def random_matrix(
    rng: np.random.Generator, shape: tuple[int, int], tensor_type: GGMLQuantizationType, scale: float
) -> Tensor:
    """Weights of mean 0 and standard deviation about `scale`, in `tensor_type`; in Q8_0 or F16 where the rows are no
    whole number of its blocks, as llama.cpp falls back too."""
    candidates = (tensor_type, GGMLQuantizationType.Q8_0, GGMLQuantizationType.F16)
    actual_type = next(candidate for candidate in candidates if shape[1] % GGML_QUANT_SIZES[candidate][0] == 0)
    if actual_type in _K_BLOCKS:
        return Tensor(_random_k_blocks(rng, shape, actual_type, scale), actual_type)
    weights = rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)
    return Tensor(gguf.quants.quantize(weights, actual_type), actual_type)


def _random_k_blocks(
    rng: np.random.Generator, shape: tuple[int, int], tensor_type: GGMLQuantizationType, scale: float
) -> NDArray[np.uint8]:
    """Random blocks (rows, row_bytes), since the gguf library cannot quantise to K-quants."""
    rows, cols = shape
    block_elements, block_bytes = GGML_QUANT_SIZES[tensor_type]
    layout = _K_BLOCKS[tensor_type]
    blocks = rng.integers(0, 256, (rows, cols // block_elements, block_bytes), dtype=np.uint8)
    scales = rng.uniform(0.5, 1.5, blocks.shape[:2]) * scale / layout.spread
    for offset, values in ((layout.scale_offset, scales), (layout.min_offset, scales * layout.mean_code)):
        if offset is not None:
            blocks[:, :, offset : offset + 2] = values.astype("<f2")[:, :, np.newaxis].view(np.uint8)
    return blocks.reshape(rows, -1)


def tiny_llama(
    path: str | PathLike[str],
    *,
    seed: int,
    arch: str = "llama",
    tensor_type: GGMLQuantizationType = GGMLQuantizationType.F32,
    layers: int = 2,
    hidden: int = 64,
    ffn: int = 172,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 16,
    context_length: int = 256,
    tied: bool = False,
    keys: Mapping[str, Any] | None = None,
    tensors: Mapping[str, NDArray[Any]] | None = None,
    omit: Collection[str] = (),
) -> None:
    """Write a small valid model of `arch` ('llama', or 'qwen2' with its attention biases) to `path`.

    Matrices are `tensor_type`, vectors F32; the same arguments give the same bytes. `keys` adds or replaces
    key-values (int → UINT32, float → FLOAT32, bool, str, list), `tensors` adds or replaces tensors by arrays of f32,
    f16 or integers, `omit` leaves out keys and tensors by name.
    """
    all_keys = {
        "general.name": f"tiny {arch} {seed}",
        f"{arch}.block_count": layers,
        f"{arch}.context_length": context_length,
        f"{arch}.embedding_length": hidden,
        f"{arch}.feed_forward_length": ffn,
        f"{arch}.attention.head_count": num_heads,
        f"{arch}.attention.head_count_kv": num_kv_heads,
        f"{arch}.attention.key_length": head_dim,
        f"{arch}.attention.value_length": head_dim,
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{arch}.rope.dimension_count": head_dim,
        f"{arch}.rope.freq_base": 10000.0,
        **tokenizer_keys(),
        **(keys or {}),
    }
    shapes = _tensor_shapes(
        layers=layers,
        hidden=hidden,
        ffn=ffn,
        q_size=num_heads * head_dim,
        kv_size=num_kv_heads * head_dim,
        vocab_size=len(tokenizer_keys()["tokenizer.ggml.tokens"]),
        bias=arch == "qwen2",
        tied=tied,
    )
    rng = np.random.default_rng(seed)
    all_tensors = {name: _random_tensor(rng, name, shape, tensor_type) for name, shape in shapes.items()}
    all_tensors |= {name: Tensor(array, None) for name, array in (tensors or {}).items()}
    write_gguf(
        path,
        arch,
        {key: value for key, value in all_keys.items() if key not in omit},
        {name: tensor for name, tensor in all_tensors.items() if name not in omit},
    )


def _tensor_shapes(
    *, layers: int, hidden: int, ffn: int, q_size: int, kv_size: int, vocab_size: int, bias: bool, tied: bool
) -> dict[str, tuple[int, ...]]:
    block: dict[str, tuple[int, ...]] = {
        "attn_norm.weight": (hidden,),
        "attn_q.weight": (q_size, hidden),
        "attn_k.weight": (kv_size, hidden),
        "attn_v.weight": (kv_size, hidden),
        "attn_output.weight": (hidden, q_size),
        "ffn_norm.weight": (hidden,),
        "ffn_gate.weight": (ffn, hidden),
        "ffn_up.weight": (ffn, hidden),
        "ffn_down.weight": (hidden, ffn),
    }
    if bias:
        block |= {"attn_q.bias": (q_size,), "attn_k.bias": (kv_size,), "attn_v.bias": (kv_size,)}
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocab_size, hidden), "output_norm.weight": (hidden,)}
    if not tied:
        shapes["output.weight"] = (vocab_size, hidden)
    return shapes | {f"blk.{layer}.{name}": shape for layer in range(layers) for name, shape in block.items()}


def _random_tensor(
    rng: np.random.Generator, name: str, shape: tuple[int, ...], tensor_type: GGMLQuantizationType
) -> Tensor:
    match shape:
        case (rows, cols):
            return random_matrix(rng, (rows, cols), tensor_type, 1.0 if name == "token_embd.weight" else cols**-0.5)
        case (size,) if name.endswith("norm.weight"):
            return Tensor((1 + 0.1 * rng.standard_normal(size)).astype(np.float32), None)
        case _:
            return Tensor((0.1 * rng.standard_normal(shape)).astype(np.float32), None)


def write_gguf(path: str | PathLike[str], arch: str, keys: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a file with the gguf library: ints as UINT32, floats as FLOAT32, bools, strings, lists as arrays."""
    writer = gguf.GGUFWriter(path, arch)
    for key, value in keys.items():
        match value:
            case bool():
                writer.add_bool(key, value)
            case int():
                writer.add_uint32(key, value)
            case float():
                writer.add_float32(key, value)
            case str():
                writer.add_string(key, value)
            case _:
                writer.add_array(key, value)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.array, raw_dtype=tensor.type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
