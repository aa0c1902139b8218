"""Command-line options and environment variables from a frozen dataclass; the one place that reads either.

Each field is one option: `drain_seconds` is `--drain-seconds` and CLFORGE_DRAIN_SECONDS. `--help` shows unit, range and
default. An option or a CLFORGE_ variable that nobody knows is an error.

    @dataclass(frozen=True)
    class Config:
        drain_seconds: float = option(30.0, "Time for requests in flight to finish", unit="seconds", minimum=0)

    app = typer.Typer()

    @app.command()
    @command(Config)
    def run(config: Config) -> None: ...
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
import os
import re
import types
import typing
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

import typer

from service_common.errors import ConfigError, StartupError
from service_common.lifecycle import end_with_parent, exit_with

ENVIRONMENT_PREFIX = "CLFORGE_"
PARENT_PID_VARIABLE = "CLFORGE_PARENT_PID"
API_KEY_VARIABLE = "CLFORGE_API_KEY"  # a client's, which may well be set where a server is started

_NOT_OPTIONS = {PARENT_PID_VARIABLE, API_KEY_VARIABLE, "CLFORGE_TEST_DATA"}
# Kubernetes gives each container such variables for a service that is called clforge or clforge-something.
_SERVICE_LINK = re.compile(r"CLFORGE_(.*_)?(SERVICE_(HOST|PORT(_.*)?)|PORT(_\d+_(TCP|UDP)(_.*)?)?)")


_TypedField = tuple[dataclasses.Field[Any], Any]


@dataclasses.dataclass(frozen=True)
class _Description:
    help: str
    unit: str | None
    minimum: float | None
    maximum: float | None
    metavar: str | None
    show_default: bool


def option(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    unit: str | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    metavar: str | None = None,
    show_default: bool = True,
) -> Any:
    """A field of a configuration class; required if it has no `default`. `minimum` and `maximum` are inclusive.

    `show_default=False` is for a default that `help` puts in words; None is never shown.
    Types: str, int, float, bool, Path, Enum, or one of them `| None`, where None means not given.
    """
    metadata = {"option": _Description(help, unit, minimum, maximum, metavar, show_default)}
    return dataclasses.field(default=default, metadata=metadata, kw_only=True)


def command(*config_types: type, without: frozenset[str] = frozenset()) -> Callable[[Callable[..., None]], Any]:
    """Makes `run(config, …)`, one argument per type, into a function that typer takes as a command.

    Options of the same name are one option: the first type that has it describes it, all receive its value. Fields
    named in `without` are no options here and keep their defaults. The function runs `run` with the configurations read
    from argv and environment; a StartupError, from reading them or from `run`, ends the process with one line and exit
    code 2.
    """
    fields = _merged_fields(config_types, without)

    def decorate(run: Callable[..., None]) -> Callable[..., None]:
        def wrapped(**values: Any) -> None:
            try:
                parent_pid = _check_environment(os.environ, fields)
                if parent_pid is not None:
                    end_with_parent(parent_pid)
                _check_finite(values)
                run(*(_build(config_type, values) for config_type in config_types))
            except StartupError as error:
                exit_with(error)

        wrapped.__name__, wrapped.__doc__ = run.__name__, run.__doc__
        wrapped.__signature__ = inspect.Signature([_parameter(*field) for field in fields.values()])  # type: ignore[attr-defined]
        return wrapped

    return decorate


def to_argv(config: Any) -> list[str]:
    """The arguments that give a child process this configuration, defaults included: `--name=value`, None left out."""
    arguments = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, bool):
            arguments.append(_flag(field.name) if value else _flag(f"no_{field.name}"))
        elif value is not None:
            arguments.append(f"{_flag(field.name)}={value.value if isinstance(value, Enum) else value}")
    return arguments


def child_environment() -> dict[str, str]:
    """The environment for a child process of ours: without options, which come by argv; it ends with this process."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT_PREFIX)}
    return {**inherited, PARENT_PID_VARIABLE: str(os.getpid())}


def _merged_fields(
    config_types: tuple[type, ...], without: frozenset[str]
) -> dict[str, tuple[dataclasses.Field[Any], Any]]:
    merged: dict[str, tuple[dataclasses.Field[Any], Any]] = {}
    for config_type in config_types:
        hints = typing.get_type_hints(config_type)
        for field in dataclasses.fields(config_type):
            if field.name not in without:
                _, annotation = merged.setdefault(field.name, (field, hints[field.name]))
                assert annotation == hints[field.name], f"{field.name} has two types"
    return merged


def _parameter(field: dataclasses.Field[Any], annotation: Any) -> inspect.Parameter:
    description: _Description = field.metadata["option"]
    names = [_flag(field.name)]
    if annotation is bool:
        names = [f"{names[0]}/{_flag(f'no_{field.name}')}"]
    default = ... if field.default is dataclasses.MISSING else field.default
    numeric = _plain(annotation) in (int, float)
    info = typer.Option(
        default,
        *names,
        help=f"{description.help} ({description.unit})" if description.unit else description.help,
        envvar=ENVIRONMENT_PREFIX + field.name.upper(),
        min=description.minimum if numeric else None,
        max=description.maximum if numeric else None,
        metavar=description.metavar,
        show_default=description.show_default and default is not None,
    )
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=info, annotation=annotation)


def _plain(annotation: Any) -> Any:
    """T of `T | None`."""
    if isinstance(annotation, types.UnionType):
        return next(kind for kind in typing.get_args(annotation) if kind is not type(None))
    return annotation


def _build(config_type: type, values: Mapping[str, Any]) -> Any:
    return config_type(**{f.name: values[f.name] for f in dataclasses.fields(config_type) if f.name in values})


def _check_finite(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{_flag(name)}: {value} is not a finite number")


def _check_environment(environment: Mapping[str, str], fields: Mapping[str, object]) -> int | None:
    """Refuses CLFORGE_ variables that are no options. Returns the process id of the parent if it is one of ours."""
    known = {ENVIRONMENT_PREFIX + name.upper() for name in fields} | _NOT_OPTIONS
    for name in environment:
        if name.startswith(ENVIRONMENT_PREFIX) and name not in known and not _SERVICE_LINK.fullmatch(name):
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]}?" if close else "unset it, or see --help for those there are"
            raise ConfigError(f"environment variable {name} is no option of this command; {hint}")
    parent_pid = environment.get(PARENT_PID_VARIABLE)
    return int(parent_pid) if parent_pid and parent_pid.isdecimal() else None


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
