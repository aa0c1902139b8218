"""Options from dataclasses: argv, environment, help, and their errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from service_common.errors import ConfigError
from service_common.logging import LogFormat
from service_common.options import child_environment, command, option, to_argv


@dataclass(frozen=True)
class Engine:
    """Options of every kind."""

    model: Path = option(help="Model file", metavar="FILE")  # noqa: RUF009 - a field, not a value
    grpc: str = option("127.0.0.1:50052", "Where to listen")
    drain_seconds: float = option(30.0, "Time for requests in flight", unit="seconds", minimum=0)
    num_threads: int | None = option(None, "Threads", minimum=1, maximum=64)
    log_format: LogFormat = option(LogFormat.AUTO, "How log lines look")  # noqa: RUF009
    insecure: bool = option(False, "Listen beyond this machine in plaintext")


@dataclass(frozen=True)
class Door:
    """Shares two options with Engine."""

    grpc: str = option("127.0.0.1:50051", "Where clients come in")
    engine: str = option("127.0.0.1:50052", "Where the engine is")
    drain_seconds: float = option(5.0, "Another default")


def run(
    arguments: list[str],
    *types: type,
    environment: dict[str, str] | None = None,
    without: frozenset[str] = frozenset(),
    body: Callable[..., None] | None = None,
) -> tuple[Any, list[Any]]:
    """Runs a command made of `types`; returns the runner's result and the configurations that arrived."""
    arrived: list[Any] = []

    def collect(*configs: Any) -> None:
        """Help of the command."""
        arrived.extend(configs)

    app = typer.Typer(rich_markup_mode=None)
    app.command()(command(*types, without=without)(body or collect))
    return CliRunner().invoke(app, arguments, env=environment), arrived


def test_defaults_and_argv_give_a_config() -> None:
    """Given options arrive typed, the others keep their defaults."""
    result, configs = run(["--model", "m.gguf", "--num-threads=2", "--insecure"], Engine)
    assert result.exit_code == 0
    assert configs == [Engine(model=Path("m.gguf"), num_threads=2, insecure=True)]


def test_environment_gives_options_and_argv_wins() -> None:
    """CLFORGE_<NAME> sets an option unless argv does."""
    environment = {"CLFORGE_MODEL": "a", "CLFORGE_DRAIN_SECONDS": "1", "CLFORGE_LOG_FORMAT": "json"}
    _, configs = run(["--model", "b"], Engine, environment=environment)
    assert configs == [Engine(model=Path("b"), drain_seconds=1, log_format=LogFormat.JSON)]


def test_help_shows_unit_default_range_and_variable() -> None:
    """--help is complete without the source."""
    output = " ".join(run(["--help"], Engine)[0].output.split())
    for part in ("Time for requests in flight (seconds)", "default: 30.0", "x>=0", "CLFORGE_DRAIN_SECONDS", "FILE"):
        assert part in output


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model", "m", "--bogus"],
        [],
        ["--model", "m", "--num-threads", "0"],
        ["--model", "m", "--drain-seconds", "nan"],
    ],
    ids=["unknown", "missing", "range", "nan"],
)
def test_wrong_arguments_exit_2_without_traceback(arguments: list[str]) -> None:
    """Unknown, missing, out of range and NaN are usage errors, and nothing runs."""
    result, configs = run(arguments, Engine)
    assert (result.exit_code, configs) == (2, [])
    assert "Traceback" not in result.output


def test_infinite_number_is_refused() -> None:
    """A float option without a maximum still needs a finite number."""
    result, _ = run(["--model", "m", "--drain-seconds", "inf"], Engine)
    assert result.exit_code == 2
    assert "--drain-seconds: inf is not a finite number" in result.output


def test_unknown_variable_is_an_error_that_names_the_nearest() -> None:
    """A mistyped variable does not pass unseen."""
    result, configs = run(["--model", "m"], Engine, environment={"CLFORGE_DRAIN_SECOND": "1"})
    assert (result.exit_code, configs) == (2, [])
    assert result.output.strip().endswith("did you mean CLFORGE_DRAIN_SECONDS?")


@pytest.mark.parametrize("name", ["CLFORGE_SERVICE_HOST", "CLFORGE_PORT_50051_TCP_ADDR", "CLFORGE_WEB_SERVICE_PORT"])
def test_variables_of_kubernetes_service_links_are_no_options(name: str) -> None:
    """A Kubernetes service called clforge does not break the containers beside it."""
    assert run(["--model", "m"], Engine, environment={name: "x"})[0].exit_code == 0


def test_two_types_share_options_of_one_name() -> None:
    """The first type's default holds; a given value reaches both; a field left out keeps each type's default."""
    _, (door, engine) = run(["--model", "m"], Door, Engine, without=frozenset({"grpc", "engine"}))
    assert (door.drain_seconds, engine.drain_seconds) == (5.0, 5.0)
    assert (door.grpc, engine.grpc) == ("127.0.0.1:50051", "127.0.0.1:50052")
    assert run(["--model", "m", "--engine", "x"], Door, Engine, without=frozenset({"engine"}))[0].exit_code == 2


def test_startup_error_is_one_line() -> None:
    """A StartupError from the command ends with exit code 2 and one line, whatever its message holds."""

    def fail(_config: Engine) -> None:
        raise ConfigError("--grpc: taken\nchoose another")

    result, _ = run(["--model", "m"], Engine, body=fail)
    assert result.exit_code == 2
    assert result.output == "clforge: --grpc: taken choose another\n"


def test_to_argv_round_trips() -> None:
    """A child process started with to_argv gets an equal configuration."""
    config = Engine(model=Path("-odd name"), drain_seconds=0.5, log_format=LogFormat.JSON, insecure=True)
    assert run(to_argv(config), Engine)[1] == [config]
    assert "--no-insecure" in to_argv(Engine(model=Path("m")))


def test_child_environment_holds_no_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child takes its options from argv alone."""
    monkeypatch.setenv("CLFORGE_MODEL", "m")
    monkeypatch.setenv("OTHER", "kept")
    environment = child_environment()
    assert environment["OTHER"] == "kept"
    assert [name for name in environment if name.startswith("CLFORGE_")] == ["CLFORGE_PARENT_PID"]
