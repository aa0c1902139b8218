"""Mistakes of a user at the command line: one line that says what to do, the documented exit code, nothing left.

Every command here runs as a user runs it. Its folder for temporary files must be empty again when it has ended.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from clforge import Client
from clforge.cli import exit_codes
from clforge.errors import InvalidRequestError
from service_common.options import PARENT_PID_VARIABLE
from tests.gguf_builder import tiny_llama
from tests.integration.served import CLFORGE, served

SECONDS = 60.0  # no command here takes longer; more is a hang
CONTEXT_LENGTH = 64


@dataclass(frozen=True)
class Ended:
    """What a command left."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class User:
    """Somebody with a shell: a folder for temporary files of their own, and settings in the environment."""

    folder: Path
    settings: dict[str, str] = field(default_factory=dict)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Starts a command in a session of its own, so that what it leaves behind can be found."""
        return subprocess.Popen(
            [*CLFORGE, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self._environment(),
            cwd="/",
            start_new_session=True,
        )

    def end(self, process: subprocess.Popen[str]) -> Ended:
        """Waits for a command; it must leave no traceback, no process and no file."""
        try:
            out, err = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
        return self._checked(process.returncode, out, err, process.pid)

    def run(self, *arguments: str) -> Ended:
        """Runs a command to its end."""
        return self.end(self.start(*arguments))

    def shell(self, script: str, **variables: str) -> Ended:
        """Runs a line of shell, in which $clforge is the program and `variables` are set."""
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", script],
            env={**self._environment(), "clforge": CLFORGE[0], **variables},
            capture_output=True,
            timeout=SECONDS,
            check=False,
            cwd="/",
        )
        return self._checked(done.returncode, done.stdout.decode(), done.stderr.decode(), None)

    def _environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if name != PARENT_PID_VARIABLE}
        return {**inherited, "TMPDIR": str(self.folder), **self.settings}

    def _checked(self, code: int, out: str, err: str, session: int | None) -> Ended:
        assert "Traceback" not in err
        assert list(self.folder.iterdir()) == []
        if session is not None:
            assert _processes_of(session) == []
        return Ended(code, out, err)


def _processes_of(session: int) -> list[str]:
    """Command lines of the session's processes that still run."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            state, _, _, its_session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(its_session) == session and state != "Z":
                found.append((entry / "cmdline").read_text())
        except (OSError, ValueError):
            continue  # no process, or one that has just ended
    return found


def assert_refused(ended: Ended, *words: str) -> None:
    """Exit code 2, nothing on standard output, one line with all of `words` on standard error."""
    assert (ended.code, ended.out) == (exit_codes.USAGE, ""), ended.err
    assert ended.err.startswith("clforge: ")
    assert ended.err.count("\n") == 1, ended.err
    assert [word for word in words if word not in ended.err] == []


@pytest.fixture
def user(tmp_path: Path) -> User:
    """A user without settings."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    return User(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound model."""
    path = tmp_path_factory.mktemp("bad_input") / "tiny.gguf"
    tiny_llama(path, seed=1, context_length=CONTEXT_LENGTH)
    return path


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[str]:
    """The address of a server that all tests of requests share; it must drain with exit code 0 in the end."""
    with served(model) as address:
        yield address


def missing(path: Path) -> None:
    """Leaves `path` alone."""


def truncated(path: Path) -> None:
    """A good file cut in its tensor data."""
    tiny_llama(path, seed=1)
    os.truncate(path, path.stat().st_size - 1)


def of_unknown_architecture(path: Path) -> None:
    """A file whose architecture is not served."""
    tiny_llama(path, seed=1, arch="mamba")


def of_unknown_tensor_type(path: Path) -> None:
    """A good file, but for the type of its first tensor."""
    tiny_llama(path, seed=1)
    data, name = bytearray(path.read_bytes()), b"token_embd.weight"
    type_at = data.index(name) + len(name) + 4 + 2 * 8
    data[type_at : type_at + 4] = (99).to_bytes(4, "little")
    path.write_bytes(data)


def with_special_token_outside(path: Path) -> None:
    """A file whose beginning-of-sequence id is no id of its vocabulary."""
    tiny_llama(path, seed=1, keys={"tokenizer.ggml.bos_token_id": 5000})


def with_unknown_vocabulary(path: Path) -> None:
    """A file with a vocabulary that only the tokenizer service can tell to be unusable."""
    tiny_llama(path, seed=1, keys={"tokenizer.ggml.model": "plamo2"})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (missing, ["{path}", "No such file"]),
        (Path.mkdir, ["{path}", "folder", "regular file"]),
        (os.mkfifo, ["{path}", "FIFO", "regular file"]),
        (truncated, ["{path}", "offset of ", "file's end"]),
        (of_unknown_architecture, ["{path}", "general.architecture is mamba", "llama, qwen2"]),
        (of_unknown_tensor_type, ["{path}", "type of token_embd.weight is 99"]),
        (with_special_token_outside, ["{path}", "bos_token_id is 5000", "0 to 301"]),
        (with_unknown_vocabulary, ["tokenizer.ggml.model is plamo2", "gpt2, gemma4"]),
    ],
)
def test_bad_model_file_is_refused(user: User, tmp_path: Path, make: Callable[[Path], None], words: list[str]) -> None:
    """One line names file, field, value and limit; nothing hangs, a FIFO included (ISSUE-2)."""
    path = tmp_path / "bad.gguf"
    make(path)
    ended = user.run("serve", "--model", str(path), "--grpc", "127.0.0.1:0", "--log-level", "warning")
    assert_refused(ended, *(word.format(path=path) for word in words))


def test_private_server_refuses_a_bad_file_as_serve_does(user: User, tmp_path: Path) -> None:
    """`generate --model` passes the engine's line and exit code on."""
    assert_refused(user.run("generate", "-p", "x", "--model", str(tmp_path / "none")), "none", "No such file")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--block-size", "12"], ["--block-size is 12", "multiple of 8"]),
        (["--max-num-seqs", "600"], ["--max-num-batched-tokens is 512", "--max-num-seqs, 600"]),
        (["--kv-cache-bytes", "1"], ["--kv-cache-bytes is 1", "blocks of", "give more memory"]),
        (["--kv-cache-bytes", "2GB"], ["--kv-cache-bytes is '2GB'", "2GiB"]),
        (["--context-length", "100000"], ["--context-length is 100000", f"at most {CONTEXT_LENGTH} tokens"]),
        (["--device", "99"], ["--device 99", "clforge devices"]),
        (["--grpc", "0.0.0.0:1"], ["0.0.0.0:1", "--insecure"]),
        (["--metrics", "0.0.0.0:1"], ["--metrics: 0.0.0.0:1", "--insecure"]),
        (["--tokenizer-metrics", "0.0.0.0:1"], ["--tokenizer-metrics: 0.0.0.0:1", "--insecure"]),
        (["--metrics", "unix:/x"], ["--metrics: 'unix:/x'", "host:port"]),
        (
            ["--metrics", "127.0.0.1:9", "--tokenizer-metrics", "127.0.0.1:9"],
            ["--metrics and --tokenizer-metrics are both 127.0.0.1:9"],
        ),
        (["--grpc", "nonsense"], ["--grpc: 'nonsense'", "host:port"]),
        (["--drain-seconds", "inf"], ["--drain-seconds", "not a finite number"]),
    ],
)
def test_options_that_cannot_be_met_are_refused(user: User, model: Path, options: list[str], words: list[str]) -> None:
    """One line names the option, its value and the limit, where there is one (ISSUE-2)."""
    ended = user.run("serve", "--model", str(model), "--grpc", "127.0.0.1:0", "--log-level", "warning", *options)
    assert_refused(ended, *words)


@pytest.mark.parametrize("options", [["--no-such-option"], ["--block-size", "7"], ["--max-num-seqs", "many"]])
def test_wrong_usage_is_told_without_starting_anything(user: User, model: Path, options: list[str]) -> None:
    """Exit code 2, and a message that names the option."""
    ended = user.run("serve", "--model", str(model), *options)
    assert (ended.code, ended.out) == (exit_codes.USAGE, "")
    assert options[0] in ended.err


def test_unknown_variable_is_refused(user: User, model: Path) -> None:
    """A misspelt setting is not ignored."""
    misspelt = User(user.folder, {"CLFORGE_THREAD": "1"})
    assert_refused(misspelt.run("serve", "--model", str(model)), "CLFORGE_THREAD ", "CLFORGE_THREADS?")


@pytest.mark.parametrize("option", ["--grpc", "--metrics", "--tokenizer-metrics"])
def test_port_in_use_is_refused(user: User, model: Path, option: str) -> None:
    """The engine that was loading meanwhile goes without a word (ISSUE-2)."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        options = ["--grpc", "127.0.0.1:0", option, address, "--log-level", "warning"]
        ended = user.run("serve", "--model", str(model), *options)
    assert_refused(ended, "address already in use", address, option)


def test_machine_without_opencl_is_told_what_to_install(user: User, model: Path, tmp_path: Path) -> None:
    """Serve refuses in one line with the remedy; doctor finds the same (ISSUE-2)."""
    bare = User(user.folder, {"OCL_ICD_VENDORS": str(tmp_path / "no-drivers")})
    ended = bare.run("serve", "--model", str(model), "--grpc", "127.0.0.1:0", "--log-level", "warning")
    assert_refused(ended, "no OpenCL device", "pip install")
    ended = bare.run("doctor", "--cache-dir", str(tmp_path / "cache"), "--json")
    levels = {finding["check"]: finding["level"] for finding in json.loads(ended.out)}
    assert (ended.code, levels["drivers"], levels["cache folder"]) == (exit_codes.FAILED, "FAIL", "OK")


@pytest.mark.parametrize(("mode", "reason"), [(None, "cannot be written"), (0o777, "chmod 700")])
def test_unusable_cache_folder_is_refused(
    user: User, model: Path, tmp_path: Path, mode: int | None, reason: str
) -> None:
    """A file in the folder's place, or a folder that others may write to (ISSUE-2)."""
    cache = tmp_path / "cache"
    if mode is None:
        cache.touch()
    else:
        cache.mkdir()
        cache.chmod(mode)
    options = ["--cache-dir", str(cache), "--grpc", "127.0.0.1:0", "--log-level", "warning"]
    assert_refused(user.run("serve", "--model", str(model), *options), str(cache), reason)


def test_machine_without_a_linker_serves_or_says_what_to_install(user: User, model: Path, tmp_path: Path) -> None:
    """With an empty kernel cache and neither `ld` nor gcc, ziglang links, or the line names what does (ISSUE-2)."""
    (tmp_path / "bin").mkdir()
    shell = tmp_path / "bin" / "sh"
    shell.symlink_to("/bin/sh")
    bare = User(user.folder, {"PATH": str(shell.parent), "XDG_CACHE_HOME": str(tmp_path / "cache")})
    ended = bare.run("generate", "-p", "x", "--model", str(model), "--max-tokens", "1")
    if ended.code != exit_codes.OK:
        assert_refused(ended, "linked", "pip install ziglang", "apt-get install binutils gcc")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-p", "x", "--temperature", "nan"], ["temperature is nan", "between 0 and 100"]),
        (["-p", "x", "--top-p", "0"], ["top_p is 0.0", "at most 1"]),
        (["-p", "x", "--stop", ""], ["stop[0]", "between 1 and"]),
        (["-p", "x", "--seed", str(1 << 70)], ["seed is"]),
        (["-p", "x" * 5000], ["the prompt has ", f"context of {CONTEXT_LENGTH}"]),
        (["-p", "x", "--temperature", "nan", "--json"], ["temperature is nan"]),
    ],
)
def test_request_that_cannot_be_served_fails_alone(
    user: User, server: str, options: list[str], words: list[str]
) -> None:
    """Exit code 1 and the server's line, which names field, value and limit; the server goes on (ISSUE-2)."""
    ended = user.run("generate", "--target", server, "--max-tokens", "2", *options)
    assert (ended.code, ended.out, ended.err.count("\n")) == (exit_codes.FAILED, "", 1)
    assert [word for word in words if word not in ended.err] == []
    assert user.run("generate", "--target", server, "--max-tokens", "1", "-p", "").code == exit_codes.OK


def test_token_id_outside_the_vocabulary_fails_alone(server: str) -> None:
    """The error names the id and the limit (ISSUE-2)."""

    async def ask() -> None:
        async with Client(server) as client:
            with pytest.raises(InvalidRequestError, match="302"):
                await client.complete([1, 302], max_tokens=1)
            assert (await client.complete([1, 301], max_tokens=1)).choices

    asyncio.run(ask())


def test_huge_prompt_is_refused_at_once(user: User, server: str) -> None:
    """Ten million bytes come back as one line with size and limit."""
    huge = "head -c 10000000 /dev/zero | tr '\\0' a | $clforge generate --target $target -p - --max-tokens 1"
    ended = user.shell(huge, target=server)
    assert (ended.code, ended.out, ended.err.count("\n")) == (exit_codes.FAILED, "", 1)
    assert "10000000 bytes; at most" in ended.err


@pytest.mark.parametrize(
    ("script", "code", "words"),
    [
        (r"printf '\377\376' | $clforge generate --target $target -p -", exit_codes.USAGE, ["not UTF-8 at byte 0"]),
        ("$clforge generate --target $target -p x --max-tokens 2 > /dev/full", exit_codes.FAILED, ["No space left"]),
        ("$clforge --version > /dev/full", exit_codes.FAILED, ["No space left"]),
        ("$clforge generate --target 127.0.0.1:1 -p x", exit_codes.UNREACHABLE, ["127.0.0.1:1", "clforge serve"]),
    ],
)
def test_input_or_output_that_cannot_be_used_is_told_in_one_line(
    user: User, server: str, script: str, code: int, words: list[str]
) -> None:
    """The exit code is the documented one."""
    ended = user.shell(script, target=server)
    assert (ended.code, ended.out, ended.err.count("\n")) == (code, "", 1)
    assert [word for word in words if word not in ended.err] == []


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&-", "-v >&- 2>&-"])
def test_closed_standard_stream_does_no_harm(user: User, server: str, redirection: str) -> None:
    """What would be written there is dropped."""
    ended = user.shell(f"$clforge generate --target $target -p - --max-tokens 2 {redirection}", target=server)
    assert (ended.code, ended.err) == (exit_codes.OK, "")


def started(user: User, *arguments: str) -> subprocess.Popen[str]:
    """Starts a command and returns when its engine runs: it is about to load the model."""
    process = user.start(*arguments)
    deadline = time.monotonic() + SECONDS
    while not any("engine_service" in line for line in _processes_of(process.pid)):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    return process


@pytest.mark.parametrize(("number", "seconds"), [(signal.SIGINT, 0.0), (signal.SIGTERM, 1.0)])
def test_signal_while_loading_ends_serve_in_silence(
    user: User, model: Path, number: signal.Signals, seconds: float
) -> None:
    """Exit code 0, since that is what was asked for, and neither a word nor a process or socket is left (CLI-3)."""
    process = started(user, "serve", "--model", str(model), "--grpc", "127.0.0.1:0", "--log-level", "warning")
    time.sleep(seconds)
    process.send_signal(number)
    assert user.end(process) == Ended(0, "", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_generate_and_its_private_server(user: User, model: Path, number: signal.Signals) -> None:
    """Exit code 130, and neither a process nor a socket is left (CLI-3)."""
    process = started(user, "generate", "--model", str(model), "-p", "x")
    process.send_signal(number)
    assert user.end(process) == Ended(exit_codes.INTERRUPTED, "", "")
