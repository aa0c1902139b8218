"""`clforge serve` beside llama-server: arithmetic, what clients take in, reports, failures. No claim about speed."""

from __future__ import annotations

import asyncio
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from benchmarks import llama_cpp, sdk, start
from benchmarks.against_report import Round, figures_of_pairs, markdown, table_rows
from benchmarks.llama_server import LlamaServer, system_info
from benchmarks.streams import (
    Stream,
    ask_llama_server,
    closed_loop,
    random_text,
    steady_tokens_per_second,
    take_events,
    tokens_per_second,
)
from engine_service.bench.protocol import BenchError
from tests.gguf_builder import tiny_llama

_LOG = """
0.00 I srv  llama_server: initializing ...
system_info: n_threads = 2 (n_threads_batch = 2) / 2 | CPU : AVX2 = 1 | REPACK = 1 |
0.01 I srv  load_model: loading
"""


def stream(started: float, *arrivals: float, num_tokens: int | None = None) -> Stream:
    """An answer whose pieces are a token each."""
    return Stream(started, [(at, 1) for at in arrivals], num_tokens or len(arrivals))


def results() -> dict[str, Any]:
    """Results of one model."""
    pairs = [
        {"ours": Round(90.0, 1.0), "peer": Round(45.0, 4.0)},
        {"ours": Round(40.0, 2.0), "peer": Round(10.0, 4.0)},
        {"ours": Round(60.0, 3.0), "peer": Round(20.0, 4.0)},
    ]
    machine = {"cpu": "a CPU", "cpus": 4, "threads": 2, "system": "Linux", "load_1min": 0.1}
    peer = {
        "version": "version: 1",
        "sources": "llama-cpp-python 1",
        "system_info": "AVX2 = 1",
        "command": "llama-server -np 16",
    }
    load = {"streams": 16, "requests": 32, "prompt_words": 96, "max_tokens": 48}
    return {
        "tiny": {**figures_of_pairs(pairs), "machine": machine, "peer": peer, "load": load, "commit": "0123456789ab"}
    }


def test_ratios_are_those_of_pairs() -> None:
    """The median of the pairs' ratios, for tokens/s and for the time to the first token."""
    rate, first = (results()["tiny"][name] for name in Round._fields)
    assert (rate["ours"], rate["peer"], rate["ratio"], rate["ratio_spread"]) == (60.0, 20.0, 3.0, [2.0, 4.0])
    assert (first["ratio"], first["ratio_spread"]) == (0.5, [0.25, 0.75])


def test_page_names_peer_and_load() -> None:
    """Both figures, and all without which they say nothing."""
    assert table_rows(results())[1] == ("tiny", "tokens_per_s", "60", "20", "3.00", "2.00–4.00")
    page = markdown(results())
    for fact in ("0123456789ab", "AVX2 = 1", "llama-server -np 16", "llama-cpp-python 1", "16 streams", "96 words"):
        assert fact in page


def test_rates_count_all_streams() -> None:
    """From the first question to the last piece; steady are only the tokens that came while all ran."""
    streams = [stream(0.0, 1.0, 2.0, 3.0, 4.0), stream(0.5, 1.5, 2.5, 3.5, 4.5, 5.5)]
    assert tokens_per_second(streams) == 9 / 5.5
    assert steady_tokens_per_second(streams) == 5 / 2.5
    with pytest.raises(BenchError, match="never ran all at once"):
        steady_tokens_per_second([stream(0.0, 1.0, 2.0), stream(0.0, 3.0, 4.0)])


def test_events_of_the_peer_are_taken_in() -> None:
    """Pieces count when they come, the end's and the count's events do not; tokens are as the server counts them."""
    events: list[dict[str, Any]] = [
        {"choices": [{"text": "a", "finish_reason": None}]},
        {"choices": [{"text": "b", "finish_reason": None}]},
        {"choices": [{"text": "", "finish_reason": "length"}]},
        {"choices": [], "usage": {"completion_tokens": 3}},
    ]
    taken = Stream(0.0)
    take_events(taken, [*(f"data: {json.dumps(event)}\n".encode() for event in events), b"\n", b"data: [DONE]\n"])
    assert (len(taken.arrivals), taken.num_tokens) == (2, 3)


async def test_no_more_streams_than_wanted_run_at_once() -> None:
    """The next question is asked when an answer has ended."""
    running = peak = 0

    async def ask(prompt: str) -> Stream:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0)
        running -= 1
        return stream(0.0, 1.0)

    assert len(await closed_loop(ask, ["a"] * 10, num_streams=3)) == 10
    assert peak == 3


def test_prompts_differ() -> None:
    """As many words as wanted, others each time."""
    rng = random.Random(1)
    first, second = random_text(rng, 96), random_text(rng, 96)
    assert len(first.split()) == 96
    assert first != second


def test_instruction_sets_are_found_in_the_log() -> None:
    """What llama-server says of its build is kept; where it says nothing there is nothing."""
    assert system_info(_LOG) == "CPU : AVX2 = 1 | REPACK = 1 |"
    assert system_info("no such line") == ""


async def test_a_server_that_does_not_answer_is_reported() -> None:
    """One line with the address."""
    with pytest.raises(BenchError, match=r"127\.0\.0\.1:9 does not answer"):
        await ask_llama_server("127.0.0.1:9", "x", 1)


def test_a_server_that_does_not_run_names_the_remedy(tmp_path: Path) -> None:
    """A binary that is none, and one that ends at once, are told in one line."""
    with pytest.raises(BenchError, match="LLAMA_SERVER"):
        LlamaServer(tmp_path / "none", tmp_path / "model.gguf", 1, 128, 1)
    ends = tmp_path / "llama-server"
    ends.write_text("#!/bin/sh\necho no such model\nexit 3\n")
    ends.chmod(0o755)
    with pytest.raises(BenchError, match="exit code 3: no such model"):
        LlamaServer(ends, tmp_path / "model.gguf", 1, 128, 1)


def test_a_named_server_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """LLAMA_SERVER is taken as it is."""
    monkeypatch.setenv(llama_cpp.SERVER_VARIABLE, "/somewhere/llama-server")
    assert llama_cpp.llama_server("1") == Path("/somewhere/llama-server")


def test_sources_without_a_server_name_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the package's archive lacks the server, the user is asked for one."""
    monkeypatch.delenv(llama_cpp.SERVER_VARIABLE, raising=False)
    monkeypatch.setattr(llama_cpp, "_SERVER", tmp_path)
    (tmp_path / "source" / "llama_cpp_python-1").mkdir(parents=True)
    with pytest.raises(BenchError, match="LLAMA_SERVER"):
        llama_cpp.llama_server("1")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model."""
    path = tmp_path_factory.mktemp("against") / "tiny.gguf"
    tiny_llama(path, seed=3, layers=1, context_length=1024)
    return path


def test_sdk_part_measures_both_ways(model: Path) -> None:
    """The same prompts by SDK and in-process; shares are ratios of pairs."""
    figures = sdk.measure(model, 1, sdk.SdkLoad(num_streams=(1, 2), prompt_len=32, max_tokens=64, num_pairs=1))
    for num_streams in (1, 2):
        rates = (figures[f"{way}_tokens_per_s_{num_streams}"] for way in ("sdk", "engine"))
        by_sdk, in_process = rates
        assert figures[f"share_{num_streams}"] == by_sdk / in_process


def test_start_part_measures_time_and_memory(model: Path) -> None:
    """Readiness less the time to read the file, and a peak that is more than nothing and counts no pages of files."""
    figures = start.measure(model, 1, start.StartLoad(kv_cache_mib=16, prompt_len=64, max_tokens=4))
    assert figures["ready_beyond_read_s"] == figures["ready_s"] - figures["read_s"]
    assert figures["peak_share"] == figures["peak_mib"] / figures["allowed_mib"]
    assert 10 < figures["peak_mib"] < 2000


@pytest.mark.skipif(llama_cpp.SERVER_VARIABLE not in os.environ, reason="LLAMA_SERVER names no llama-server")
async def test_llama_server_answers_and_tells_its_build(model: Path) -> None:
    """A real one gives as many tokens as it is asked for, and its facts."""
    with LlamaServer(Path(os.environ[llama_cpp.SERVER_VARIABLE]), model, 2, 256, 1) as server:
        answer = await ask_llama_server(server.address, "a b c", 8)
    assert answer.num_tokens == 8
    assert all(server.facts.values())
    assert str(model.parent) not in server.facts["command"]
