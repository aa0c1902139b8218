"""Through both processes, text in and text out, against llama.cpp's greedy continuations."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from clforge import Client
from tests.gguf_builder import tiny_llama
from tests.in_process import engine, request, run_to_end
from tests.integration.served import served


def test_greedy_ids_equal_those_of_llama_cpp(shared_data: Path) -> None:
    """Every golden prompt of the real model, asked one by one and all at once: no exception."""
    golden = json.loads((shared_data / "models/stories260K.golden.json").read_text(encoding="utf-8"))["cases"]

    async def ask(client: Client, case: dict[str, list[int] | str]) -> None:
        assert isinstance(case["prompt"], str)
        assert list(await client.encode(case["prompt"])) == case["prompt_ids"]
        expected = case["greedy_ids"]
        completion = await client.complete(case["prompt"], max_tokens=len(expected), temperature=0.0)
        assert list(completion.choices[0].token_ids) == expected

    async def ask_all(address: str) -> None:
        async with Client(address) as client:
            for case in golden:
                await ask(client, case)
            await asyncio.gather(*(ask(client, case) for case in golden for _ in range(4)))

    with served(shared_data / "models/stories260K.gguf") as address:
        asyncio.run(ask_all(address))


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_a_seeded_model_gives_its_ids_through_both_processes(arch: str, tmp_path: Path) -> None:
    """The same path on a model made here: text, ids and seeds through the services equal the engine's own."""
    model = tmp_path / "tiny.gguf"
    tiny_llama(model, seed=3, arch=arch)

    async def ask(address: str) -> tuple[list[int], list[int]]:
        async with Client(address) as client:
            prompt = list(await client.encode("the tones and the rain"))
            completion = await client.complete("the tones and the rain", max_tokens=20, temperature=0.0)
            ids = list(completion.choices[0].token_ids)
            assert completion.choices[0].text == await client.decode(ids)
            return prompt, ids

    with served(model) as address:
        prompt, ids = asyncio.run(ask(address))
    with engine(model) as running:
        running.add(request(1, prompt, 20))
        assert [token.token_id for token in run_to_end(running)[1]] == ids
