"""`make demo`: a conversation with CLForge, and four questions at once whose answers are checked.

usage: demo.py [MODEL.gguf]

Without a model it takes the bundled clforge-tiny. Exit code 1 when an answer is wrong, or not the same bits among
others as alone.
"""

from __future__ import annotations

import asyncio
import calendar
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from clforge import ClforgeError, Client, Delta, Message, TokenLogprobs

CODE = "4821"
SAID = ("What can you do?", f"The code of the red door is {CODE}.", "Tell me a story about a fox.")
STORYTELLING = 0.7
"""Temperature of the conversation: a story told greedily gives all its animals one name."""
MAX_TOKENS = 400
console = Console(highlight=False)


class Question(NamedTuple):
    """What to ask at the end of a conversation, and how the right answer ends."""

    text: str
    ending: str
    earlier: tuple[Message, ...] = ()


class Answer(NamedTuple):
    """An answer as it came, with the log-probability of each token, and the times its client measured."""

    text: str
    tokens: tuple[TokenLogprobs, ...]
    first_token_seconds: float
    seconds: float


def main() -> None:
    """Starts both services, shows what they do, and ends them."""
    model = ["--model", sys.argv[1]] if len(sys.argv) > 1 else []
    console.print("[bold]Two processes[/]")
    with (
        service("engine", *model, "--engine", "127.0.0.1:0") as engine,
        service("tokenizer", "--engine", engine, "--grpc", "127.0.0.1:0") as address,
    ):
        faults = asyncio.run(demonstrate(address))
    if faults:
        sys.exit("\n".join(faults))


@contextmanager
def service(name: str, *options: str) -> Iterator[str]:
    """`clforge engine` or `clforge tokenizer`, once it is ready; its address."""
    clforge = Path(sys.executable).with_name("clforge")
    with subprocess.Popen(
        [clforge, name, *options, "--log-level", "warning"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            ready, _, address = process.stdout.readline().strip().partition(" ")
            if not ready:
                sys.exit(f"the {name} did not start: exit code {process.wait()}")
            console.print(f"  {name:<9}  pid {process.pid}, {address}")
            yield address
        finally:
            process.terminate()


async def demonstrate(address: str) -> list[str]:
    """A conversation that streams, then the questions, one by one and at once; returns what was wrong."""
    async with Client(address) as client:
        console.print("\n[bold]A conversation[/]")
        talk: list[Message] = []
        said = [await converse(client, talk, text) for text in SAID]
        asked = questions(tuple(talk))
        alone = [await ask(client, question.text, question.earlier) for question in asked]
        together = await asyncio.gather(*(ask(client, question.text, question.earlier) for question in asked))
    console.print("\n[bold]Four questions at once[/]")
    faults = [fault for trial in zip(asked, together, alone, strict=True) for fault in check(*trial)]
    table = summary_table()
    add_row(table, "the conversation", said, sum(answer.seconds for answer in said))
    add_row(table, "four questions, one by one", alone, sum(answer.seconds for answer in alone))
    add_row(table, "four questions at once", together, max(answer.seconds for answer in together))
    console.print(table)
    return faults


def questions(talk: tuple[Message, ...]) -> list[Question]:
    """Four questions, the last about what was said in `talk`, with the results that Python finds."""
    numbers, day = [42, 7, 93, 18, 65], calendar.FRIDAY
    return [
        Question(f"Sort these numbers: {listed(numbers)}.", listed(sorted(numbers))),
        Question("What is 47 + 38?", f"{47 + 38}"),
        Question(f"What day comes 3 days after {calendar.day_name[day]}?", calendar.day_name[(day + 3) % 7]),
        Question("What is the code of the red door?", CODE, earlier=talk),
    ]


def listed(numbers: Iterable[int]) -> str:
    """Numbers as people write them."""
    return ", ".join(map(str, numbers))


async def converse(client: Client, talk: list[Message], text: str) -> Answer:
    """Says `text` in the conversation `talk`, shows the answer while it streams, and adds both to `talk`."""
    console.print(f"  [cyan]{text}[/]\n  ", end="")
    answer = await ask(client, text, talk, temperature=STORYTELLING, echo=True)
    console.print()
    talk += [{"role": "user", "content": text}, {"role": "assistant", "content": answer.text}]
    return answer


async def ask(
    client: Client, text: str, earlier: Iterable[Message] = (), *, temperature: float = 0.0, echo: bool = False
) -> Answer:
    """One answer, greedy unless told otherwise, read to its end and shown piece by piece if `echo`."""
    started, first_token_seconds = time.monotonic(), 0.0
    answer, tokens = "", list[TokenLogprobs]()
    messages: list[Message] = [*earlier, {"role": "user", "content": text}]
    async for event in client.chat(messages, temperature=temperature, seed=1, max_tokens=MAX_TOKENS, logprobs=0):
        if isinstance(event, Delta):
            first_token_seconds = first_token_seconds or time.monotonic() - started
            answer += event.text
            tokens += event.logprobs
            if echo:
                console.out(event.text, end="", highlight=False)
    return Answer(answer, tuple(tokens), first_token_seconds, time.monotonic() - started)


def check(question: Question, answer: Answer, alone: Answer) -> Iterator[str]:
    """Prints an answer with its mark, and yields what is wrong with it."""
    right = answer.text.removesuffix(".").endswith(question.ending)
    same = answer.tokens == alone.tokens
    console.print(f"  {'[green]✓[/]' if right and same else '[red]✗[/]'} [cyan]{question.text}[/]")
    console.out(f"    {answer.text}", highlight=False)
    if not right:
        yield f"wrong: {question.text!r} was answered {answer.text!r}, which should end in {question.ending!r}"
    if not same:
        yield f"changed: {question.text!r} was answered {answer.text!r} among others and {alone.text!r} alone"


def summary_table() -> Table:
    """A table of figures, still empty."""
    table = Table("", title="\nSummary", title_justify="left", title_style="bold")
    for heading in ("requests", "tokens", "tokens/s", "first token, ms"):
        table.add_column(heading, justify="right")
    return table


def add_row(table: Table, name: str, answers: list[Answer], seconds: float) -> None:
    """Adds the figures of requests that took `seconds` in all: their rate, and the longest wait for a first token."""
    num_tokens = sum(len(answer.tokens) for answer in answers)
    first = max(answer.first_token_seconds for answer in answers)
    table.add_row(name, f"{len(answers)}", f"{num_tokens}", f"{num_tokens / seconds:.0f}", f"{first * 1000:.0f}")


if __name__ == "__main__":
    try:
        main()
    except ClforgeError as error:
        sys.exit(f"demo: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
