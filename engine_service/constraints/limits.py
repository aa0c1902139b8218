"""What a constraint may cost; known to both sides of the pipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# What the library spends on one grammar, and on one mask of it; its own units.
PARSER_LIMITS: dict[str, Any] = {
    "max_items_in_row": 2000,
    "initial_lexer_fuel": 500_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 20_000,
    "max_lexer_states": 20_000,  # of 1 to 2 kB
    "max_grammar_size": 100_000,
    "verbose_errors": False,
}


@dataclass(frozen=True)
class TrialLimits:
    """Limits of one trial: converting, compiling, and the first tokens.

    `cpu_seconds` is processor time, so that a busy machine fails nobody. `memory_bytes` is address space beyond that
    of an idle process. `stack_bytes` is well below what a thread of the engine has, where the grammar is compiled next.
    """

    cpu_seconds: float = 0.5
    memory_bytes: int = 256 << 20
    stack_bytes: int = 2 << 20
    lark_characters: int = 1 << 20
