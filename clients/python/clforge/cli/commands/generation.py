"""`generate`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from clforge.cli.option_groups import with_groups
from clforge.cli.sampling import Sampling
from clforge.cli.server import Server
from service_common.errors import ConfigError

app = typer.Typer()

_Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Tell more on standard error")]


@app.command()
@with_groups
def generate(
    prompt: Annotated[
        str, typer.Option("--prompt", "-p", help="Text to continue, or with --chat to answer; - reads standard input")
    ],
    *,
    chat: Annotated[
        bool,
        typer.Option(
            "--chat",
            help="Answer the prompt as a user's message, by the model's chat template; what a model thinks before it "
            "answers goes to standard error",
        ),
    ] = False,
    system: Annotated[str | None, typer.Option(help="With --chat: what the model is told before the message")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print each event as a line of JSON")] = False,
    verbose: _Verbose = False,
    sampling: Sampling,
    server: Server,
) -> None:
    """Generate text from a prompt, or with --chat an answer to it. It streams to standard output, all else goes to
    standard error. Ctrl-C cancels."""
    from clforge.chat import Chat
    from clforge.cli.generate import Generation, generating

    if system is not None and not chat:
        raise ConfigError("--system needs --chat: without a chat template, put what you have to say into the prompt")
    text = _read_prompt(prompt)
    asked = Chat(text, system) if chat else text
    wanted = Generation(asked, sampling.params(), as_json, summary=verbose or sys.stderr.isatty())
    sys.exit(server.run(generating(wanted), verbose=verbose))


def _read_prompt(option: str) -> str:
    if option != "-":
        return option
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"-p -: standard input is not UTF-8 at byte {error.start}") from error
