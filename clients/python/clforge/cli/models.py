"""`clforge models`: the GGUF files in some folders, and which of them can be served."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from clforge.cli import exit_codes
from clforge.cli.formats import count, size
from clforge.cli.request_table import output
from engine_service.host.inspection import ModelReport, inspect_model
from service_common.errors import ConfigError, ModelFileError
from service_common.terminal import printable

# Beside the folder that one is in: where the tools that download models keep them.
DEFAULT_FOLDERS = ("~/models", "~/.cache/huggingface/hub", "~/.lmstudio/models", "~/.cache/lm-studio/models")

_MAX_DEPTH = 8
_MAX_ENTRIES = 200_000  # files and folders looked at


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A file. `quantization` is the type of most of its bytes; `problem` says why it cannot be served, None where it
    can; a file that is no sound GGUF has nothing else to tell."""

    path: str
    file_bytes: int
    name: str | None = None
    architecture: str | None = None
    quantization: str | None = None
    num_parameters: int | None = None
    problem: str | None = None


def models(folders: Sequence[Path], *, as_json: bool) -> int:
    """Prints what the folders, or else the default ones, hold; returns the exit code. ConfigError for a folder that is
    not there."""
    for folder in folders:
        if not folder.exists():
            raise ConfigError(f"there is no {folder}")
    asked = folders or [Path(), *filter(Path.is_dir, map(Path.expanduser, map(Path, DEFAULT_FOLDERS)))]
    found: list[FoundModel] = []
    with Console(stderr=True).status("looking for models") as status:  # shown on terminals only
        for path in find(asked):
            status.update(Text(f"looking for models: {len(found)} found; reading {printable(str(path))}"))
            found.append(describe(path))
    if as_json:
        typer.echo(json.dumps(list(map(asdict, found)), indent=2))
    elif found:
        output().print(_table(found))
    else:
        typer.echo(f"no GGUF file in {', '.join(map(str, asked))}; name folders: clforge models FOLDER", err=True)
    return exit_codes.OK


def find(folders: Iterable[Path]) -> Iterator[Path]:
    """The regular files `*.gguf` in folders and those below, each file once.

    Links to files are followed, since download tools keep models by link; links to folders are not. Looks at a bounded
    number of files and folders.
    """
    seen = set[tuple[int, int]]()
    for path in islice(chain.from_iterable(map(_below, folders)), _MAX_ENTRIES):
        identity = _identity(path)
        if identity is not None and identity not in seen:
            seen.add(identity)
            yield path


def _below(folder: Path) -> Iterator[Path]:
    """A file itself; what a folder and those below hold, by name."""
    if not folder.is_dir():
        yield folder
        return
    for parent, folders, files in os.walk(folder):
        depth = len(Path(parent).relative_to(folder).parts)
        folders[:] = sorted(folders) if depth < _MAX_DEPTH else []
        for name in (*folders, *sorted(files)):
            yield Path(parent, name)


def describe(path: Path) -> FoundModel:
    """What a file holds, whatever it holds."""
    try:
        file_bytes = path.stat().st_size
        report = inspect_model(path)
    except ModelFileError as error:
        return FoundModel(str(path), file_bytes, problem=str(error))
    except OSError as error:
        return FoundModel(str(path), 0, problem=error.strerror or str(error))
    largest = max(report.tensor_types, key=lambda each: each.file_bytes, default=None)
    return FoundModel(
        path=str(path),
        file_bytes=file_bytes,
        name=report.name,
        architecture=report.architecture,
        quantization=None if largest is None else largest.type,
        num_parameters=report.num_parameters,
        problem=report.problem or _without_layout(report),
    )


def _without_layout(report: ModelReport) -> str | None:
    types = ", ".join(each.type for each in report.tensor_types if each.device_bytes is None)
    return f"this version does not serve weights in {types}" if types else None


def _identity(path: Path) -> tuple[int, int] | None:
    """What names a regular file called `*.gguf`, whatever links lead to it; None for anything else."""
    if path.suffix.lower() != ".gguf":
        return None
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else None


def _table(found: Iterable[FoundModel]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("FILE", "NAME", "ARCHITECTURE", "TYPE"):
        table.add_column(name, overflow="fold")
    for name in ("PARAMETERS", "SIZE"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("SERVED", overflow="fold", max_width=40)
    for model in found:
        texts = (model.path, model.name, model.architecture, model.quantization)
        parameters = "-" if model.num_parameters is None else count(model.num_parameters)
        served = "yes" if model.problem is None else f"no: {model.problem}"
        figures = (parameters, size(model.file_bytes), served)
        table.add_row(*(Text(printable(text or "-")) for text in (*texts, *figures)))
    return table
