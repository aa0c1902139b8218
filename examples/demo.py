"""`make demo`: starts CLForge on a small model, streams a text, answers four requests at once, prints a table.

usage: demo.py [MODEL.gguf]

Without a model it takes the one of the outside test data, or else makes one of random weights: then the machinery is
real and the words mean nothing.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from clforge import Client, Delta, Finished

ROOT = Path(__file__).parent.parent
PROMPTS = ("Once upon a time", "The little dog", "One day, a girl named Lily", "Tom and his mom")
MAX_TOKENS = 120
console = Console(highlight=False)


class Answer(NamedTuple):
    """One request, seen from its client."""

    prompt: str
    text: str
    num_tokens: int
    first_token_seconds: float
    seconds: float


def main() -> None:
    """Exit code 0 when every request was answered to its end."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(sys.argv[1]) if len(sys.argv) > 1 else find_model(Path(folder))
        console.print(f"[bold]starting[/] clforge serve --model {model.name}")
        with server(model) as address:
            asyncio.run(demonstrate(address))


def find_model(folder: Path) -> Path:
    """A small model: a trained one where there is one."""
    shared = Path(os.environ.get("CLFORGE_TEST_DATA", ROOT.parent / "shared"))
    trained = shared / "models" / "stories260K.gguf"
    if trained.exists():
        return trained
    console.print("no trained model at hand: making one of random weights, whose words mean nothing")
    sys.path.insert(0, str(ROOT))
    from tests.gguf_builder import tiny_llama

    model = folder / "random.gguf"
    tiny_llama(model, seed=1)
    return model


@contextmanager
def server(model: Path) -> Iterator[str]:
    """A server on a free port; its address. Ends it, and waits for it, on the way out."""
    command = [str(Path(sys.executable).with_name("clforge")), "serve", "--model", str(model), "--grpc", "127.0.0.1:0"]
    process = subprocess.Popen([*command, "--log-level", "warning"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        words = process.stdout.readline().split()
        if not words or words[0] != "ready":
            sys.exit(f"the server did not start (exit code {process.wait()})")
        yield words[1]
    finally:
        process.terminate()
        process.wait()


async def demonstrate(address: str) -> None:
    """Streams one text to the terminal, then asks four times at once and prints the figures."""
    async with Client(address) as client:
        console.print(f"[bold]ready[/] at {address}\n\n[bold]{PROMPTS[0]}[/]", end="")
        alone = await ask(client, PROMPTS[0], echo=True)
        console.print("\n\n[bold]four requests at once[/]")
        together = await asyncio.gather(*(ask(client, prompt) for prompt in PROMPTS))
    for answer in together:
        console.print(f"  [bold]{answer.prompt}[/]{answer.text[:90].splitlines()[0]} …")
    if together[0].text != alone.text:
        sys.exit("the same request gave another text among neighbours: this must never happen")
    print_table([("alone", [alone]), ("four at once", list(together))])


async def ask(client: Client, prompt: str, *, echo: bool = False) -> Answer:
    """One greedy request, read to its end."""
    started, first, text, num_tokens = time.monotonic(), None, "", 0
    async for event in client.generate(prompt, max_tokens=MAX_TOKENS, temperature=0.0):
        if isinstance(event, Delta):
            first = first or time.monotonic()
            text += event.text
            if echo:
                console.print(event.text, end="", markup=False)
        elif isinstance(event, Finished):
            num_tokens = event.usage.generated_tokens
    now = time.monotonic()
    return Answer(prompt, text, num_tokens, (first or now) - started, now - started)


def print_table(rows: list[tuple[str, list[Answer]]]) -> None:
    """Tokens per second and time to first token of each row's answers."""
    table = Table("", "requests", "tokens", "tokens/s", "first token (ms)", title="\nsummary")
    for name, answers in rows:
        total = sum(answer.num_tokens for answer in answers)
        rate = total / max(answer.seconds for answer in answers)
        first = max(answer.first_token_seconds for answer in answers) * 1000
        table.add_row(name, str(len(answers)), str(total), f"{rate:.0f}", f"{first:.0f}")
    console.print(table)


if __name__ == "__main__":
    main()
