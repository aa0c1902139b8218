"""What structured output costs a token: the mask, which is computed beside the forward pass, and the matcher's step.

    python -m benchmarks.serving --only constraints

Walks through grammars of every kind, each token drawn from the mask, at the vocabulary of a real model. Times of masks
and steps are processor time of the thread, which nobody else's work blurs; compiling takes another process as well.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine_service.constraints.compiler import GrammarCompiler
from engine_service.constraints.matcher import CompiledGrammar
from engine_service.constraints.spec import ConstraintSpec, Kind
from engine_service.constraints.token_bytes import TokenBytes
from service_common.gguf_reader import GGUFReader
from service_common.special_tokens import TOKENS_KEY

NUM_WALKS = 2  # of each grammar
MAX_TOKENS = 64  # of a walk
MILLISECOND = 1e-3

_PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "email": {"type": "string", "format": "email"},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 5},
        "born": {"type": "string", "format": "date"},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
_TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"value": {"type": "number"}, "nodes": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
            "required": ["value", "nodes"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}
_SPECS = (
    ConstraintSpec(Kind.JSON_SCHEMA, "true"),
    ConstraintSpec(Kind.JSON_SCHEMA, json.dumps(_PERSON)),
    ConstraintSpec(Kind.JSON_SCHEMA, json.dumps({"type": "array", "items": _PERSON, "minItems": 3})),
    ConstraintSpec(Kind.JSON_SCHEMA, json.dumps(_TREE)),
    ConstraintSpec(Kind.JSON_SCHEMA, json.dumps({"type": "object", "additionalProperties": {"type": "string"}})),
    ConstraintSpec(Kind.REGEX, r"[a-z]+(, [a-z]+)*\."),
    ConstraintSpec(Kind.REGEX, r"(\w+ ){5,50}\w+"),
    ConstraintSpec(Kind.GRAMMAR, 'root ::= term ([-+*/] term)*\nterm ::= [0-9]+ | "(" root ")"'),
    ConstraintSpec(Kind.GRAMMAR, 'start: line+\nline: "- " /[^\\n]+/ "\\n"'),
    ConstraintSpec(Kind.CHOICES, json.dumps([f"choice number {number}" for number in range(1000)])),
)


class _Cost:
    """Seconds of each mask, of each step of a matcher, and of each grammar to compile."""

    def __init__(self) -> None:
        self.masks: list[float] = []
        self.accepts: list[float] = []
        self.compiles: list[float] = []

    def walk(self, grammar: CompiledGrammar, drawn: np.random.Generator, eog_ids: list[int]) -> None:
        """One output, its tokens drawn from those that may come."""
        constraint = grammar.start()
        goes_on, num_tokens = True, 0
        while goes_on and num_tokens < MAX_TOKENS:
            started = time.thread_time()
            [mask] = constraint.masks(())
            masked = time.thread_time()
            ids = _ids(mask)
            token_id = int(ids[drawn.integers(len(ids))])
            if token_id in eog_ids:
                return
            chosen = time.thread_time()
            goes_on = constraint.accept(token_id)
            self.accepts.append(time.thread_time() - chosen)
            self.masks.append(masked - started)
            num_tokens += 1


def measure(model: Path, seed: int) -> dict[str, float]:
    """The costs at the vocabulary of `model`, by the names that the serving bench reports."""
    cost, drawn = _Cost(), np.random.default_rng(seed)
    with GGUFReader(model) as reader:
        tokens = TokenBytes.from_gguf(reader, len(reader.get_array(TOKENS_KEY, str)))
    compiler = GrammarCompiler(lambda: tokens)
    compiler.compile_now(ConstraintSpec(Kind.REGEX, "a"))  # its process is up
    for spec in _SPECS:
        started = time.perf_counter()
        grammar = compiler.compile_now(spec)
        cost.compiles.append(time.perf_counter() - started)
        for _ in range(NUM_WALKS):
            cost.walk(grammar, drawn, tokens.eog_ids)
    compiler.close()
    return {
        "mask_mean_ms": statistics.mean(cost.masks) / MILLISECOND,
        "mask_p99_ms": statistics.quantiles(cost.masks, n=100)[98] / MILLISECOND,
        "accept_mean_ms": statistics.mean(cost.accepts) / MILLISECOND,
        "compile_median_ms": statistics.median(cost.compiles) / MILLISECOND,
    }


def _ids(mask: NDArray[np.uint32]) -> NDArray[np.intp]:
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
