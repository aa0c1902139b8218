"""A whole server that others may reach: TLS, API keys, what each key sees of another's, and what logs never hold."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from clforge import TLS, AuthenticationError, Client
from clforge.v1 import tokenizer_pb2 as pb
from clforge.v1.generation_pb2 import GenerationParams
from clforge.v1.tokenizer_pb2_grpc import TokenizerServiceStub
from engine_service.bundled import BUNDLED_MODEL
from tests.certificates import Authority
from tests.integration.processes import process
from tests.integration.served import CLFORGE, address_of, environment

if TYPE_CHECKING:
    from clforge.v1.tokenizer_pb2_grpc import TokenizerServiceAsyncStub

PROMPT = "the marked prompt that nobody may read in a log: " + "zanzibar " * 20
_MARKS = ("zanzibar", "clforge_")


@dataclass(frozen=True)
class Secured:
    """A server with TLS and two keys."""

    process: subprocess.Popen[str]
    address: str
    folder: Path

    @property
    def tls(self) -> TLS:
        """What its clients trust."""
        return TLS(ca=self.folder / "ca.pem")

    def key(self, name: str) -> str:
        """The key of that name."""
        return (self.folder / f"{name}.key").read_text().strip()

    def client(self, name: str) -> Client:
        """A client with the key of that name."""
        return Client(self.address, tls=self.tls, api_key=self.key(name))

    def channel(self) -> grpc.aio.Channel:
        """A connection without a key."""
        return grpc.aio.secure_channel(self.address, self.tls.credentials())


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """`clforge serve` where others could reach it, without --insecure, and with every line of its logs."""
    folder = tmp_path_factory.mktemp("secured")
    cert, key = Authority(folder).issue("server")
    keys = folder / "keys.toml"
    for name in ("alice", "bob"):
        made = subprocess.run(
            [*CLFORGE, "keys", name, "--file", str(keys)], capture_output=True, text=True, check=True, env=environment()
        )
        (folder / f"{name}.key").write_text(made.stdout)
        (folder / f"{name}.key").chmod(0o600)
    options = [f"--tls-cert={cert}", f"--tls-key={key}", f"--api-keys={keys}", "--grpc=0.0.0.0:0", "--log-level=debug"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*CLFORGE, "serve", f"--model={BUNDLED_MODEL}", *options],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment(),
            cwd="/",
        )
        try:
            assert process.stdout is not None
            words = process.stdout.readline().split()
            assert words[:1] == ["ready"], (folder / "log").read_text()
            yield Secured(process, words[1].replace("0.0.0.0", "127.0.0.1"), folder)
        finally:
            process.terminate()
            assert process.wait(30) == 0


def test_a_cached_prompt_is_its_keys_own(secured: Secured) -> None:
    """A second request of the same key finds its prompt in the prefix cache; another key's finds nothing of it."""

    async def cached_tokens(name: str) -> int:
        async with secured.client(name) as client:
            completion = await client.complete(PROMPT, max_tokens=1)
            return completion.choices[0].finished.usage.cached_tokens

    assert asyncio.run(cached_tokens("alice")) == 0
    assert asyncio.run(cached_tokens("alice")) > 0
    assert asyncio.run(cached_tokens("bob")) == 0
    assert asyncio.run(cached_tokens("bob")) > 0


def test_another_keys_requests_are_not_there(secured: Secured) -> None:
    """They are in no list, and to cancel one is NOT_FOUND; its owner sees it and may end it."""

    async def run() -> None:
        alice, bob = ((("authorization", f"Bearer {secured.key(name)}"),) for name in ("alice", "bob"))
        async with secured.channel() as channel:
            stub: TokenizerServiceAsyncStub = TokenizerServiceStub(channel)
            params = GenerationParams(initial_credit=1)
            params.stopping.ignore_eos = True
            call = stub.GenerateText(metadata=alice)
            submit = pb.TextSubmit(request_id=1, prompt=pb.Prompt(text="once"), params=params)
            await call.write(pb.GenerateTextRequest(submit=submit))
            response = await call.read()
            assert isinstance(response, pb.GenerateTextResponse)
            global_id = response.updates[0].accepted.global_id

            listed = pb.ListRequestsRequest()
            assert not (await stub.ListRequests(listed, metadata=bob)).requests
            assert [r.global_id for r in (await stub.ListRequests(listed, metadata=alice)).requests] == [global_id]
            cancel = pb.CancelRequestRequest(global_id=global_id)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.CancelRequest(cancel, metadata=bob)
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
            await stub.CancelRequest(cancel, metadata=alice)
            await call.done_writing()
            while await call.read() is not grpc.aio.EOF:
                pass

    asyncio.run(asyncio.wait_for(run(), 60))


def test_the_command_line_connects_by_options_and_by_environment(secured: Secured) -> None:
    """A key comes from a file or from CLFORGE_API_KEY; without one the exit code is 1, without TLS it is 3."""

    def decode(*options: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*CLFORGE, "decode", f"--target={secured.address}", *options],
            input="65",
            capture_output=True,
            text=True,
            env=environment() | variables,
            check=False,
        )

    tls = f"--tls-ca={secured.folder / 'ca.pem'}"
    assert decode(tls, f"--api-key-file={secured.folder / 'alice.key'}").returncode == 0
    assert decode(tls, CLFORGE_API_KEY=secured.key("bob")).returncode == 0
    refused = decode(tls)
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "an API key is needed" in refused.stderr
    for options in ((), ("--tls",)):
        mismatched = decode(*options)
        assert (mismatched.returncode, mismatched.stderr.count("\n")) == (3, 1)
        assert "no secure connection" in mismatched.stderr


def test_the_link_to_an_engine_elsewhere_is_secured(tmp_path: Path) -> None:
    """Its port asks for a certificate and a key; without TLS or the key there is no link, and the log says why."""
    authority = Authority(tmp_path)
    (cert, key), (client_cert, client_key) = authority.issue("engine"), authority.issue("tokenizer")
    keys, good, bad = tmp_path / "keys.toml", tmp_path / "good.key", tmp_path / "bad.key"
    for path, file in ((good, keys), (bad, tmp_path / "other.toml")):
        made = subprocess.check_output([*CLFORGE, "keys", "tokenizer", f"--file={file}"], text=True, env=environment())
        path.write_text(made)
        path.chmod(0o600)
    secured = [f"--tls-cert={cert}", f"--tls-key={key}", f"--tls-client-ca={authority.path}", f"--api-keys={keys}"]
    link = [
        f"--engine-tls-ca={authority.path}",
        f"--engine-tls-cert={client_cert}",
        f"--engine-tls-key={client_key}",
    ]
    with process("engine", "--engine=0.0.0.0:0", *secured) as engine:
        address = address_of(engine).replace("0.0.0.0", "127.0.0.1")
        front = ("tokenizer", f"--engine={address}", "--grpc=127.0.0.1:0")
        with process(*front, *link, f"--engine-api-key-file={good}") as tokenizer:
            assert address_of(tokenizer)
        for options, reason in (
            ([*link, f"--engine-api-key-file={bad}"], "API key is not known"),
            ([], "Socket closed"),
        ):
            with process(*front, *options) as refused:
                assert refused.stderr is not None
                assert reason in refused.stderr.readline()
    with process(*front, f"--engine-api-key-file={good}") as mistaken:
        _, error = mistaken.communicate(timeout=30)
        assert error == "clforge: --engine-api-key-file needs --engine-tls-ca: the link would be in plain text\n"


def test_logs_hold_neither_prompts_nor_keys(secured: Secured) -> None:
    """Neither of the two processes tells them at its most talkative, whether a request ends well or not."""

    async def run() -> None:
        async with secured.client("alice") as client:
            await client.complete(PROMPT, max_tokens=4)
            await client.encode(PROMPT)
        async with Client(secured.address, tls=secured.tls, api_key="clforge_unknown") as client:
            with pytest.raises(AuthenticationError):
                await client.complete(PROMPT)

    asyncio.run(run())
    log = (secured.folder / "log").read_text()
    assert '"level": "debug"' in log
    assert "engine connected" in log
    assert not [mark for mark in _MARKS if mark in log]
