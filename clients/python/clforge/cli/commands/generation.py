"""`generate` and `chat`."""

from __future__ import annotations

import sys
from functools import partial
from typing import Annotated

import typer

from clforge.cli import exit_codes
from clforge.cli.option_groups import with_groups
from clforge.cli.sampling import Sampling
from clforge.cli.server import Server
from service_common.errors import ConfigError

app = typer.Typer()

_GENERATE_EXAMPLES = """Examples:

\b
  clforge generate -p "Once upon a time" --max-tokens 50
  echo "What is 4 + 5?" | clforge generate --chat -p - --temperature 0
  clforge generate --chat -p "Tell me a story." --seed 7 --json
"""
_CHAT_EXAMPLES = """Examples:

\b
  clforge chat
  clforge chat --system "You are a helpful assistant." --temperature 0.7
  printf 'My name is Ada.\\nWhat is my name?\\n' | clforge chat --temperature 0
"""
_Events = Annotated[bool, typer.Option("--json", help="Print each event as a line of JSON")]
_Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Tell more on standard error")]


@app.command(epilog=f"{_GENERATE_EXAMPLES}\n{exit_codes.HELP}")
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
    as_json: _Events = False,
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


@app.command(epilog=f"{_CHAT_EXAMPLES}\n{exit_codes.HELP}")
@with_groups
def chat(
    *,
    system: Annotated[str | None, typer.Option(help="What the model is told before the first turn")] = None,
    as_json: _Events = False,
    verbose: _Verbose = False,
    sampling: Sampling,
    server: Server,
) -> None:
    """Talk with a model, turn by turn. Ctrl-C ends an answer, Ctrl-D the chat, and /help lists commands. From a pipe
    each line is a turn."""
    from clforge.cli.chat import chat as talk
    from clforge.cli.conversation import Conversation

    conversation = Conversation(system, sampling.params())
    sys.exit(server.run(partial(talk, conversation=conversation, as_json=as_json), verbose=verbose))


def _read_prompt(option: str) -> str:
    if option != "-":
        return option
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"-p -: standard input is not UTF-8 at byte {error.start}") from error
