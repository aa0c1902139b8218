"""How the commands that generate are told to choose tokens and to end."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from clforge.cli.constraints import read_text, schema_text

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
    typical_p: Annotated[float | None, typer.Option(help="Keep typical tokens up to this sum; default: 1, all")] = None
    repetition_penalty: Annotated[float | None, typer.Option(help="Divides logits of known tokens; default: 1")] = None
    frequency_penalty: Annotated[float | None, typer.Option(help="Taken per time generated; default: 0")] = None
    presence_penalty: Annotated[float | None, typer.Option(help="Taken if generated at all; default: 0")] = None
    seed: Annotated[int | None, typer.Option(help="Key of the random numbers; default: drawn", min=0)] = None
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends the output; may be repeated")] = None
    json_schema: Annotated[
        str | None,
        typer.Option(help="Give JSON that is valid by this schema: a file, or the schema itself", metavar="FILE|TEXT"),
    ] = None
    regex: Annotated[str | None, typer.Option(help="Give a text that matches this expression as a whole")] = None
    grammar: Annotated[
        Path | None, typer.Option(help="Give a text of this grammar, in Lark or GBNF", metavar="FILE")
    ] = None
    choice: Annotated[list[str] | None, typer.Option(help="Give one of these texts; to be repeated")] = None

    def params(self) -> Params:
        """What was given. ConfigError for a file that cannot be read."""
        given = asdict(self) | {
            "json_schema": schema_text(self.json_schema),
            "grammar": None if self.grammar is None else read_text(self.grammar, "--grammar"),
        }
        given["choices"] = given.pop("choice")
        return cast("Params", {name: value for name, value in given.items() if value not in (None, [])})
