"""What the identity check can be told."""

from __future__ import annotations

from dataclasses import dataclass

from service_common.options import option


@dataclass(frozen=True)
class IdentityConfig:
    """Options of `python -m tests.identity`. The same options give the same requests, steps and counts."""

    requests: int = option(500, "Requests to the bundled model", minimum=0)
    layout_requests: int = option(25, "Requests to a small model of each device layout", minimum=0)
    fresh: int = option(20, "Requests that are asked again in a fresh process each", minimum=0)
    seed: int = option(1, "Chooses the requests, the engines' settings and what happens to both", minimum=0)
