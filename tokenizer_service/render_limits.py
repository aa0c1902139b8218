"""What the rendering of one conversation may cost; known to both sides of the pipe."""

from __future__ import annotations

from dataclasses import dataclass

OUT_OF_MEMORY = 71  # exit code of a renderer that ran into its limit; Python's own are 1 and 2


@dataclass(frozen=True)
class RenderLimits:
    """Limits of one rendering, compiling the template included.

    `cpu_seconds` is processor time, so that a busy machine fails nobody. `memory_bytes` is address space beyond that
    of an idle renderer.
    """

    cpu_seconds: float = 2.0
    memory_bytes: int = 256 << 20
    output_characters: int = 4 << 20
