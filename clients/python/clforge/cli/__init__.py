"""The command `clforge`."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Never, cast

import typer

from clforge.cli import exit_codes
from clforge.cli.config import BenchPeer, ServeConfig
from clforge.client import DEFAULT_TARGET
from engine_service.bundled import BUNDLED_MODEL
from engine_service.config import EngineConfig
from service_common.errors import ConfigError, StartupError
from service_common.lifecycle import exit_with
from service_common.options import command
from tokenizer_service.config import TokenizerConfig

if TYPE_CHECKING:
    from clforge.params import Params

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its tables cut long option names off
    help="Serve GGUF language models over gRPC on any OpenCL device, and use such servers.",
    epilog=exit_codes.HELP,
)
_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
_TOKENIZE_EXIT_CODES = f"{exit_codes.HELP} Input that is not UTF-8, or holds no ids, is wrong usage."
_ENCODE_EXAMPLES = """Examples:

\b
  printf 'Hello, world' | clforge encode --vocab model.gguf
  clforge encode --vocab model.gguf --no-special --json < story.txt
  printf '<|im_end|>' | clforge encode --vocab model.gguf --parse-special
  clforge encode --target 127.0.0.1:50051 < story.txt
"""
_DECODE_EXAMPLES = """Examples:

\b
  echo 9906 11 1917 | clforge decode --vocab model.gguf
  clforge encode --vocab model.gguf --json < story.txt | clforge decode --vocab model.gguf | cmp - story.txt
  echo '[1, 15043]' | clforge decode --vocab model.gguf --keep-special --json
"""
_Vocab = Annotated[
    Path | None, typer.Option(help="Use the vocabulary of this GGUF file; it needs no tensors", metavar="FILE")
]
_Target = Annotated[str | None, typer.Option(help="Use the server at this address instead", metavar="ADDRESS")]
_PreTokenizer = Annotated[
    str | None,
    typer.Option(
        help="With --vocab: split text by this rule instead of the one that the file names (tokenizer.ggml.pre)",
        metavar="NAME",
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON")]


def main() -> None:
    """Runs the command of this process's arguments and ends the process; see exit_codes."""
    _open_closed_streams()
    try:
        app(prog_name="clforge")
    except StartupError as error:
        exit_with(error)
    except KeyboardInterrupt:
        sys.exit(exit_codes.INTERRUPTED)
    except OSError as error:
        # Without this Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # else whoever read us has gone
            sys.stderr.write(f"clforge: {error.strerror or error}\n")
        sys.exit(exit_codes.FAILED)


def _open_closed_streams() -> None:
    """Gives standard streams that were closed (`>&-`) a file, since Python makes them None, and a socket that takes a
    closed stream's number would get what is written there."""
    sys.stdin = sys.stdin or Path(os.devnull).open()  # noqa: SIM115
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"clforge {version('clforge')}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit")
    ] = False,
) -> None: ...


@app.command()
@command(EngineConfig, TokenizerConfig, ServeConfig, without=frozenset({"engine"}))
def serve(engine: EngineConfig, tokenizer: TokenizerConfig, own: ServeConfig) -> None:
    """Serve a GGUF model: engine and tokenizer, until a signal. Prints `ready ADDRESS` once requests can be served."""
    from clforge.cli.serve import run

    run(engine, replace(tokenizer, metrics=own.tokenizer_metrics))


@app.command(context_settings=_PASS_ON)
def engine(context: typer.Context) -> None:
    """Run the engine alone; --help shows its options."""
    _become("engine_service", context.args)


@app.command(context_settings=_PASS_ON)
def tokenizer(context: typer.Context) -> None:
    """Run the tokenizer service alone; --help shows its options."""
    _become("tokenizer_service", context.args)


@app.command()
def generate(
    prompt: Annotated[
        str, typer.Option("--prompt", "-p", help="Text to continue, or with --chat to answer; - reads standard input")
    ],
    chat: Annotated[
        bool,
        typer.Option(
            "--chat",
            help="Answer the prompt as a user's message, by the model's chat template; what a model thinks before it "
            "answers goes to standard error",
        ),
    ] = False,
    system: Annotated[str | None, typer.Option(help="With --chat: what the model is told before the message")] = None,
    target: Annotated[
        str | None,
        typer.Option(
            help=f"Use the server at this address; default: {DEFAULT_TARGET}, if one listens there", metavar="ADDRESS"
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            help="Start a private server with this GGUF file; default, without a server: the bundled clforge-tiny",
            metavar="FILE",
        ),
    ] = None,
    device: Annotated[
        int | None,
        typer.Option(help="Start a private server on this OpenCL device; default: 0 of `clforge devices`", min=0),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Start a private server with so many CPU threads; default: the quota", min=1)
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Most tokens; default: to the end", min=1)] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy; default: 1")] = None,
    top_k: Annotated[int | None, typer.Option(help="Keep so many likely tokens; default: 0, all", min=0)] = None,
    top_p: Annotated[float | None, typer.Option(help="Keep likely tokens up to this sum; default: 1, all")] = None,
    min_p: Annotated[float | None, typer.Option(help="Drop tokens below this share of the best; default: 0")] = None,
    typical_p: Annotated[float | None, typer.Option(help="Keep typical tokens up to this sum; default: 1, all")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="Divides logits of known tokens; default: 1")] = None,
    frequency_penalty: Annotated[float | None, typer.Option(help="Taken per time generated; default: 0")] = None,
    presence_penalty: Annotated[float | None, typer.Option(help="Taken if generated at all; default: 0")] = None,
    seed: Annotated[int | None, typer.Option(help="Key of the random numbers; default: drawn", min=0)] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends the output; may be repeated")] = None,
    json_schema: Annotated[
        str | None,
        typer.Option(help="Give JSON that is valid by this schema: a file, or the schema itself", metavar="FILE|TEXT"),
    ] = None,
    regex: Annotated[str | None, typer.Option(help="Give a text that matches this expression as a whole")] = None,
    grammar: Annotated[
        Path | None, typer.Option(help="Give a text of this grammar, in Lark or GBNF", metavar="FILE")
    ] = None,
    choice: Annotated[list[str] | None, typer.Option(help="Give one of these texts; to be repeated")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print each event as a line of JSON")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Tell more on standard error")] = False,
) -> None:
    """Generate text from a prompt, or with --chat an answer to it. It streams to standard output, all else goes to
    standard error. Ctrl-C cancels."""
    from clforge.chat import Chat
    from clforge.cli.constraints import read_text, schema_text
    from clforge.cli.generate import Generation, PrivateServer, run

    given = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "typical_p": typical_p,
        "repetition_penalty": repetition_penalty,
        "frequency_penalty": frequency_penalty,
        "presence_penalty": presence_penalty,
        "seed": seed,
        "stop": stop or None,
        "json_schema": schema_text(json_schema),
        "regex": regex,
        "grammar": None if grammar is None else read_text(grammar, "--grammar"),
        "choices": choice or None,
    }
    params = cast("Params", {name: value for name, value in given.items() if value is not None})
    if system is not None and not chat:
        raise ConfigError("--system needs --chat: without a chat template, put what you have to say into the prompt")
    text = _read_prompt(prompt)
    generation = Generation(Chat(text, system) if chat else text, params, as_json, verbose or sys.stderr.isatty())
    sys.exit(run(generation, target, PrivateServer(model, device, threads, verbose)))


@app.command(epilog=f"{_ENCODE_EXAMPLES}\n{_TOKENIZE_EXIT_CODES}")
def encode(
    vocab: _Vocab = None,
    target: _Target = None,
    pre_tokenizer: _PreTokenizer = None,
    no_special: Annotated[
        bool, typer.Option("--no-special", help="Leave out the begin- and end-of-text that the model asks for")
    ] = False,
    parse_special: Annotated[
        bool, typer.Option("--parse-special", help="Read special tokens spelled in the text as such, not as text")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help='Print {"ids": [...]}')] = False,
) -> None:
    """Turn standard input into token ids, separated by spaces. The text is taken as it is, UTF-8 with every newline:
    `echo` gives one more token than `printf`. With --vocab no server is needed."""
    from clforge.cli import tokenize

    printed = tokenize.printer(vocab, target, pre_tokenizer)
    sys.exit(printed(tokenize.encode(add_special=not no_special, parse_special=parse_special, as_json=as_json)))


@app.command(epilog=f"{_DECODE_EXAMPLES}\n{_TOKENIZE_EXIT_CODES}")
def decode(
    vocab: _Vocab = None,
    target: _Target = None,
    keep_special: Annotated[
        bool, typer.Option("--keep-special", help="Spell control tokens out, instead of leaving them out")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help='Print {"text": "..."}')] = False,
) -> None:
    """Turn token ids on standard input into their text. They are separated by white space or commas, or are JSON as
    `encode --json` prints it. The text is written as it is, with no newline after it; bytes that are not UTF-8 become
    U+FFFD."""
    from clforge.cli import tokenize

    printed = tokenize.printer(vocab, target)
    sys.exit(printed(tokenize.decode(skip_special=not keep_special, as_json=as_json)))


@app.command()
def inspect(
    model: Annotated[
        Path, typer.Argument(help="A GGUF file; default: the bundled clforge-tiny", metavar="FILE", show_default=False)
    ] = BUNDLED_MODEL,
    as_json: _Json = False,
) -> None:
    """Show what a model file holds. Tells whether it can be served, and what its weights cost on the device."""
    from clforge.cli import machine

    sys.exit(machine.inspect(model, as_json=as_json))


@app.command()
def devices(as_json: _Json = False) -> None:
    """List the OpenCL devices, as --device counts them."""
    from clforge.cli import machine

    sys.exit(machine.devices(as_json=as_json))


@app.command()
def doctor(
    device: Annotated[int, typer.Option(help="The device to test", min=0)] = 0,
    cache_dir: Annotated[Path | None, typer.Option(help="Folder of compiled kernels", metavar="DIR")] = None,
    as_json: _Json = False,
) -> None:
    """Check whether this machine can serve. Cache folder, drivers, linker, a kernel, memory: each with its remedy."""
    from clforge.cli import machine

    sys.exit(machine.doctor(device, cache_dir, as_json=as_json))


@app.command()
def bench(
    model: Annotated[
        Path, typer.Argument(help="A GGUF file; default: the bundled clforge-tiny", metavar="FILE", show_default=False)
    ] = BUNDLED_MODEL,
    against: Annotated[
        BenchPeer | None,
        typer.Option(help="Measure this, too, in turns; LLAMA_CPP_PYTHON names a Python that has llama-cpp-python"),
    ] = None,
    output: Annotated[Path | None, typer.Option("--json", help="Write results there", metavar="FILE")] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Time each kernel, too, and hold it against what the machine can do")
    ] = False,
    threads: Annotated[int | None, typer.Option(help="CPU threads; default: the quota", min=1)] = None,
    pairs: Annotated[int | None, typer.Option(help="Measurements of each workload; default: 5", min=1)] = None,
) -> None:
    """Measure tokens per second: prefill, and decode of 1, 8 and 32 sequences. Progress goes to standard error."""
    from clforge.cli.bench import BenchOptions, run

    sys.exit(run(model, BenchOptions(against, output, profile, threads, pairs)))


def _become(module: str, arguments: list[str]) -> Never:
    """Makes this process run a service, so that signals and exit codes are the service's own."""
    os.execv(sys.executable, [sys.executable, "-P", "-m", module, *arguments])


def _read_prompt(option: str) -> str:
    if option != "-":
        return option
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"-p -: standard input is not UTF-8 at byte {error.start}") from error
