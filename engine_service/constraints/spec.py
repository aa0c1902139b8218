"""A constraint as asked for."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from service_common.errors import InvalidArgumentError

MAX_TEXT_BYTES = 64 << 10


class Kind(StrEnum):
    """The kinds of constraint, by their fields of `clforge.v1.Constraint`."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    GRAMMAR = "grammar"
    CHOICES = "choices"


class ConstraintSpec(NamedTuple):
    """`create` checks the size; the `text` of choices is a JSON list."""

    kind: Kind
    text: str

    @classmethod
    def create(cls, kind: Kind, text: str) -> ConstraintSpec:
        """InvalidArgumentError for a text that is empty or too long."""
        spec = cls(kind, text)
        num_bytes = len(text.encode())
        if not 1 <= num_bytes <= MAX_TEXT_BYTES:
            limit = f"must have between 1 and {MAX_TEXT_BYTES} bytes"
            raise InvalidArgumentError(spec.field, f"a text of {num_bytes} bytes", limit)
        return spec

    @property
    def field(self) -> str:
        """Its path on the wire."""
        return f"params.constraint.{self.kind}"
