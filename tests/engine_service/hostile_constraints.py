"""Constraints that are meant to hurt: by depth, size, backtracking and endless recursion."""

from __future__ import annotations

import json
from typing import Any


def _rules(count: int, rule: str, last: str) -> str:
    """`rule` for every n below `count`, each naming the next as R{m}; the last one is `last`."""
    lines = [rule.format(n=n, m=n + 1) for n in range(count)]
    return "\n".join(["start: " + rule[0] + "0", *lines, f"{rule[0]}{count}: {last}"])


def _nested(depth: int) -> str:
    return '{"type":"array","items":' * depth + "{}" + "}" * depth


HOSTILE: dict[str, dict[str, Any]] = {
    "a regex of optional letters": {"regex": "a?" * 20000 + "a" * 20000},
    "an exponential automaton": {"regex": "(a|b)*a(a|b){30}"},
    "counts of counts": {"regex": "(((((a{100}){100}){100}){100}){100})"},
    "counts of classes": {"regex": r"(\p{L}{1,1000}){1,1000}"},
    "stars of stars": {"regex": "((a*)*)*b"},
    "deep groups": {"regex": "(" * 30000 + "a" + ")" * 30000},
    "no end of groups": {"regex": "(" * 60000},
    "a look-ahead": {"regex": "(?=a)b"},
    "a back-reference": {"regex": r"(a)\1"},
    "no output": {"regex": r"[^\s\S]"},
    "deep arrays": {"json_schema": _nested(1000)},
    "no JSON": {"json_schema": "[" * 60000},
    "a schema that is itself": {"json_schema": '{"$ref": "#"}'},
    "an endless object": {
        "json_schema": '{"type":"object","properties":{"a":{"$ref":"#"}},"required":["a"],"additionalProperties":false}'
    },
    "too many items": {"json_schema": '{"type":"array","minItems":1000000000}'},
    "too long a string": {"json_schema": '{"type":"string","minLength":1000000000}'},
    "many properties": {"json_schema": json.dumps({"properties": {f"k{n}": {"type": "string"} for n in range(1500)}})},
    "products of alternatives": {
        "json_schema": json.dumps(
            {"allOf": [{"anyOf": [{"properties": {f"a{n}{m}": {}}} for m in range(4)]} for n in range(12)]}
        )
    },
    "another file": {"json_schema": '{"$ref": "file:///etc/passwd"}'},
    "no integer between": {"json_schema": '{"type":"integer","minimum":5,"maximum":3}'},
    "a rule that is itself": {"grammar": "start: start"},
    "a rule without an end": {"grammar": 'start: "a" start'},
    "a chain of rules": {"grammar": _rules(4000, "r{n}: r{m}", '"a"')},
    "a chain of terminals": {"grammar": _rules(3000, 'R{n}: "a" R{m}', '"a"')},
    "doubling terminals": {"grammar": _rules(40, "R{n}: R{m} R{m}", '"a"')},
    "doubling rules": {"grammar": _rules(40, "r{n}: r{m}? r{m}?", '"a"?')},
    "many options": {"grammar": "start: " + " ".join(f'"a{n}"?' for n in range(5000))},
    "deep parentheses": {"grammar": "start: " + "(" * 20000 + '"a"' + ")" * 20000},
    "a million repetitions": {"grammar": "start: a{1000000}\na: b{1000000}\nb: /x*/"},
    "ambiguity": {"grammar": 'start: start start start | start start | "a" | "aa"'},
    "deep GBNF": {"grammar": "root ::= " + "(" * 5000 + '"a"' + ")" * 5000},
    "a long chain of GBNF": {
        "grammar": "\n".join([*(f'r{n} ::= "x" r{n + 1}' for n in range(3000)), 'r3000 ::= "x"', "root ::= r0"])
    },
    "not text": {"grammar": "\x00\x01" * 1000},
}
