"""The command line: what goes to which stream, exit codes, and that `serve` leaves no process behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest

from clforge import cli
from clforge.cli import exit_codes
from clforge.cli.generate import summary
from clforge.events import Finished, FinishReason, Timings, Usage
from clforge.v1 import generation_pb2
from engine_service.host import doctor
from engine_service.host.doctor import Finding, Level
from engine_service.host.first_contact import NO_DEVICE, ProbeReport
from engine_service.host.linker import DRIVERS_OWN
from service_common.child import Child
from tests.clforge.scripted_server import ScriptedServer, accepted, delta, failed, finished, running, status


class Ended(NamedTuple):
    """What a command left."""

    code: int
    out: str
    err: str


def clforge(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Ended:
    """Runs a command in this process."""
    monkeypatch.setattr(sys, "argv", ["clforge", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    out, err = capfd.readouterr()
    return Ended(int(caught.value.code or 0), out, err)


async def start(*arguments: str, stubs: Path | None = None) -> asyncio.subprocess.Process:
    """Starts a command in a process of its own; its children are the services in `stubs`."""
    code = "import os, sys; from clforge import cli; os.environ |= eval(sys.argv.pop(1)); cli.main()"
    environment = {"PYTHONPATH": os.pathsep.join([str(stubs), *filter(None, sys.path)])} if stubs else {}
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-c", code, repr(environment), *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def end(process: asyncio.subprocess.Process, stdin: bytes = b"") -> Ended:
    """Waits for the command to end."""
    out, err = await asyncio.wait_for(process.communicate(stdin), 20)
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())


async def run(*arguments: str, stdin: bytes = b"") -> Ended:
    """Runs a command in a process of its own."""
    return await end(await start(*arguments), stdin)


@pytest.mark.parametrize(
    "arguments",
    [
        ["bogus"],
        ["generate"],
        ["generate", "-p", "x", "--max-tokens", "0"],
        ["generate", "-p", "x", "--top-k", "-1"],
        ["serve", "--model", "x", "--no-such-option"],
        ["generate", "-p", "x", "--model", "m", "--target", "t"],
        ["generate", "-p", "x", "--device", "0", "--target", "t"],
        ["generate", "-p", "x", "--threads", "1", "--target", "t"],
        ["generate", "-p", "x", "--system", "y"],
        ["serve", "--workers", "2", "--grpc", "unix:/tmp/x/y"],
        ["serve", "--workers", "2", "--metrics", "127.0.0.1:9466", "--tokenizer-metrics", "127.0.0.1:9465"],
    ],
)
def test_wrong_usage_exits_with_2_and_a_message(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    """The message is on standard error, without a traceback."""
    ended = clforge(capfd, monkeypatch, *arguments)
    assert ended.code == exit_codes.USAGE
    assert ended.err
    assert "Traceback" not in ended.err
    assert not ended.out


def test_help_names_every_command_and_the_exit_codes(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Help and version are results: standard output, exit code 0."""
    ended = clforge(capfd, monkeypatch, "--help")
    assert ended.code == 0
    services = ("serve", "engine", "tokenizer")
    commands = (
        *services,
        "generate",
        "chat",
        "status",
        "cancel",
        "top",
        "models",
        "encode",
        "decode",
        "inspect",
        "devices",
        "doctor",
        "bench",
    )
    assert all(f"  {name} " in ended.out for name in commands)
    assert "130 interrupted" in ended.out
    assert clforge(capfd, monkeypatch, "--version").out.startswith("clforge ")


def test_serve_takes_the_options_of_both_services(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each option of either configuration is one of serve's, but for the link between the two."""
    ended = clforge(capfd, monkeypatch, "serve", "--help")
    names = ("--kv-cache-bytes", "--max-prompt-bytes", "--grpc", "--drain-seconds", "--metrics", "--tokenizer-metrics")
    assert all(f"{name} " in ended.out for name in names)
    assert "--engine " not in ended.out


async def test_help_loads_neither_opencl_nor_the_engine() -> None:
    """What a command needs is imported when it runs, so that help is there at once."""
    code = (
        "import sys; from clforge import cli; "
        "print({'pyopencl', 'numpy', 'engine_service.host.inspection', 'tokenizers'} & set(sys.modules))"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    assert (await process.communicate())[0].strip() == b"set()"


async def test_only_the_text_goes_to_standard_output(tmp_path: Path) -> None:
    """The new text alone, byte for byte; the summary goes to standard error (CLI-4)."""
    servicer = ScriptedServer()  # type: ignore[abstract]
    usage = generation_pb2.Usage(prompt_tokens=3, generated_tokens=2)
    servicer.scripts = [[accepted(), delta(1, "grüße "), delta(2, "\U0001f600"), finished(3, usage=usage)]]
    async with running(servicer, tmp_path) as target:
        ended = await run(
            "generate", "--target", target, "-p", "-", "-v", "--top-k", "0", "--stop", "x", stdin=b"h\xc3\xb6"
        )
    assert (ended.code, ended.out) == (0, "grüße \U0001f600")
    assert ended.err.startswith("2 tokens; prompt 3 tokens")
    request = servicer.requests[0]
    assert request.prompt.text == "hö"
    assert request.params.sampling.HasField("top_k")
    assert not request.params.sampling.HasField("temperature")
    assert list(request.params.stopping.stop) == ["x"]


async def test_chat_sends_a_conversation(tmp_path: Path) -> None:
    """With --chat the prompt is a user's message, after what --system says, and the server renders both."""
    servicer = ScriptedServer()  # type: ignore[abstract]
    servicer.scripts = [[accepted(), delta(1, "Hello!"), finished(2)]]
    async with running(servicer, tmp_path) as target:
        ended = await run(
            "generate", "--target", target, "--chat", "-p", "-", "--system", "Be brief.", stdin="Grüße".encode()
        )
    assert (ended.code, ended.out) == (0, "Hello!")
    turns = [(message.role, message.content) for message in servicer.requests[0].prompt.chat.messages]
    assert turns == [("system", "Be brief."), ("user", "Grüße")]


async def test_json_is_one_event_a_line(tmp_path: Path) -> None:
    """Programs read events as they stream, with every field."""
    servicer = ScriptedServer()  # type: ignore[abstract]
    servicer.scripts = [[accepted(), delta(1, "a"), finished(2, stop_string="x")]]
    async with running(servicer, tmp_path) as target:
        ended = await run("generate", "--target", target, "-p", "x", "--json")
    events = [json.loads(line) for line in ended.out.splitlines()]
    assert [event["event"] for event in events] == ["accepted", "delta", "finished"]
    assert (events[0]["seed"], events[1]["token_ids"], events[2]["matched_stop"]) == (7, [1], "x")
    assert ended.err == ""


@pytest.mark.parametrize("early", [generation_pb2.FINISH_REASON_DEADLINE, None])
async def test_request_that_fails_exits_with_1_and_the_servers_message(tmp_path: Path, early: int | None) -> None:
    """One line says why, also when the request ended before its time (ISSUE-2)."""
    servicer = ScriptedServer()  # type: ignore[abstract]
    error = failed(1, status(grpc.StatusCode.INVALID_ARGUMENT))
    servicer.scripts = [[accepted(), finished(1, reason=early) if early else error]]
    async with running(servicer, tmp_path) as target:
        ended = await run("generate", "--target", target, "-p", "")
    assert (ended.code, ended.out) == (exit_codes.FAILED, "")
    assert ended.err.strip() == f"clforge: {'the request ended early: deadline' if early else 'it is INVALID_ARGUMENT'}"


def test_unreachable_server_exits_with_3(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The line names the address and what to do."""
    ended = clforge(capfd, monkeypatch, "generate", "--target", "127.0.0.1:1", "-p", "x")
    assert ended.code == exit_codes.UNREACHABLE
    assert ended.err.count("\n") == 1
    assert "127.0.0.1:1" in ended.err
    assert "clforge serve" in ended.err


async def test_ctrl_c_cancels_the_request_and_exits_with_130(tmp_path: Path) -> None:
    """What came before stays printed, the server sees the cancellation, and no traceback follows (CLI-3)."""
    servicer = ScriptedServer()  # type: ignore[abstract]
    servicer.scripts = [[accepted(), delta(1, "before"), 60.0]]
    async with running(servicer, tmp_path) as target:
        process = await start("generate", "--target", target, "-p", "x")
        assert process.stdout is not None
        assert await process.stdout.readexactly(6) == b"before"
        process.send_signal(signal.SIGINT)
        ended = await end(process)
        await asyncio.wait_for(servicer.cancelled.wait(), 5)
    assert ended == Ended(exit_codes.INTERRUPTED, "", "")


async def test_reader_that_goes_away_ends_the_command_quietly(tmp_path: Path) -> None:
    """As in `clforge generate … | head -c 1`: no traceback."""
    servicer = ScriptedServer()  # type: ignore[abstract]
    servicer.scripts = [[accepted(), *(delta(i, "x" * 70_000) for i in range(1, 9)), finished(9)]]
    async with running(servicer, tmp_path) as target:
        reading, writing = os.pipe()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "from clforge import cli; cli.main()", "generate", "--target", target, "-p", "x"),
            stdout=writing,
            stderr=asyncio.subprocess.PIPE,
        )
        os.close(writing)
        await asyncio.to_thread(os.read, reading, 1)
        os.close(reading)
        _, err = await asyncio.wait_for(process.communicate(), 20)
    assert err == b""
    assert process.returncode == exit_codes.FAILED


def test_summary_tells_speed_and_end() -> None:
    """Tokens per second count the intervals between tokens; nothing is divided by zero."""
    usage = Usage(
        prompt_tokens=5, cached_tokens=1, generated_tokens=3, delivered_tokens=3, drafted_tokens=0, accepted_tokens=0
    )
    timings = Timings(queue_seconds=0.0, prefill_seconds=0.25, decode_seconds=0.5, detokenize_seconds=0.0)
    end = Finished(FinishReason.STOP, 2, usage, timings)
    assert summary(end) == "3 tokens; 4.0 tokens/s; prompt 5 tokens (4 computed) in 0.25 s; ended by stop (2)"


STUB = """
import os, signal, sys, threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from service_common.options import PARENT_PID_VARIABLE
from service_common.lifecycle import end_with_parent

def main():
    end_with_parent(int(os.environ[PARENT_PID_VARIABLE]))
    name, does = {name!r}, {does!r}
    Path(__file__).with_suffix(".pid").write_text(str(os.getpid()))
    options = dict(argument[2:].split("=", 1) for argument in sys.argv[1:] if "=" in argument)
    if does == "refuse":
        sys.exit(print("clforge: model.gguf: magic is wrong", file=sys.stderr) or 2)
    terminated, hurried = threading.Event(), threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: (hurried if terminated.is_set() else terminated).set())
    if name == "engine":
        import grpc
        server = grpc.server(ThreadPoolExecutor(1))
        server.add_insecure_port(options["engine"])
        server.start()
    if does != "never get ready":
        print("ready", options.get("grpc", "engine"), flush=True)
    if does == "die":
        os._exit(7)
    while not terminated.wait(0.05): pass
    if does == "drain for long":
        while not hurried.wait(0.05): pass
    print(name, "ends", file=sys.stderr, flush=True)
    os._exit(0)

if __name__ == "__main__":
    main()
"""


@pytest.fixture
def stubs(tmp_path: Path) -> Path:
    """A folder with both services as stubs that do as they are told."""
    folder = tmp_path / "stubs"
    write_stub(folder, "engine", "serve")
    write_stub(folder, "tokenizer", "serve")
    return folder


def write_stub(folder: Path, name: str, does: str) -> None:
    """Makes a service that binds, announces itself, and ends at SIGTERM, but for what `does` says."""
    package = folder / f"{name}_service"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(textwrap.dedent(STUB).format(name=name, does=does))


async def wait_until_gone(folder: Path, seconds: float = 5.0) -> None:
    """Fails if one of the stubs that were started still runs after `seconds`."""
    pids = [int(file.read_text()) for file in folder.glob("*/*.pid")]
    deadline = time.monotonic() + seconds
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, "a child was left behind"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def serving(stubs: Path, *options: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A `clforge serve` that has said ready."""
    process = await start("serve", "--model", "m.gguf", "--grpc", "127.0.0.1:7777", *options, stubs=stubs)
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), 20)
        assert line == b"ready 127.0.0.1:7777\n"
        yield process
    finally:
        if process.returncode is None:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_serve_drains_at_a_signal_and_leaves_nothing(stubs: Path, number: signal.Signals) -> None:
    """One ready line, exit code 0, the tokenizer ends before its engine, and no process stays (CLI-3)."""
    async with serving(stubs) as process:
        process.send_signal(number)
        ended = await end(process)
    assert (ended.code, ended.out) == (0, "")
    assert [line for line in ended.err.splitlines() if "ends" in line] == ["tokenizer ends", "engine ends"]
    await wait_until_gone(stubs)


async def test_second_signal_hurries_the_children(stubs: Path) -> None:
    """A drain that takes long is cut short by the second signal."""
    write_stub(stubs, "tokenizer", "drain for long")
    async with serving(stubs) as process:
        process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.4)
        assert process.returncode is None
        process.send_signal(signal.SIGTERM)
        assert (await end(process)).code == 0
    await wait_until_gone(stubs)


async def test_killed_parent_takes_its_children_along(stubs: Path) -> None:
    """SIGKILL leaves no chance to clean up: the children watch their parent."""
    async with serving(stubs) as process:
        process.kill()
        await process.wait()
    await wait_until_gone(stubs)


@pytest.mark.parametrize("name", ["engine", "tokenizer"])
async def test_death_of_a_child_ends_serve_with_1(stubs: Path, name: str) -> None:
    """One line names the child and how it ended, and the other child is stopped."""
    async with serving(stubs) as process:
        os.kill(int((stubs / f"{name}_service/__main__.pid").read_text()), signal.SIGKILL)
        ended = await end(process)
    assert ended.code == exit_codes.FAILED
    assert f"clforge: the {name} was ended by SIGKILL; its log tells more" in ended.err
    await wait_until_gone(stubs)


@pytest.mark.parametrize("name", ["engine", "tokenizer"])
async def test_child_that_cannot_start_passes_its_line_and_code_on(stubs: Path, name: str) -> None:
    """A model or option error of a child comes out as that one line and exit code 2; nothing says ready."""
    write_stub(stubs, name, "refuse")
    ended = await end(await start("serve", "--model", "m.gguf", stubs=stubs))
    assert (ended.code, ended.out) == (exit_codes.USAGE, "")
    lines = [line for line in ended.err.splitlines() if line != "engine ends"]
    assert lines == ["clforge: model.gguf: magic is wrong"]
    await wait_until_gone(stubs)


async def test_signal_while_loading_ends_serve(stubs: Path) -> None:
    """A server that is not ready yet stops as well, with nothing on standard output."""
    write_stub(stubs, "tokenizer", "never get ready")
    process = await start("serve", "--model", "m.gguf", stubs=stubs)
    while not (stubs / "tokenizer_service/__main__.pid").exists():
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    ended = await end(process)
    assert (ended.code, ended.out) == (0, "")
    await wait_until_gone(stubs)


async def test_ctrl_c_while_a_private_server_loads_leaves_nothing(stubs: Path) -> None:
    """`generate --model` stops the server that it started."""
    write_stub(stubs, "tokenizer", "never get ready")
    process = await start("generate", "--model", "m.gguf", "-p", "x", stubs=stubs)
    while not (stubs / "tokenizer_service/__main__.pid").exists():
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert (await end(process)).code == exit_codes.INTERRUPTED
    await wait_until_gone(stubs)


async def test_address_that_others_can_reach_is_refused_before_anything_starts(stubs: Path) -> None:
    """Without --insecure no child is started for it (D14)."""
    ended = await end(await start("serve", "--model", "m.gguf", "--grpc", "0.0.0.0:7777", stubs=stubs))
    assert ended.code == exit_codes.USAGE
    assert "--insecure" in ended.err
    assert not list(stubs.glob("*/*.pid"))


@pytest.mark.parametrize("name", ["engine", "tokenizer"])
async def test_each_service_runs_alone_with_its_own_options(stubs: Path, name: str) -> None:
    """`clforge engine` and `clforge tokenizer` become the service, with all arguments passed on."""
    (stubs / f"{name}_service/__main__.py").write_text("import os, sys; print(os.getpid(), *sys.argv[1:])")
    process = await start(name, "--help", "--x=1", "y", stubs=stubs)
    assert await end(process) == Ended(0, f"{process.pid} --help --x=1 y\n", "")


def test_devices_are_listed_without_using_them(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line each, or JSON with every fact."""
    ended = clforge(capfd, monkeypatch, "devices")
    assert ended.code == 0
    assert ended.out.startswith("0: ")
    listed = json.loads(clforge(capfd, monkeypatch, "devices", "--json").out)
    assert listed[0]["name"] in ended.out
    monkeypatch.setenv("OCL_ICD_VENDORS", "/nonexistent/icd")
    assert clforge(capfd, monkeypatch, "devices") == Ended(exit_codes.FAILED, f"{NO_DEVICE}\n", "")


def test_doctor_finds_this_machine_fit(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every part is named, none fails, exit code 0."""
    ended = clforge(capfd, monkeypatch, "doctor", "--cache-dir", str(tmp_path / "cache"))
    assert ended.code == 0
    checks = [line.split()[1] for line in ended.out.splitlines()]
    assert checks == ["cache", "drivers", "linker", "self-test", "threads", "memory"]


def test_doctor_names_the_remedy_of_what_is_broken(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A cache others can write and a missing linker are failures with what to do; the rest is checked all the same."""
    (tmp_path / "cache").mkdir(mode=0o777)
    (tmp_path / "cache").chmod(0o777)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("engine_service.host.linker._zig", lambda: None)
    ended = clforge(capfd, monkeypatch, "doctor", "--json", "--cache-dir", str(tmp_path / "cache"))
    assert ended.code == exit_codes.FAILED
    levels = {finding["check"]: finding for finding in json.loads(ended.out)}
    assert "chmod 700" in levels["cache folder"]["message"]
    assert "pip install ziglang" in levels["linker"]["message"]
    assert [levels[name]["level"] for name in ("cache folder", "linker", "self-test")] == ["FAIL"] * 3
    assert levels["memory"]["level"] != "FAIL"


def test_doctor_warns_of_little_memory_and_a_small_quota(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Both slow or limit serving without preventing it."""
    monkeypatch.setattr(doctor, "probe", lambda *_, **__: ProbeReport((), DRIVERS_OWN, NO_DEVICE))
    monkeypatch.setattr(doctor, "available_memory_bytes", lambda: 1 << 30)
    monkeypatch.setattr(doctor, "cpu_quota", lambda: 0.5)
    findings = {finding.check: finding for finding in doctor.examine(cache_dir=tmp_path / "cache")}
    assert (findings["memory"].level, findings["threads"].level) == (Level.WARN, Level.WARN)
    assert "1.0 GiB" in findings["memory"].message
    assert "quota is 0.5" in findings["threads"].message
    assert findings["drivers"] == Finding("drivers", Level.FAIL, NO_DEVICE)


def test_inspect_refuses_what_is_no_model(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A file that is no GGUF gives one line with its name and exit code 2."""
    (tmp_path / "junk").write_bytes(b"junk" * 100)
    ended = clforge(capfd, monkeypatch, "inspect", str(tmp_path / "junk"))
    assert (ended.code, ended.out) == (exit_codes.USAGE, "")
    assert ended.err.count("\n") == 1
    assert str(tmp_path / "junk") in ended.err


async def test_a_child_that_does_not_end_is_killed_and_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`stop` says whether a child ended by itself, so that `serve` can fail for one that had to be killed."""
    for name, ending in (("stubborn", "signal.signal(signal.SIGTERM, signal.SIG_IGN)"), ("mild", "pass")):
        program = f"import signal, time\n{ending}\nprint('ready x', flush=True)\ntime.sleep(60)\n"
        (tmp_path / f"{name}.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for name, by_itself in (("stubborn", False), ("mild", True)):
        child = await Child.start(name, name, [])
        assert await child.announced() == "x"
        assert await child.stop(0.3) is by_itself
        assert await child.ended() != 0
