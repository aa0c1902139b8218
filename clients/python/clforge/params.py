"""The parameters of a generation, as keyword arguments, and their way into a message.

A parameter that is not given takes the server's default. Ranges are the server's to check; only what a message cannot
hold is refused here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeAlias, TypedDict

from clforge.chat import Chat, chat_to_proto
from clforge.errors import invalid
from clforge.fields import items, text, texts, token_ids
from clforge.v1 import generation_pb2 as pb
from clforge.v1 import tokenizer_pb2

_MAX_CHOICES = 16

# A text, a conversation, or token ids.
Prompt: TypeAlias = str | Chat | Sequence[int]


class Dry(TypedDict, total=False):
    """A penalty for going on with a repetition; without `sequence_breakers` the server's own."""

    multiplier: float
    base: float
    allowed_length: int
    window: int
    sequence_breakers: Sequence[str]


class Xtc(TypedDict, total=False):
    """How often the most likely tokens are dropped, and from which share on."""

    probability: float
    threshold: float


class Mirostat(TypedDict, total=False):
    """The surprise aimed at, in bits, and how fast its limit follows. `target` is required."""

    target: float
    learning_rate: float


class Params(TypedDict, total=False):
    """Keyword arguments of `generate`, `complete` and `submit`.

    Choosing tokens: `temperature` (0 is greedy), `top_k`, `top_p`, `min_p`, `seed`, and what docs/sampling.md tells of
    (`typical_p` to `order`, whose stages go by the names of their parameters, all penalties by "penalties"). Ending:
    `max_tokens`, `min_tokens`, `stop` (strings), `stop_token_ids`, `ignore_eos`, `include_stop`. `n` choices;
    `priority`, higher is sooner; `timeout` in seconds, queueing included; `cache_salt` and `no_cache` for the prefix
    cache; `logprobs`: how many most likely tokens to report beside the chosen one; `prompt_logprobs`: the same for the
    prompt's tokens; `model`: the name of the model wanted; `echo`: return the prompt's text before the output;
    `tell_reasoning`: tell reasoning (`<think>`) apart from the answer, which is the default for a Chat where the model
    knows marks for it; `max_draft_tokens` (0: none) and `ngram_size`: drafts, which change how fast the output comes
    and never what it is.

    The output's form, at most one of: `json_schema` (a dict, or JSON text), `regex` (for all of it), `grammar` (Lark or
    GBNF), `choices` (texts of which it is one).
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    typical_p: float
    top_n_sigma: float
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    penalty_window: int
    dry: Dry
    xtc: Xtc
    mirostat: Mirostat
    logit_bias: Mapping[int, float]
    allowed_token_ids: Sequence[int]
    bad_token_sequences: Sequence[Sequence[int]]
    bad_words: Sequence[str]
    order: Sequence[str]
    max_tokens: int
    min_tokens: int
    stop: Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    include_stop: bool
    n: int
    priority: int
    timeout: float
    cache_salt: str
    no_cache: bool
    logprobs: int
    prompt_logprobs: int
    model: str
    echo: bool
    tell_reasoning: bool
    max_draft_tokens: int
    ngram_size: int
    json_schema: Mapping[str, Any] | bool | str
    regex: str
    grammar: str
    choices: Sequence[str]


_SAMPLING = (
    *("temperature", "top_k", "top_p", "min_p", "seed", "typical_p", "top_n_sigma", "repetition_penalty"),
    *("frequency_penalty", "presence_penalty", "penalty_window", "allowed_token_ids", "bad_words"),
)
_METHODS = ("dry", "xtc", "mirostat")
_STOPPING = ("max_tokens", "min_tokens", "stop", "stop_token_ids", "ignore_eos", "include_stop")
_GENERAL = ("n", "priority", "cache_salt", "no_cache", "logprobs", "prompt_logprobs", "echo", "tell_reasoning")
_SPECULATION = ("max_draft_tokens", "ngram_size")
_CONSTRAINTS = ("json_schema", "regex", "grammar", "choices")
_CHECKED: Mapping[str, Callable[[Any, str], Any]] = {
    "stop": texts,
    "stop_token_ids": token_ids,
    "cache_salt": text,
    "allowed_token_ids": token_ids,
    "bad_words": texts,
    "sequence_breakers": texts,
    "regex": text,
    "grammar": text,
}


def prompt_to_proto(prompt: Prompt) -> tokenizer_pb2.Prompt:
    """Text, a conversation, or token ids taken as they are. InvalidRequestError for what a message cannot hold."""
    result = tokenizer_pb2.Prompt()
    if isinstance(prompt, Chat):
        result.chat.CopyFrom(chat_to_proto(prompt))
        return result
    if isinstance(prompt, str):
        result.text = text(prompt, "prompt")
    else:
        result.token_ids.ids[:] = token_ids(prompt, "prompt")
        result.token_ids.SetInParent()
    return result


def model_name(params: Params) -> str:
    """The model wanted, "" for whichever is served. InvalidRequestError for what is no text."""
    return text(params.get("model") or "", "model")


def num_choices(params: pb.GenerationParams) -> int:
    """How many choices end. At least one does, also of a request that the server will refuse."""
    return params.n if 1 <= params.n <= _MAX_CHOICES else 1


def params_to_proto(params: Params) -> pb.GenerationParams:
    """All but `model`. TypeError for an unknown name, InvalidRequestError for a value that a message cannot hold."""
    unknown = set(params) - set(Params.__annotations__)
    if unknown:
        raise TypeError(f"unknown generation parameter {min(unknown)!r}; there are {', '.join(Params.__annotations__)}")
    result = pb.GenerationParams()
    given: dict[str, Any] = {name: value for name, value in params.items() if value is not None}
    parts = (
        (result.sampling, _SAMPLING),
        (result.stopping, _STOPPING),
        (result.speculation, _SPECULATION),
        (result, _GENERAL),
    )
    for message, names in parts:
        for name in names:
            if name in given:
                _set(message, name, given[name])
    _set_constraint(result, {name: given[name] for name in _CONSTRAINTS if name in given})
    _set_methods(result.sampling, given)
    if "timeout" in given:
        set_timeout(result, given["timeout"])
    return result


def _set_methods(sampling: pb.SamplingParams, given: dict[str, Any]) -> None:
    """What is more than a number or a list of them."""
    for name in _METHODS:
        if name in given:
            _set_method(getattr(sampling, name), name, given[name])
    biases = given.get("logit_bias", {})
    if not isinstance(biases, Mapping):
        raise invalid("logit_bias", biases, "must map token ids to numbers")
    for token_id, bias in biases.items():
        try:
            sampling.logit_bias[token_id] = bias
        except (ValueError, TypeError, OverflowError) as error:
            raise invalid("logit_bias", {token_id: bias}, str(error)) from error
    for number, ids in enumerate(items(given.get("bad_token_sequences", ()), "bad_token_sequences")):
        sampling.bad_token_sequences.add().ids[:] = token_ids(ids, f"bad_token_sequences[{number}]")
    for number, stage in enumerate(items(given.get("order", ()), "order")):
        sampling.order.append(_stage(stage, f"order[{number}]"))


def _set_method(method: Any, name: str, given: Any) -> None:
    if not isinstance(given, Mapping):
        raise invalid(name, given, "must be an object of its parameters")
    method.SetInParent()
    for field, value in given.items():
        if field not in method.DESCRIPTOR.fields_by_name:
            raise invalid(f"{name}.{field}", value, f"there are {', '.join(method.DESCRIPTOR.fields_by_name)}")
        _set(method, field, value)


def _stage(name: Any, field: str) -> pb.SamplingStage.ValueType:
    try:
        return pb.SamplingStage.Value(f"SAMPLING_STAGE_{name.upper()}")
    except (AttributeError, ValueError):
        raise invalid(field, name, "must be a stage, such as penalties, temperature or top_k") from None


def set_timeout(params: pb.GenerationParams, seconds: float | None) -> None:
    """Sets the timeout, None for none. InvalidRequestError for what is no number of seconds."""
    params.ClearField("timeout")
    if seconds is None:
        return
    try:
        params.timeout.FromTimedelta(timedelta(seconds=seconds))
    except (OverflowError, ValueError, TypeError) as error:
        raise invalid("timeout", seconds, "must be a number of seconds") from error


def _set_constraint(params: pb.GenerationParams, given: Mapping[str, Any]) -> None:
    if len(given) > 1:
        first, second, *_ = given
        raise invalid(second, given[second], f"excludes {first}: an output has one constraint")
    for name, value in given.items():
        if name == "choices":
            params.constraint.choices.texts[:] = texts(value, name)
            params.constraint.choices.SetInParent()
        elif name == "json_schema":
            params.constraint.json_schema = text(value if isinstance(value, str) else _json(name, value), name)
        else:
            _set(params.constraint, name, value)


def _json(field: str, value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise invalid(field, value, str(error)) from error


def _set(message: Any, field: str, value: Any) -> None:
    if field in _CHECKED:
        value = _CHECKED[field](value, field)
    try:
        if isinstance(value, list):
            getattr(message, field).extend(value)
        else:
            setattr(message, field, value)
    except (ValueError, TypeError, OverflowError) as error:
        raise invalid(field, value, str(error)) from error
