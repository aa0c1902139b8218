"""`encode` and `decode`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from clforge.cli import exit_codes
from clforge.cli.connection import Connection
from clforge.cli.option_groups import with_groups

app = typer.Typer()

_EXIT_CODES = f"{exit_codes.HELP} Input that is not UTF-8 is wrong usage."
_DECODE_EXIT_CODES = (
    f"{_EXIT_CODES} So is what is no token id, or none of the vocabulary's; no ids at all have an empty text."
)
_ENCODE_EXAMPLES = """Examples:

\b
  printf 'Hello, world' | clforge encode --vocab model.gguf
  clforge encode --vocab model.gguf --no-special --json < story.txt
  printf '<|im_end|>' | clforge encode --vocab model.gguf --parse-special
  clforge encode --vocab model.gguf --json --offsets < story.txt
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
_PreTokenizer = Annotated[
    str | None,
    typer.Option(
        help="With --vocab: split text by this rule instead of the one that the file names (tokenizer.ggml.pre)",
        metavar="NAME",
    ),
]
_Offsets = Annotated[
    bool, typer.Option("--offsets", help='With --json: add "offsets", a [start, end] in characters for each id')
]


@dataclass(frozen=True, kw_only=True)
class ConnectionInstead(Connection):
    """A server in place of a file."""

    target: Annotated[str | None, typer.Option(help="Use the server at this address instead", metavar="ADDRESS")] = None


@app.command(epilog=f"{_ENCODE_EXAMPLES}\n{_EXIT_CODES}")
@with_groups
def encode(
    *,
    vocab: _Vocab = None,
    pre_tokenizer: _PreTokenizer = None,
    no_special: Annotated[
        bool, typer.Option("--no-special", help="Leave out the begin- and end-of-text that the model asks for")
    ] = False,
    parse_special: Annotated[
        bool, typer.Option("--parse-special", help="Read special tokens spelled in the text as such, not as text")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help='Print {"ids": [...]}')] = False,
    offsets: _Offsets = False,
    connection: ConnectionInstead,
) -> None:
    """Turn standard input into token ids, separated by spaces. The text is taken as it is, UTF-8 with every newline:
    `echo` gives one more token than `printf`. With --vocab no server is needed."""
    from clforge.cli import tokenize

    printed = tokenize.printer(vocab, connection, pre_tokenizer)
    answer = tokenize.encode(
        add_special=not no_special, parse_special=parse_special, as_json=as_json, with_offsets=offsets
    )
    sys.exit(printed(answer))


@app.command(epilog=f"{_DECODE_EXAMPLES}\n{_DECODE_EXIT_CODES}")
@with_groups
def decode(
    *,
    vocab: _Vocab = None,
    keep_special: Annotated[
        bool, typer.Option("--keep-special", help="Spell control tokens out, instead of leaving them out")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help='Print {"text": "..."}')] = False,
    offsets: _Offsets = False,
    connection: ConnectionInstead,
) -> None:
    """Turn token ids on standard input into their text. They are separated by white space or commas, or are JSON as
    `encode --json` prints it. The text is written as it is, with no newline after it; bytes that are not UTF-8 become
    U+FFFD."""
    from clforge.cli import tokenize

    printed = tokenize.printer(vocab, connection)
    sys.exit(printed(tokenize.decode(skip_special=not keep_special, as_json=as_json, with_offsets=offsets)))
