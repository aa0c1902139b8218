"""Which tensors a served architecture consists of, and the check that a file has these and no others.

Names and shapes follow llama.cpp (src/models/llama.cpp, src/models/qwen2.cpp). The table also fixes where norms
stand: both families normalise before attention and before the feed-forward network, and once at the end. A norm
elsewhere (after a projection, on q or k) is a tensor that the table does not have, and is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TypeAlias

from gguf import GGMLQuantizationType

from engine_service.compute.quant_layouts import SUPPORTED_TYPES
from engine_service.models.families import FAMILIES
from engine_service.models.hyperparameters import Hyperparameters
from service_common.errors import ModelFileError
from service_common.gguf_reader import GGUFReader
from service_common.gguf_tensors import TensorInfo

Shape: TypeAlias = tuple[int, ...]

ROPE_FREQS = "rope_freqs.weight"

_VECTOR_TYPES = frozenset({GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16})


def expected_tensors(hyperparameters: Hyperparameters) -> Iterator[tuple[str, Shape]]:
    """Names and shapes (rows, cols) of all required tensors, lazily: the number of layers is not yet trusted."""
    h = hyperparameters
    yield "token_embd.weight", (h.vocab_size, h.hidden_size)
    for layer in range(h.num_layers):
        for name, shape in _block_tensors(h):
            yield f"blk.{layer}.{name}", shape
    yield "output_norm.weight", (h.hidden_size,)
    if not h.tied_embeddings:
        yield "output.weight", (h.vocab_size, h.hidden_size)


def _block_tensors(h: Hyperparameters) -> Iterator[tuple[str, Shape]]:
    q_size, kv_size = h.num_heads * h.head_dim, h.num_kv_heads * h.head_dim
    yield "attn_norm.weight", (h.hidden_size,)
    for projection, rows in (("attn_q", q_size), ("attn_k", kv_size), ("attn_v", kv_size)):
        yield f"{projection}.weight", (rows, h.hidden_size)
        if h.attention_bias:
            yield f"{projection}.bias", (rows,)
    yield "attn_output.weight", (h.hidden_size, q_size)
    yield "ffn_norm.weight", (h.hidden_size,)
    yield "ffn_gate.weight", (h.ffn_size, h.hidden_size)
    yield "ffn_up.weight", (h.ffn_size, h.hidden_size)
    yield "ffn_down.weight", (h.hidden_size, h.ffn_size)


def read_hyperparameters(reader: GGUFReader) -> Hyperparameters:
    """The hyper-parameters of a file that has exactly the tensors they call for; ModelFileError says what it lacks."""
    hyperparameters = Hyperparameters.from_gguf(reader)
    check_tensors(reader, hyperparameters)
    return hyperparameters


def check_tensors(reader: GGUFReader, hyperparameters: Hyperparameters) -> None:
    """Raise ModelFileError unless the file holds exactly the model's tensors, in shapes and types that can be used."""
    h = hyperparameters
    known = set()
    for name, shape in expected_tensors(h):
        info = reader.tensors.get(name)
        if info is None:
            limit = f"a {h.architecture} model of {h.num_layers} blocks requires it, with shape {shape}"
            raise ModelFileError(reader.name, name, "absent", limit)
        _check_tensor(reader.name, info, shape)
        known.add(name)
    if FAMILIES[h.architecture].rope_freqs and ROPE_FREQS in reader.tensors:
        _check_tensor(reader.name, reader.tensors[ROPE_FREQS], (h.rope_dim // 2,))
        known.add(ROPE_FREQS)
    for name in reader.tensors:
        if name not in known:
            _refuse_unknown(reader.name, name, h)


def _check_tensor(file: str, info: TensorInfo, shape: Shape) -> None:
    if info.shape != shape:
        raise ModelFileError(file, f"shape of {info.name}", info.shape, f"must be {shape} by the hyper-parameters")
    types = SUPPORTED_TYPES if len(shape) == 2 else _VECTOR_TYPES
    if info.type not in types:
        names = ", ".join(sorted(tensor_type.name for tensor_type in types))
        raise ModelFileError(file, f"type of {info.name}", info.type.name, f"must be one of {names}")


def _refuse_unknown(file: str, name: str, h: Hyperparameters) -> None:
    block = re.match(r"blk\.(\d+)\.", name)
    if block and int(block[1]) >= h.num_layers:
        limit = f"but {name} belongs to a block past the last one"
        raise ModelFileError(file, f"{h.architecture}.block_count", h.num_layers, limit)
    limit = f"the {h.architecture} models that are served have no such tensor; ignoring it would give wrong text"
    raise ModelFileError(file, name, "present", limit)
