"""`clforge chat`: what is sent, kept and shown, on a terminal and on a pipe."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import grpc
import pytest

from clforge.cli import exit_codes
from clforge.cli.conversation import COMMANDS, CommandError, Conversation
from clforge.v1 import generation_pb2 as pb
from tests.clforge.pty_process import on_terminal
from tests.clforge.scripted_server import ScriptedServer, accepted, delta, failed, finished, running, status
from tests.clforge.test_cli import run


def turns(request: Any) -> list[tuple[str, str]]:
    """Who said what, in a request."""
    return [(message.role, message.content) for message in request.prompt.chat.messages]


def answer(text: str, **fields: Any) -> list[Any]:
    """A script that says a text."""
    return [accepted(), delta(1, text, **fields), finished(2)]


async def test_each_line_of_a_pipe_is_a_turn_that_knows_those_before(tmp_path: Path) -> None:
    """Answers go to standard output, a line each; the sampling options and the system message go with every turn."""
    server = ScriptedServer()  # type: ignore[abstract]
    server.scripts = [answer("Hello!"), answer("Ada.")]
    async with running(server, tmp_path) as target:
        options = ("--target", target, "--system", "Be brief.", "--top-k", "1", "--stop", "x")
        ended = await run("chat", *options, stdin="I am Ada.\n\nWho am I? Grüße".encode())
    assert (ended.code, ended.out, ended.err) == (0, "Hello!\nAda.\n", "")
    said = [("system", "Be brief."), ("user", "I am Ada."), ("assistant", "Hello!"), ("user", "Who am I? Grüße")]
    assert turns(server.requests[1]) == said
    assert [request.params.sampling.top_k for request in server.requests] == [1, 1]
    assert list(server.requests[1].params.stopping.stop) == ["x"]


async def test_reasoning_is_kept_apart_from_the_answer(tmp_path: Path) -> None:
    """What the model thinks goes to standard error, and into the next turn as reasoning, not as something said."""
    server = ScriptedServer()  # type: ignore[abstract]
    thought = delta(1, "hm", section=pb.SECTION_REASONING)
    said = delta(2, "Yes.", section=pb.SECTION_ANSWER)
    server.scripts = [[accepted(), thought, said, finished(3)], answer("No.")]
    async with running(server, tmp_path) as target:
        ended = await run("chat", "--target", target, stdin=b"a?\nb?\n")
    assert (ended.code, ended.out, ended.err) == (0, "Yes.\nNo.\n", "hm")
    earlier = server.requests[1].prompt.chat.messages[1]
    assert (earlier.content, earlier.reasoning_content) == ("Yes.", "hm")


async def test_failure_on_a_pipe_ends_the_chat_with_its_code(tmp_path: Path) -> None:
    """Later turns would rest on an answer that is not there; a wrong command is wrong usage."""
    server = ScriptedServer()  # type: ignore[abstract]
    server.scripts = [[accepted(), failed(1, status(grpc.StatusCode.OUT_OF_RANGE))]] * 2
    async with running(server, tmp_path) as target:
        ended = await run("chat", "--target", target, stdin=b"a?\nb?\n")
        assert (ended.code, ended.err) == (exit_codes.FAILED, "clforge: it is OUT_OF_RANGE\n")
        ended = await run("chat", "--target", target, stdin=b"/bogus\nb?\n")
        assert ended.code == exit_codes.USAGE
        assert "/bogus" in ended.err
        assert (await run("chat", "--target", target, stdin=b"\xff\n")).code == exit_codes.USAGE
    assert len(server.requests) == 1


async def test_ctrl_c_cancels_the_answer_and_keeps_the_chat(tmp_path: Path) -> None:
    """What was said stays said; a pasted text of two lines is one turn, and Ctrl-D leaves."""
    server = ScriptedServer()  # type: ignore[abstract]
    server.scripts = [[accepted(), delta(1, "Once upon"), 60.0], answer("Well.")]
    async with running(server, tmp_path) as target, on_terminal("chat", "--target", target) as terminal:
        assert "tiny listens" in await terminal.until(">")
        terminal.type("A story!\r")
        await terminal.until("Once upon")
        terminal.type("\x03")
        await terminal.until("cancelled")
        await asyncio.wait_for(server.cancelled.wait(), 5)
        await terminal.until(">")
        terminal.type("\x1b[200~go\non\x1b[201~")
        terminal.type("\r")
        await terminal.until("Well.")
        await terminal.until(">")
        terminal.type("/bogus\r")
        await terminal.until("there is no /bogus")
        await terminal.until(">")
        terminal.type("thrown away\x03")
        await terminal.until(">")
        terminal.type("\x04")
        assert await terminal.ended() == 0
    said = [("user", "A story!"), ("assistant", "Once upon"), ("user", "go\non")]
    assert turns(server.requests[1]) == said
    assert len(server.requests) == 2


async def test_sigterm_ends_the_chat_in_the_middle_of_an_answer(tmp_path: Path) -> None:
    """The server sees the cancellation, and no traceback follows."""
    server = ScriptedServer()  # type: ignore[abstract]
    server.scripts = [[accepted(), delta(1, "Once upon"), 60.0]]
    async with running(server, tmp_path) as target, on_terminal("chat", "--target", target) as terminal:
        await terminal.until(">")
        terminal.type("A story!\r")
        await terminal.until("Once upon")
        terminal.process.terminate()
        assert await terminal.ended() == exit_codes.INTERRUPTED
        await asyncio.wait_for(server.cancelled.wait(), 5)
        assert not terminal.rest().strip()


def conversation(*texts: str) -> Conversation:
    """One in which these have been said, by turns."""
    result = Conversation("Be brief.", {"temperature": 0.5})
    for index, text in enumerate(texts):
        if index % 2:
            result.answer(text, "")
        else:
            result.ask(text)
    return result


def test_what_was_saved_is_loaded_again(tmp_path: Path) -> None:
    """Turns, system message and parameters; the file is its owner's alone."""
    saved, loaded = conversation("a", "b"), conversation()
    saved.command(f"/save {tmp_path / 'my chat.json'}")
    loaded.command(f"/load {tmp_path / 'my chat.json'}")
    assert loaded == saved
    assert (tmp_path / "my chat.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "content", ["", "[]", '{"messages": 1}', '{"messages": [{"text": "x"}]}', "[" * 100_000, '{"messages": [7]}']
)
def test_a_file_that_holds_no_conversation_changes_nothing(tmp_path: Path, content: str) -> None:
    """One line names the file."""
    (tmp_path / "f").write_text(content)
    talk = conversation("a", "b")
    with pytest.raises(CommandError, match=r"/f holds no conversation"):
        talk.command(f"/load {tmp_path / 'f'}")
    assert talk == conversation("a", "b")


def test_regenerate_takes_the_last_answer_back() -> None:
    """The question stays; where none was asked there is nothing to answer."""
    talk = conversation("a", "b", "c", "d")
    assert talk.command("/regenerate").ask
    assert [message["content"] for message in talk.messages] == ["a", "b", "c"]
    with pytest.raises(CommandError, match="nothing has been asked"):
        conversation().command("/regenerate")


def test_turns_alternate_after_one_that_got_no_answer() -> None:
    """The next question takes its place; reset leaves none."""
    talk = conversation("a", "b", "c")
    talk.answer("", "")
    talk.ask("d")
    assert [message["content"] for message in talk.messages] == ["a", "b", "d"]
    talk.command("/reset")
    assert talk.messages == []
    assert talk.system == "Be brief."


def test_parameters_are_changed_checked_and_dropped() -> None:
    """By the names of the SDK; a wrong one changes nothing."""
    talk = conversation()
    talk.command("/params top_k=3 stop=END  stop_token_ids=[1,2]  temperature=")
    assert talk.params == {"top_k": 3, "stop": ["END"], "stop_token_ids": [1, 2]}
    shown = talk.command("/params").tell
    assert "top_k=3" in shown
    for wrong in ("bogus=1", "top_k=x", "top_k=-1"):
        with pytest.raises(CommandError, match=wrong.partition("=")[0]):
            talk.command(f"/params top_p=0.5 {wrong}")
    assert "top_p" not in talk.params
    assert talk.command("/system Be kind.").tell == "system: Be kind."
    assert talk.prompt().system == "Be kind."


def test_help_names_every_command() -> None:
    """Each with what it does."""
    told = conversation().command("/help").tell
    assert all(f"{name} " in told and command.help in told for name, command in COMMANDS.items())
    assert conversation().command("/quit").leave


async def test_json_is_one_event_a_line_for_all_turns(tmp_path: Path) -> None:
    """As for generate."""
    server = ScriptedServer()  # type: ignore[abstract]
    server.scripts = [answer("a"), answer("b")]
    async with running(server, tmp_path) as target:
        ended = await run("chat", "--target", target, "--json", stdin=b"x\ny\n")
    events = [json.loads(line)["event"] for line in ended.out.splitlines()]
    assert events == ["accepted", "delta", "finished"] * 2
