"""Kernel sources as one text: for a single operation, or for a fused program with many of them.

Sources name things as if each were alone in its program. In a fused program they are not: there each variant of an
operation, which is a source and its defines, gets names of its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import NamedTuple

_COMMON = ("common.cl", "quantize_row.cl")  # the same whatever is defined
_PER_VARIANT = ("weight_tile.cl", "cpu/vnni_tile.cl", "kv_block.cl")
_PARTS = {"sample": ("sampling_row.cl", "sampling_filters.cl")}  # what an operation is made of beside its own file
_FUSED = "cpu/fused.cl"

_MACRO = re.compile(r"^[ \t]*#define[ \t]+(\w+)", re.MULTILINE)
_FUNCTION = re.compile(r"^(?:CLF_OPERATION|(?:static )?inline|static)\b[^;{(]*?\b(\w+)\(", re.MULTILINE)
_TYPE = re.compile(r"^(?:typedef [^{;]*?|\} )(\w+)(?: __attribute__\(\(.*\)\))?;", re.MULTILINE)


class Variant(NamedTuple):
    """An operation as it is built for: `kernel` of `kernels/cpu/<source>.cl`, and its defines, sorted."""

    source: str
    kernel: str
    defines: tuple[tuple[str, int | str], ...]

    @classmethod
    def of(cls, source: str, kernel: str, **defines: int | str) -> Variant:
        """A variant; the order of `defines` does not matter."""
        return cls(source, kernel, tuple(sorted(defines.items())))


def operation_text(source: str) -> str:
    """The program of one operation, whose defines are given to the compiler."""
    return "\n".join(map(part, (*_COMMON, *_PER_VARIANT, *_PARTS.get(source, ()), f"cpu/{source}.cl")))


def fused_text(variants: Sequence[Variant], calls: Sequence[str], max_arguments: int) -> str:
    """The fused program: each variant as a function, and what calls number i of them with its arguments, `calls[i]`."""
    cases = (
        f"case {number}: {variant.kernel}__{number}({call}); break;"
        for number, (variant, call) in enumerate(zip(variants, calls, strict=True))
    )
    definitions = map(_renamed, variants, range(len(variants)))
    head = f"#define CLF_FUSED 1\n#define MAX_ARGUMENTS {max_arguments}\n#define CASES {' '.join(cases)}"
    return "\n".join((head, *map(part, _COMMON), *definitions, part(_FUSED)))


def _renamed(variant: Variant, number: int) -> str:
    """A variant's functions and types with its number behind their names; its macros end with it."""
    text = "\n".join(map(part, (*_PER_VARIANT, f"cpu/{variant.source}.cl")))
    names = {*_FUNCTION.findall(text), *_TYPE.findall(text)}
    text = re.sub(rf"\b({'|'.join(sorted(names))})\b", rf"\1__{number}", text)
    defines = (f"#define {name} {value}" for name, value in variant.defines)
    macros = {name for name, _ in variant.defines} | set(_MACRO.findall(text))
    return "\n".join((*defines, text, *(f"#undef {name}" for name in sorted(macros))))


@cache
def part(path: str) -> str:
    """A file of kernels/, with its name for the compiler's messages."""
    name = path.rpartition("/")[2]
    return f'#line 1 "{name}"\n{(files("engine_service.kernels") / path).read_text(encoding="utf-8")}'
