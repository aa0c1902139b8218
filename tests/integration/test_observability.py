"""What an operator sees of two real processes: metrics over HTTP, live requests, the load; cancelling by global id."""

from __future__ import annotations

import asyncio
import signal
import socket
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest

from clforge.v1 import engine_pb2, tokenizer_pb2
from clforge.v1.generation_pb2 import FINISH_REASON_CANCELLED, REQUEST_STATE_PAUSED, GenerationParams
from tests.gguf_builder import tiny_llama
from tests.integration.processes import Stubs, two_processes
from tests.integration.served import address_of, start
from tests.prometheus import samples

PROMPT = "xylophone marmalade"


def free_address() -> str:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return f"127.0.0.1:{probe.getsockname()[1]}"


def scrape(address: str) -> str:
    """The text that Prometheus reads."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as response:
        return str(response.read().decode())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model."""
    path = tmp_path_factory.mktemp("observability") / "tiny.gguf"
    tiny_llama(path, seed=1, context_length=128)
    return path


async def start_paused(stubs: Stubs, priority: int) -> tuple[Any, str]:
    """A request that waits for credit after two tokens: its stream, and its global id."""
    call = stubs.tokenizer.GenerateText()
    submit = tokenizer_pb2.TextSubmit(
        request_id=1,
        prompt=tokenizer_pb2.Prompt(text=PROMPT),
        params=GenerationParams(initial_credit=2, priority=priority),
    )
    submit.params.stopping.ignore_eos = True
    await call.write(tokenizer_pb2.GenerateTextRequest(submit=submit))
    response = await call.read()
    assert isinstance(response, tokenizer_pb2.GenerateTextResponse)
    return call, response.updates[0].accepted.global_id


async def end_of(call: Any) -> int:
    """Why the stream's request ended."""
    while True:
        for update in (await call.read()).updates:
            if update.HasField("finished"):
                return int(update.finished.reason)


async def test_requests_are_listed_and_cancelled_through_both(model: Path) -> None:
    """Both services list the same requests, oldest first, without their text; a global id ends one through either."""
    with two_processes(model) as processes:
        async with processes.stubs() as stubs:
            first, first_id = await start_paused(stubs, priority=5)
            second, second_id = await start_paused(stubs, priority=-5)
            await _until_paused(stubs)
            listed = await stubs.requests()
            own = (await stubs.engine.ListRequests(engine_pb2.EngineServiceListRequestsRequest())).requests
            for requests in (listed, own):
                assert [info.global_id for info in requests] == [first_id, second_id]
                assert [info.priority for info in requests] == [5, -5]
                assert [info.state for info in requests] == [REQUEST_STATE_PAUSED] * 2
                assert all(info.num_generated_tokens >= 2 for info in requests)  # more where text is held back
                assert all(info.num_prompt_tokens > 2 and info.num_blocks > 0 for info in requests)
                ages = [info.age.ToNanoseconds() for info in requests]
                assert ages[0] > ages[1] > 0
                assert not any(PROMPT.encode() in info.SerializeToString() for info in requests)
            cancel = tokenizer_pb2.CancelRequestRequest(global_id=first_id)
            await stubs.tokenizer.CancelRequest(cancel)
            await stubs.engine.CancelRequest(engine_pb2.EngineServiceCancelRequestRequest(global_id=second_id))
            assert [await end_of(call) for call in (first, second)] == [FINISH_REASON_CANCELLED] * 2
            await stubs.until_live()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stubs.tokenizer.CancelRequest(cancel)
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def _until_paused(stubs: Stubs) -> None:
    """Text that is held back gets credit of the tokenizer's own, so a request may go on once more."""
    async with asyncio.timeout(20):
        while [info.state for info in await stubs.requests()] != [REQUEST_STATE_PAUSED] * 2:
            await asyncio.sleep(0.02)


async def test_both_processes_export_metrics_until_they_end(model: Path) -> None:
    """One request is seen by both; no metric tells its text; SIGTERM closes the ports with the process."""
    addresses = free_address(), free_address()
    with two_processes(model, "--metrics", addresses[0], tokenizer_options=("--metrics", addresses[1])) as processes:
        async with processes.stubs() as stubs:
            request = tokenizer_pb2.CompleteRequest(prompt=tokenizer_pb2.Prompt(text=PROMPT))
            request.params.stopping.max_tokens = 5
            request.params.stopping.ignore_eos = True
            prompt_tokens = (await stubs.tokenizer.Complete(request)).accepted.num_prompt_tokens
        texts = [scrape(address) for address in addresses]
        engine, tokenizer = map(samples, texts)
        assert engine["clforge_engine_ready"] == tokenizer["clforge_tokenizer_ready"] == 1
        assert engine["clforge_prompt_tokens_total"] == prompt_tokens
        assert tokenizer["clforge_tokenizer_prompt_tokens_total"] == prompt_tokens
        assert engine["clforge_generation_tokens_total"] == 5
        assert engine["clforge_step_duration_seconds_count"] == 5
        assert not [word for word in PROMPT.split() if word in "".join(texts)]
        for process, address in zip((processes.tokenizer, processes.engine), reversed(addresses), strict=True):
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
            with pytest.raises(OSError, match="refused"):
                scrape(address)


def test_serve_gives_each_service_its_own_address(model: Path) -> None:
    """--metrics is the engine's, --tokenizer-metrics the tokenizer's."""
    addresses = free_address(), free_address()
    process = start(model, "--metrics", addresses[0], "--tokenizer-metrics", addresses[1])
    try:
        address_of(process)
        engine, tokenizer = (samples(scrape(address)) for address in addresses)
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()
    assert "clforge_num_requests_running" in engine
    assert "clforge_tokenizer_num_requests_live" in tokenizer
    assert not {name for name in engine.keys() & tokenizer.keys() if name.startswith("clforge")}
