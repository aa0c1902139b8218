"""200 constraints, trivial to nested: JSON schemas, regular expressions, grammars, choices."""

from __future__ import annotations

import json
import random
from typing import Any, NamedTuple

from engine_service.constraints.spec import ConstraintSpec, Kind

NUM_GENERATED_SCHEMAS = 100

SCHEMAS: list[Any] = [
    True,
    {},
    {"type": "null"},
    {"type": "boolean"},
    {"type": "integer"},
    {"type": "number"},
    {"type": "string"},
    {"type": ["string", "null"]},
    {"const": "exactly this"},
    {"const": {"a": [1, 2.5, None]}},
    {"enum": ["red", "green", "blue", 7, None, True]},
    {"enum": ["naïve", "日本", "😀", 'quote " and \\ backslash', "line\nbreak"]},
    {"type": "integer", "minimum": 0, "maximum": 255},
    {"type": "integer", "minimum": -17, "exclusiveMaximum": 4},
    {"type": "integer", "multipleOf": 25, "minimum": 0},
    {"type": "number", "minimum": 0, "maximum": 1},
    {"type": "number", "exclusiveMinimum": -2.5, "maximum": 2.5},
    {"type": "string", "minLength": 3, "maxLength": 5},
    {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
    {"type": "string", "pattern": "^(ä|ö|ü)+$", "maxLength": 8},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "date-time"},
    {"type": "string", "format": "uuid"},
    {"type": "string", "format": "ipv4"},
    {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "maxItems": 6},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    {"type": "array", "prefixItems": [{"type": "string", "maxLength": 4}, {"type": "null"}], "items": False},
    {"type": "array", "items": {"type": "array", "items": {"enum": [0, 1]}, "maxItems": 3}, "maxItems": 3},
    {"type": "object", "additionalProperties": False},
    {"type": "object", "additionalProperties": {"type": "integer", "maximum": 99, "minimum": 0}, "maxProperties": 3},
    {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 9}, "größe": {"type": "number"}},
        "required": ["name", "größe"],
        "additionalProperties": False,
    },
    {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "boolean"}, "c": {"type": "null"}},
        "required": ["b"],
        "additionalProperties": False,
    },
    {"anyOf": [{"type": "integer"}, {"type": "object", "properties": {"x": {"const": 1}}, "required": ["x"]}]},
    {"allOf": [{"type": "integer", "minimum": 3}, {"type": "integer", "maximum": 12}]},
    {"$ref": "#/$defs/colour", "$defs": {"colour": {"enum": ["r", "g", "b"]}}},
    {
        "$defs": {
            "tree": {
                "type": "object",
                "properties": {
                    "value": {"type": "integer", "minimum": 0, "maximum": 9},
                    "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2},
                },
                "required": ["value"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/tree",
    },
    {
        "$defs": {
            "list": {
                "anyOf": [
                    {"type": "null"},
                    {
                        "type": "object",
                        "properties": {"head": {"enum": [1, 2]}, "tail": {"$ref": "#/$defs/list"}},
                        "required": ["head", "tail"],
                        "additionalProperties": False,
                    },
                ]
            }
        },
        "$ref": "#/$defs/list",
    },
]

REGEXES = [
    "a",
    "abc",
    "a*",
    "a+b?",
    "(yes|no|maybe)",
    "[0-9]{3}",
    "[0-9]{1,5}",
    r"-?[0-9]+(\.[0-9]+)?",
    r"[a-z]+@[a-z]+\.(com|org)",
    r"\d{4}-\d{2}-\d{2}",
    r"\w+( \w+){0,3}",
    "[^\n]{0,20}",
    "(a|b)*c",
    "((ab)+c){2,3}",
    "[αβγ]{2,4}",
    "日本(語)?",
    "😀+",
    "[ä-ü]{1,3}",
    "(?i)hello",
    r"\{\"k\": [01]+\}",
    r"#[0-9a-f]{6}",
    r"(\+|-)(\([0-9]{1,3}\))+",
    r"[^a-z0-9 ]{1,4}",
    r"a/b\\c",
    r"(x|xx|xxx)y",
    r"[A-Z][a-z]*(, [A-Z][a-z]*)*\.",
]

# A grammar, and what an output of it looks like to `re`.
GRAMMARS: list[tuple[str, str]] = [
    ('start: "a"', "a"),
    ('start: "a" | "b" "c"', "a|bc"),
    ('start: "a" start | "b"', "a*b"),
    ('start: start "a" | "b"', "ba*"),
    ('start: WORD (" " WORD)~1..3\nWORD: /[a-z]+/', "[a-z]+( [a-z]+){1,3}"),
    ("start: /[0-9]+/ | /[a-f]+/", "[0-9]+|[a-f]+"),
    ('start: item+\nitem: "- " /[a-z]{1,5}/ "\\n"', "(- [a-z]{1,5}\n)+"),
    ('start: "<" NAME ">" /[^<]*/ "</done>"\nNAME: "b" | "i"', "<(b|i)>[^<]*</done>"),
    ('start: expr\nexpr: term ("+" term)*\nterm: /[0-9]/ | "(" expr ")"', r"[0-9()+]+"),
    ('start: "ä" | "日" | "😀"', "ä|日|😀"),
    ('start: %json {"type": "integer", "minimum": 0, "maximum": 7}', "[0-7]"),
    ("start: BOTH\nBOTH: /[a-m]+/ & /.{3}/", "[a-m]{3}"),
    ('root ::= "a"', "a"),
    ('root ::= "a" root | "b"', "a*b"),
    ('root ::= [0-9]+ "." [0-9]{2}', r"[0-9]+\.[0-9]{2}"),
    ('root ::= word (" " word)*\nword ::= [a-z]+', "[a-z]+( [a-z]+)*"),
    ('root ::= ("yes" | "no") "!"?', "(yes|no)!?"),
    ('root ::= "[" (item ("," item)*)? "]"\nitem ::= [01] | root', r"[\[\],01]+"),
    ('root ::= [^"\\n]{1,4}', '[^"\n]{1,4}'),
    ('root ::= "ä"+', "ä+"),
]

CHOICES = [
    ["yes"],
    ["yes", "no"],
    ["a", "ab", "abc"],
    ["", "x"],
    ["red", "green", "blue"],
    ["日本", "日", "本"],
    ['a "quoted" one', "a \\ backslash", "two\nlines", "tab\there"],
    ["😀", "😁 twice", "plain"],
    [str(number) for number in range(200)],
    ["the", "then", "there", "therefore", "these"],
    [" leading", "trailing ", " both "],
    ["True", "False", "None"],
    ["//", "/* */", "#", "%llguidance", "start: x"],
    ["a" * 40, "a" * 20],
    ["é", "e\u0301"],
    ["0", "00", "000"],
    ["{}", "[]", '""'],
]


class Case(NamedTuple):
    """A constraint and what judges its outputs: a JSON schema, or a regular expression."""

    spec: ConstraintSpec
    schema: Any = None
    pattern: str | None = None
    texts: tuple[str, ...] | None = None


def corpus() -> list[Case]:
    """All of them, always the same."""
    drawn = random.Random(7)
    schemas = [*SCHEMAS, *(_schema(drawn, depth=drawn.randint(0, 3)) for _ in range(NUM_GENERATED_SCHEMAS))]
    return [
        *(Case(ConstraintSpec.create(Kind.JSON_SCHEMA, json.dumps(schema)), schema=schema) for schema in schemas),
        *(Case(ConstraintSpec.create(Kind.REGEX, regex), pattern=regex) for regex in REGEXES),
        *(Case(ConstraintSpec.create(Kind.GRAMMAR, text), pattern=pattern) for text, pattern in GRAMMARS),
        *(Case(ConstraintSpec.create(Kind.CHOICES, json.dumps(texts)), texts=tuple(texts)) for texts in CHOICES),
    ]


def _schema(drawn: random.Random, depth: int) -> dict[str, Any]:
    """A schema whose values are nested at most `depth` deep, and finite."""
    if depth == 0:
        return dict(drawn.choice(_LEAVES))
    kind = drawn.choice(("array", "object", "object", "union"))
    if kind == "array":
        return {"type": "array", "items": _schema(drawn, depth - 1), "maxItems": drawn.randint(1, 3)}
    if kind == "union":
        return {"anyOf": [_schema(drawn, depth - 1) for _ in range(drawn.randint(2, 3))]}
    names = drawn.sample(_NAMES, drawn.randint(1, 4))
    required = [name for name in names if drawn.random() < 0.6]
    properties = {name: _schema(drawn, depth - 1) for name in names}
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


_NAMES = ["id", "name", "größe", "x y", "tags", "名前", 'quo"te', "n"]
_LEAVES: list[dict[str, Any]] = [
    {"type": "integer", "minimum": 0, "maximum": 999},
    {"type": "integer", "minimum": -5, "maximum": 5},
    {"type": "number", "minimum": -1, "maximum": 1},
    {"type": "boolean"},
    {"type": "null"},
    {"type": "string", "maxLength": 8},
    {"type": "string", "pattern": "^[a-c]{1,3}$"},
    {"enum": ["on", "off", "äöü", 3]},
    {"const": "fixed"},
    {"type": "string", "format": "date"},
]
