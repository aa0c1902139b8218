"""Every kind of constraint as a grammar in llguidance's dialect of Lark.

The dialect: https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md (1.9.1).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from llguidance import regex_to_lark
from llguidance.gbnf_to_lark import any_to_lark

from engine_service.constraints.spec import ConstraintSpec, Kind

# Between the tokens of JSON: nothing, a space, or one or two newlines and what indents the next line. Bounded, since a
# model that repeats itself would else go on with white space for ever. As llama.cpp's `space` rule,
# common/json-schema-to-grammar.cpp.
WHITE_SPACE = r" |\n{1,2}[ \t]{0,20}"

# Forced text is left to the model, token by token: it knows how its vocabulary spells it.
_OPTIONS = '%llguidance {"no_forcing": true}'


def lark_of(spec: ConstraintSpec) -> str:
    """The grammar. ValueError or RecursionError tells what is no JSON or no GBNF; all else its compiler has to find."""
    return f"{_CONVERSIONS[spec.kind](spec.text)}\n{_OPTIONS}\n"


def _json_schema(text: str) -> str:
    schema: Any = json.loads(text)
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise ValueError("a JSON schema is an object, or true")
    guidance = schema.get("x-guidance", {})
    if not isinstance(guidance, dict):
        raise ValueError("x-guidance must be an object")
    schema["x-guidance"] = {"whitespace_pattern": WHITE_SPACE} | guidance
    return f"start: %json {json.dumps(schema, ensure_ascii=False)}"


def _regex(text: str) -> str:
    return f"start: /{regex_to_lark(text, use_ascii='')}/"


def _choices(text: str) -> str:
    literals = (json.dumps(choice, ensure_ascii=False) for choice in json.loads(text))
    return f"start: CHOICE\nCHOICE: {' | '.join(literals)}"


_CONVERSIONS: dict[Kind, Callable[[str], str]] = {
    Kind.JSON_SCHEMA: _json_schema,
    Kind.REGEX: _regex,
    Kind.GRAMMAR: any_to_lark,
    Kind.CHOICES: _choices,
}
