"""Options that several commands share, as dataclasses: a field is an option, annotated as typer wants it.

@dataclass(frozen=True)
class Sampling:
    seed: Annotated[int | None, typer.Option(help="Key of the random numbers")] = None

@app.command()
@with_groups
def generate(prompt: str, sampling: Sampling) -> None: ...
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from typing import Annotated, Any, get_type_hints

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON")]


def with_groups(run: Callable[..., None]) -> Callable[..., None]:
    """Makes `run` into a function that typer takes as a command: in place of each parameter whose type is a dataclass
    it has that class's fields, and `run` gets the object."""
    hints = get_type_hints(run, include_extras=True)
    groups = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}

    def expanded(**values: Any) -> None:
        for name, group in groups.items():
            assert isinstance(group, type)
            values[name] = group(**{field.name: values.pop(field.name) for field in dataclasses.fields(group)})
        run(**values)

    def parameters() -> Iterator[inspect.Parameter]:
        for name, parameter in inspect.signature(run).parameters.items():
            if name in groups:
                yield from _fields(groups[name])
            else:
                yield parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)

    expanded.__name__, expanded.__doc__ = run.__name__, run.__doc__
    expanded.__signature__ = inspect.Signature(list(parameters()))  # type: ignore[attr-defined]
    return expanded


def _fields(group: Any) -> Iterator[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    for field in dataclasses.fields(group):
        default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
        yield inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints[field.name]
        )
