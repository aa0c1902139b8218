"""How the commands that generate are told to choose tokens and to end."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, cast

import typer

if TYPE_CHECKING:
    from clforge.params import Params


@dataclass(frozen=True)
class Sampling:
    """Parameters of a generation, by the names that `Params` has for them; None is not given."""

    max_tokens: Annotated[int | None, typer.Option(help="Most tokens; default: to the end", min=1)] = None
    temperature: Annotated[float | None, typer.Option(help="0 is greedy; default: 1")] = None
    top_k: Annotated[int | None, typer.Option(help="Keep so many likely tokens; default: 0, all", min=0)] = None
    top_p: Annotated[float | None, typer.Option(help="Keep likely tokens up to this sum; default: 1, all")] = None
    min_p: Annotated[float | None, typer.Option(help="Drop tokens below this share of the best; default: 0")] = None
    seed: Annotated[int | None, typer.Option(help="Key of the random numbers; default: drawn", min=0)] = None
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends the output; may be repeated")] = None

    def params(self) -> Params:
        """What was given."""
        return cast("Params", {name: value for name, value in asdict(self).items() if value not in (None, [])})
