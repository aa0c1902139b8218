"""The model as a GGUF file, there and back."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from models.train.transformer import Layer, Params, Shape, initial, matrices
from models.train.vocabulary import CHAT_TEMPLATE, END, PRE_TOKENIZER, START, known

CONTEXT_LENGTH = 1024


def write(path: Path, params: Params, shape: Shape, tokenizer: Tokenizer) -> None:
    """Writes matrices as Q8_0 and norms as F32."""
    writer = gguf.GGUFWriter(path, "llama")
    _write_description(writer, shape)
    _write_vocabulary(writer, tokenizer)
    for name, weight in _named(params).items():
        tensor = np.asarray(weight, np.float32)
        if tensor.ndim == 1:
            writer.add_tensor(name, tensor)
        else:
            quantised = gguf.quants.quantize(tensor, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, quantised, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read(path: Path, shape: Shape) -> tuple[Params, Tokenizer]:
    """Weights and vocabulary of a file that :func:`write` made, to go on training from.

    Raises:
        ValueError: it is no GGUF file, or its tensors are not those of ``shape``.
    """
    reader = gguf.GGUFReader(path)
    sizes = {name: like.shape for name, like in _named(jax.eval_shape(lambda: initial(shape, 0))).items()}
    if {each.name: tuple(map(int, each.shape[::-1])) for each in reader.tensors} != sizes:
        raise ValueError(f"{path} holds another model than one of {shape.num_layers} layers that was trained here")
    found = {each.name: gguf.quants.dequantize(each.data, each.tensor_type) for each in reader.tensors}

    def weight(name: str) -> jax.Array:
        return jnp.asarray(found[f"{name}.weight"], jnp.float32)

    def layer(index: int) -> Layer:
        return {name: weight(f"blk.{index}.{name}") for name in (*matrices(shape), "attn_norm", "ffn_norm")}

    params = Params(weight("token_embd"), [layer(index) for index in range(shape.num_layers)], weight("output_norm"))
    tokens, merges = (reader.fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "merges"))
    return params, known(tokens, merges)


def _named(params: Params) -> dict[str, jax.Array]:
    named = {"token_embd": params.token_embd, "output_norm": params.output_norm}
    for index, layer in enumerate(params.layers):
        named |= {f"blk.{index}.{name}": weight for name, weight in layer.items()}
    return {f"{name}.weight": weight for name, weight in named.items()}


def _write_description(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_name("CLForge Tiny")
    writer.add_author("The CLForge developers")
    writer.add_license("Apache-2.0")
    writer.add_description("A small model to try CLForge with: recall, copying, lists, dates, sums, letters, stories.")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_context_length(CONTEXT_LENGTH)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.num_layers)
    writer.add_feed_forward_length(shape.ffn_size)
    writer.add_head_count(shape.num_heads)
    writer.add_head_count_kv(shape.num_kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.norm_epsilon)
    writer.add_vocab_size(shape.vocab_size)


def _write_vocabulary(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZER)
    writer.add_token_list(tokens)
    writer.add_token_types([control if token in (START, END) else normal for token in tokens])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    writer.add_eos_token_id(tokens.index(END))
    writer.add_eot_token_id(tokens.index(END))
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
