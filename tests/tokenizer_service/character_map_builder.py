"""Makes `tokenizer.ggml.precompiled_charsmap` for tests, as SentencePiece does with darts-clone."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

_LEAF = 1 << 8
_VALUE = 1 << 31
_END = 0  # the label under which a prefix's value stands; no prefix has this byte


def character_map(replacements: Mapping[str, str]) -> bytes:
    """The map of these replacements by prefix."""
    text, offsets = b"", dict[str, int]()
    for prefix, replacement in replacements.items():
        offsets[prefix] = len(text)
        text += replacement.encode() + b"\0"
    units = _place(_trie(offsets))
    return struct.pack(f"<I{len(units)}I", 4 * len(units), *units) + text


def _trie(offsets: Mapping[str, int]) -> dict[int, Any]:
    """Nodes by byte, values by _END."""
    root: dict[int, Any] = {}
    for prefix, offset in offsets.items():
        node = root
        for byte in prefix.encode():
            node = node.setdefault(byte, {})
        node[_END] = offset
    return root


def _place(root: dict[int, Any]) -> list[int]:
    """The trie as a double array: the children of a node at index i lie at i ^ offset(i) ^ label."""
    units, todo, bases = {0: 0}, [(0, root)], set[int]()
    for index, node in todo:
        base = next(b for b in range(1, 1 << 20) if b not in bases and units.keys().isdisjoint(b ^ n for n in node))
        bases.add(base)
        label = units[index]
        units[index] = (base ^ index) << 10 | (_LEAF if _END in node else 0) | label
        for child_label, child in node.items():
            at = base ^ child_label
            units[at] = _VALUE | child if child_label == _END else child_label
            if child_label != _END:
                todo.append((at, child))
    size = (max(units) | 0xFF) + 1
    return [units.get(index, 0) for index in range(size)]
