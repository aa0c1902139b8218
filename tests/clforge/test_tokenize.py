"""`clforge encode` and `clforge decode`: exact text in, exact text out, with a file alone or with a server."""

from __future__ import annotations

import asyncio
import io
import json
import os
import random
import sys
from pathlib import Path

import pytest

from clforge import cli
from clforge.cli import exit_codes
from clforge.cli.tokenize import parse_ids
from service_common.errors import ConfigError
from service_common.gguf_reader import GGUFReader
from tests.clforge.scripted_server import ScriptedServer, running
from tests.clforge.test_cli import Ended, run
from tests.gguf_builder import write_gguf
from tests.tokenizer_service.vocabulary_builder import bpe_keys, random_text, spm_keys
from tokenizer_service.vocabulary import Vocabulary

TEXT = " Grüße,\r\n\t<s> hello world \U0001f600\n\n"


@pytest.fixture(scope="module", params=["spm", "bpe"])
def vocab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file without tensors."""
    path = tmp_path_factory.mktemp("vocab") / f"{request.param}.gguf"
    write_gguf(path, "llama", spm_keys() if request.param == "spm" else bpe_keys(), {})
    return path


class Terminal:
    """Runs commands in this process, with bytes for standard input."""

    def __init__(self, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capfd, self._monkeypatch = capfd, monkeypatch

    def __call__(self, *arguments: str, stdin: bytes | str = b"") -> Ended:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        self._monkeypatch.setattr(sys, "argv", ["clforge", *arguments])
        self._monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return Ended(int(caught.value.code or 0), *self._capfd.readouterr())


@pytest.fixture
def terminal(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal of this process."""
    return Terminal(capfd, monkeypatch)


def loaded(path: Path) -> Vocabulary:
    """The vocabulary of a file."""
    with GGUFReader(path) as reader:
        return Vocabulary.from_gguf(reader)


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ([], {}),
        (["--no-special"], {"add_special": False}),
        (["--parse-special"], {"parse_special": True}),
    ],
)
def test_encode_prints_the_ids_of_exactly_the_text(
    terminal: Terminal, vocab: Path, options: list[str], arguments: dict[str, bool]
) -> None:
    """Every space and newline counts; without --json a line of numbers, with it an object, and nothing else."""
    expected = loaded(vocab).encode(TEXT, **arguments)
    plain = terminal("encode", "--vocab", str(vocab), *options, stdin=TEXT)
    assert plain == Ended(0, " ".join(map(str, expected)) + "\n", "")
    as_json = terminal("encode", "--vocab", str(vocab), "--json", *options, stdin=TEXT)
    assert (json.loads(as_json.out), as_json.code) == ({"ids": expected}, 0)


def test_an_empty_text_is_a_text(terminal: Terminal, vocab: Path) -> None:
    """It has no ids but those that the model adds, and no ids have no text."""
    assert terminal("encode", "--vocab", str(vocab), "--no-special") == Ended(0, "\n", "")
    assert terminal("encode", "--vocab", str(vocab), "--no-special", "--json") == Ended(0, '{"ids": []}\n', "")
    assert terminal("decode", "--vocab", str(vocab)) == Ended(0, "", "")


def test_decode_gives_back_what_encode_took(terminal: Terminal, vocab: Path) -> None:
    """Byte for byte, by either form of the ids, without a newline after it."""
    rng = random.Random(3)
    for text in (TEXT, *(random_text(rng, 200) for _ in range(20))):
        for options in ([], ["--json"]):
            ids = terminal("encode", "--vocab", str(vocab), *options, stdin=text).out
            assert terminal("decode", "--vocab", str(vocab), stdin=ids) == Ended(0, text, "")
    shown = terminal("decode", "--vocab", str(vocab), "--json", stdin=ids)
    assert json.loads(shown.out) == {"text": text}


def test_offsets_tell_what_each_id_stands_for(terminal: Terminal, vocab: Path) -> None:
    """In characters, beside the ids or the text, in a form that decode reads."""
    encoded = terminal("encode", "--vocab", str(vocab), "--json", "--offsets", stdin=TEXT)
    shown = json.loads(encoded.out)
    ids, ranges = loaded(vocab).encode_with_offsets(TEXT)
    assert shown == {"ids": ids, "offsets": [list(span) for span in ranges]}
    decoded = terminal("decode", "--vocab", str(vocab), "--json", "--offsets", stdin=encoded.out)
    text, ranges = loaded(vocab).decode_with_offsets(ids)
    assert json.loads(decoded.out) == {"text": text, "offsets": [list(span) for span in ranges]}
    assert terminal("decode", "--vocab", str(vocab), stdin=encoded.out) == Ended(0, TEXT, "")


def test_special_tokens_are_spelled_out_when_asked_for(terminal: Terminal, vocab: Path) -> None:
    """Otherwise they are no text."""
    bos = loaded(vocab).bos_text
    assert terminal("decode", "--vocab", str(vocab), stdin=f"{loaded(vocab).token_id(bos)}").out == ""
    kept = terminal("decode", "--vocab", str(vocab), "--keep-special", stdin=f"{loaded(vocab).token_id(bos)}")
    assert kept == Ended(0, bos, "")


@pytest.mark.parametrize("text", ["1 2 3", " 1,2,\n3\t", "[1, 2, 3]", '\n{"ids": [1, 2, 3]}', "1,,2 3"])
def test_ids_are_read_in_every_form(text: str) -> None:
    """White space, commas, a JSON list, and what encode prints."""
    assert parse_ids(text) == [1, 2, 3]


NO_NUMBERS = ["1 two", "-1", "1.0", "[1.0]", "[true]", "[null]", "[[1]]", '["1"]', "٣", "1_0", "0x1"]
TOO_LARGE = ["4294967296", "9" * 5000, f"[{'9' * 5000}]"]
NO_LISTS = ["{}", '{"ids": 1}', "[1", "[" * 100_000]


@pytest.mark.parametrize("text", [*NO_NUMBERS, *TOO_LARGE, *NO_LISTS])
def test_what_is_no_list_of_ids_is_refused(text: str) -> None:
    """One line that shows what is wrong, and not all of it."""
    with pytest.raises(ConfigError, match="standard input") as caught:
        parse_ids(text)
    assert len(str(caught.value)) < 300


def test_wrong_input_is_told_in_one_line(terminal: Terminal, vocab: Path) -> None:
    """What is not UTF-8, or no id of the vocabulary, exits with 2, and says which it is."""
    cases = [
        (("encode",), b"abc\xff", exit_codes.USAGE, "not UTF-8: byte 0xff at 3"),
        (("encode",), b"\xed\xa0\x80", exit_codes.USAGE, "not UTF-8"),  # a lone surrogate
        (("decode",), b"\x80", exit_codes.USAGE, "not UTF-8"),
        (("decode",), b"x", exit_codes.USAGE, "'x' is no token id"),
        (("decode",), b"1 100000", exit_codes.USAGE, "token_ids[1] is 100000; must be 0 to"),
        (("encode", "--offsets"), b"x", exit_codes.USAGE, "--offsets needs --json"),
        (("decode", "--offsets"), b"1", exit_codes.USAGE, "--offsets needs --json"),
        (("encode", "--pre-tokenizer", "crystal"), b"x", exit_codes.USAGE, "crystal"),
    ]
    for (command, *options), stdin, code, message in cases:
        if "--pre-tokenizer" in options and loaded(vocab).model != "gpt2":
            continue
        ended = terminal(command, "--vocab", str(vocab), *options, stdin=stdin)
        assert (ended.code, ended.out) == (code, "")
        assert message in ended.err
        assert ended.err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["encode"],
        ["decode"],
        ["encode", "--vocab", "a.gguf", "--target", "b"],
        ["encode", "--vocab", "/nowhere/a.gguf"],
        ["encode", "--target", "b", "--pre-tokenizer", "gpt-2"],
    ],
)
def test_wrong_usage_is_told_before_anything_is_read(terminal: Terminal, arguments: list[str]) -> None:
    """Exit code 2 at once: nobody types a text first."""
    ended = terminal(*arguments, stdin=b"\xff")
    assert (ended.code, ended.out) == (exit_codes.USAGE, "")
    assert "UTF-8" not in ended.err


def test_pre_tokenizer_overrides_the_files_rule(terminal: Terminal, tmp_path: Path) -> None:
    """A file whose rule nobody knows can be used by naming one."""
    path = tmp_path / "v.gguf"
    write_gguf(path, "llama", bpe_keys(pre="crystal-ball"), {})
    refused = terminal("encode", "--vocab", str(path), stdin="hello")
    assert refused.code == exit_codes.USAGE
    assert "crystal-ball" in refused.err
    assert terminal("encode", "--vocab", str(path), "--pre-tokenizer", "gpt-2", stdin="hello").code == 0


def test_help_teaches_by_examples(terminal: Terminal) -> None:
    """Each command shows how it is used, and what its exit codes mean."""
    for command in ("encode", "decode"):
        ended = terminal(command, "--help")
        assert ended.code == 0
        assert f"clforge {command} --vocab model.gguf" in ended.out
        assert "Exit codes: 0 done" in " ".join(ended.out.split())
        assert ("no ids at all have an empty text" in " ".join(ended.out.split())) == (command == "decode")


async def test_a_server_can_answer_instead(tmp_path: Path) -> None:
    """With --target the ids are the server's; no server is exit code 3."""
    async with running(ScriptedServer(), tmp_path) as target:  # type: ignore[abstract]
        encoded = await run("encode", "--target", target, "--json", stdin="hö\n".encode())
        assert (encoded.code, json.loads(encoded.out)) == (0, {"ids": list("hö\n".encode())})
        assert await run("decode", "--target", target, stdin=encoded.out.encode()) != encoded
        assert (await run("decode", "--target", target, stdin=b"104 105 10")) == Ended(0, "hi\n", "")
        encoded = await run("encode", "--target", target, "--json", "--offsets", stdin="hö".encode())
        assert json.loads(encoded.out)["offsets"] == [[0, 1], [1, 2], [1, 2]]
        refused = await run("decode", "--target", target, stdin=b"104 256")
        assert (refused.code, refused.out) == (exit_codes.USAGE, "")
        assert "sequences[0].ids[1]" in refused.err
    gone = await run("encode", "--target", target, stdin=b"x")
    assert (gone.code, gone.out) == (exit_codes.UNREACHABLE, "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
async def test_reader_that_goes_away_is_noticed_quietly(vocab: Path, unbuffered: str) -> None:
    """As in `clforge encode … | head -c 1`: exit code 1 and no word, however Python buffers."""
    reading, writing = os.pipe()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from clforge import cli; cli.main()", "encode", "--vocab", str(vocab)),
        stdin=asyncio.subprocess.PIPE,
        stdout=writing,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    os.close(writing)
    communicating = asyncio.create_task(process.communicate(b"hello world " * 50_000))
    await asyncio.to_thread(os.read, reading, 1)
    os.close(reading)
    _, err = await asyncio.wait_for(communicating, 20)
    assert (process.returncode, err) == (exit_codes.FAILED, b"")
