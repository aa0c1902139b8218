"""`clforge status`, `cancel` and `top`: what a running server is busy with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration

from clforge import Client, Load, RequestInfo, RequestState
from clforge.cli import exit_codes, formats
from clforge.cli.status import cancel, status
from clforge.cli.top import Sample, rates
from clforge.v1 import generation_pb2 as pb
from tests.clforge.pty_process import on_terminal
from tests.clforge.scripted_server import ScriptedServer, running
from tests.clforge.test_cli import run

_NOTHING = Load(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)


@pytest.fixture
def server() -> ScriptedServer:
    """A server with two live requests."""
    server = ScriptedServer()  # type: ignore[abstract]
    server.loads = [pb.Load(num_requests_running=2, num_blocks=8, num_used_blocks=2, block_size=32)]
    for name, tokens in (("aa11", 5), ("bb22\x1b[31m", 6)):
        server.live[name] = pb.RequestInfo(
            global_id=name, state=pb.REQUEST_STATE_DECODE, num_generated_tokens=tokens, age=Duration(seconds=185)
        )
    return server


async def test_status_shows_model_load_and_requests(
    server: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each fact in words, or all of them as JSON; nothing that a terminal would act upon."""
    async with running(server, tmp_path) as target, Client(target) as client:
        assert await status(client, as_json=False) == exit_codes.OK
        out = capsys.readouterr().out
        assert all(words in out for words in (target, "tiny", "2 running", "25.0% of 256 tokens", "aa11", "0:03:05"))
        assert "\x1b" not in out
        assert await status(client, as_json=True) == exit_codes.OK
    told = json.loads(capsys.readouterr().out)
    assert (told["target"], told["model"]["name"], told["load"]["kv_usage"]) == (target, "tiny", 0.25)
    assert [request["num_generated_tokens"] for request in told["requests"]] == [5, 6]


async def test_cancel_ends_those_named_and_tells_of_others(
    server: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that is not live fails the command, after the rest has been done; --all takes what there is."""
    async with running(server, tmp_path) as target, Client(target) as client:
        code = await cancel(client, ["none", "aa11"], everything=False, as_json=True)
        told = capsys.readouterr()
        assert (code, json.loads(told.out)) == (exit_codes.FAILED, {"cancelled": ["aa11"], "not_live": ["none"]})
        assert told.err.count("\n") == 1
        assert await cancel(client, (), everything=True, as_json=False) == exit_codes.OK
        assert not server.live
        assert capsys.readouterr().out.startswith("cancelled bb22")
        assert await cancel(client, (), everything=True, as_json=False) == exit_codes.OK
        assert capsys.readouterr().out == "no request is live\n"


async def test_cancel_wants_ids_or_all_but_not_both() -> None:
    """Both, or neither, is wrong usage, and asks no server."""
    for arguments in (["cancel"], ["cancel", "--all", "aa11"]):
        assert (await run(*arguments, "--target", "127.0.0.1:1")).code == exit_codes.USAGE


@pytest.mark.parametrize("command", ["status", "top"])
async def test_no_server_exits_with_3_and_says_what_to_do(command: str) -> None:
    """One line, with the address."""
    ended = await run(command, "--target", "127.0.0.1:1")
    assert (ended.code, ended.out, ended.err.count("\n")) == (exit_codes.UNREACHABLE, "", 1)
    assert "127.0.0.1:1" in ended.err
    assert "clforge serve" in ended.err


async def test_top_is_printed_once_where_there_is_no_terminal(server: ScriptedServer, tmp_path: Path) -> None:
    """As a view, or as JSON with the rates of one interval."""
    async with running(server, tmp_path) as target:
        shown = await run("top", "--target", target, "--interval", "0.1")
        told = await run("top", "--target", target, "--interval", "0.1", "--json")
    assert (shown.code, told.code) == (0, 0)
    assert "2 running" in shown.out
    assert "\x1b" not in shown.out
    assert [request["tokens_per_second"] for request in json.loads(told.out)["requests"]] == [0.0, 0.0]


@pytest.mark.parametrize(("keys", "code"), [("xq", 0), ("\x03", exit_codes.INTERRUPTED)])
async def test_top_goes_on_without_its_server_until_q_or_ctrl_c(
    server: ScriptedServer, tmp_path: Path, keys: str, code: int
) -> None:
    """It follows what changes, and ends without a traceback."""
    async with on_terminal("top", "--target", f"unix:{tmp_path}/s", "--interval", "0.1") as terminal:
        async with running(server, tmp_path):
            await terminal.until("aa11")
            server.live.clear()
            server.loads = [pb.Load(num_requests_waiting=7)]
            assert "aa11" not in (await terminal.until("7 waiting"))[-200:]
        await terminal.until("start one with: clforge serve")
        terminal.type(keys)
        assert await terminal.ended() == code
        assert "Traceback" not in terminal.rest()


def sample(seconds: float, generated: int, **requests: int) -> Sample:
    """A sample with so many tokens, in all and by request."""
    infos = (RequestInfo(name, RequestState.DECODE, 1, tokens, 1, 0, 1.0) for name, tokens in requests.items())
    fields = {name: getattr(_NOTHING, name) for name in Load.__slots__}
    return Sample(seconds, Load(**fields | {"generation_tokens": generated}), tuple(infos))


def test_rates_are_differences_over_time() -> None:
    """A new request has none yet, and figures that fell are another engine's."""
    found = rates(sample(1.0, 100, a=10, b=20), sample(3.0, 160, a=20, c=5))
    assert (found.generation, found.prompt, found.by_request) == (30.0, 0.0, {"a": 5.0})
    assert rates(sample(1.0, 100, a=10), sample(2.0, 50, a=3)).generation is None
    assert rates(sample(1.0, 1), sample(1.0, 1)).generation is None


def test_figures_read_well() -> None:
    """Sizes in binary units, counts as models are called, ages in seconds or by the clock."""
    assert [formats.size(n) for n in (1023, 1024, 3 << 20, 5 << 50)] == ["1023 B", "1.0 KiB", "3.0 MiB", "5120.0 TiB"]
    assert [formats.count(n) for n in (999_999, 3_400_000, 1_100_000_000)] == ["999,999", "3.4 M", "1.1 B"]
    assert [formats.age(n) for n in (4.25, 185.0, 97_200.0)] == ["4.2 s", "0:03:05", "1 day, 3:00:00"]
