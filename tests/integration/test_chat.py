"""A conversation through both processes, by each way to ask for one."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

from clforge import Chat, Client
from tests.gguf_builder import tiny_llama
from tests.integration.served import CLFORGE, environment, served

TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}assistant: "


def test_every_way_to_ask_gives_the_continuation_of_the_rendered_ids(tmp_path: Path) -> None:
    """SDK, session and command line answer a conversation as the engine continues the ids that RenderChat shows."""
    model = tmp_path / "tiny.gguf"
    tiny_llama(model, seed=3, keys={"tokenizer.chat_template": TEMPLATE})

    async def ask(address: str) -> str:
        async with Client(address) as client, client.session() as session:
            rendered = await client.render_chat("the rain </s>", system="and")
            assert rendered.text == "<s>system: and</s>user: the rain </s></s>assistant: "
            assert (rendered.token_ids.count(1), rendered.token_ids.count(2)) == (1, 2)
            expected = await client.complete(rendered.token_ids, max_tokens=20, temperature=0.0)
            chat = Chat("the rain </s>", system="and")
            answer = await client.complete(chat, max_tokens=20, temperature=0.0)
            events = [event async for event in session.generate(chat, max_tokens=20, temperature=0.0)]
            assert answer.choices[0].token_ids == expected.choices[0].token_ids
            assert "".join(getattr(event, "text", "") for event in events) == expected.text
            return expected.text

    with served(model) as address:
        expected = asyncio.run(ask(address))
        options = ["--chat", "-p", "the rain </s>", "--system", "and", "--max-tokens", "20", "--temperature", "0"]
        command = [*CLFORGE, "generate", "--target", address, *options]
        done = subprocess.run(command, capture_output=True, env=environment(), timeout=60, check=True)
    assert done.stdout.decode() == expected
    private = [*CLFORGE, "generate", "--model", str(model), *options]
    done = subprocess.run(private, capture_output=True, env=environment(), timeout=60, check=True)
    assert done.stdout.decode() == expected
