"""What the options of `clforge generate` say of the output's form."""

from __future__ import annotations

from pathlib import Path

from service_common.errors import ConfigError


def schema_text(given: str | None) -> str | None:
    """The schema itself where one is written out, else the text of the file that is named."""
    if given is None or given.lstrip().startswith(("{", "true")):
        return given
    return read_text(Path(given), "--json-schema")


def read_text(path: Path, option: str) -> str:
    """The file that `option` names. ConfigError where it cannot be read."""
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{option} is {path}, which cannot be read: {error}") from error
