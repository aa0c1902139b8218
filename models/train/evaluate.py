"""Asks a served model held-out questions, end to end, and tells how many it answers right, letter for letter.

usage: python -m models.train.evaluate [--target ADDRESS | --model FILE] [--questions N] [--seed S] [--json FILE] ...
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from clforge import ClforgeError, Client, Delta, Finished, FinishReason, UnreachableError
from clforge.cli import exit_codes
from clforge.cli.local_server import ServerFailed, local_server
from engine_service.bundled import BUNDLED_MODEL
from engine_service.config import EngineConfig
from models.train.examination import examination
from models.train.question import Question
from models.train.report import Answer, Report
from service_common.logging import LogLevel

_MAX_TOKENS = 256
"""Of an answer; right ones have fewer than 100."""
_MAX_CONCURRENT = 64
_errors = Console(stderr=True)


async def ask(client: Client, question: Question) -> Answer:
    """The model's greedy answer. Raises what ``Client.chat`` does."""
    text, has_ended = "", False
    async for event in client.chat(question.text, temperature=0.0, max_tokens=_MAX_TOKENS):
        if isinstance(event, Delta):
            text += event.text
        elif isinstance(event, Finished):
            has_ended = event.reason is FinishReason.STOP
    since_fact = question.text.partition(question.key)[2] if question.skill == "recall" else None
    distance = None if since_fact is None else len(await client.encode(since_fact, add_special=False))
    return Answer(question, text, has_ended, distance)


async def ask_all(
    client: Client, questions: Mapping[str, Sequence[Question]], on_answer: Callable[[], None] = lambda: None
) -> dict[str, list[Answer]]:
    """The answers to an examination, in order, many asked at once; calls ``on_answer`` after each."""
    slots = asyncio.Semaphore(_MAX_CONCURRENT)

    async def ask_in_turn(question: Question) -> Answer:
        async with slots:
            answer = await ask(client, question)
        on_answer()
        return answer

    flat = await asyncio.gather(*(ask_in_turn(question) for each in questions.values() for question in each))
    answers = iter(flat)
    return {name: [next(answers) for _ in each] for name, each in questions.items()}


def main(
    target: Annotated[str | None, typer.Option(help="Address of a running server.", metavar="ADDRESS")] = None,
    model: Annotated[
        Path | None, typer.Option(help="File to serve privately; default: clforge-tiny.gguf.", metavar="FILE")
    ] = None,
    questions: Annotated[int, typer.Option(help="Questions of each skill and distance.", min=1)] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the questions.")] = 1,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures, too.", metavar="FILE")] = None,
    show_wrong: Annotated[int, typer.Option(help="Wrong answers to show of each skill and distance.", min=0)] = 0,
) -> None:
    """Scores the model on held-out questions. Exit code 1 where a target is missed."""
    if target is not None and model is not None:
        raise typer.BadParameter("--target and --model exclude each other: a running server, or a private one")
    asked = examination(seed, questions)
    try:
        answers = asyncio.run(_examine(target, asked) if target else _serve_and_examine(model or BUNDLED_MODEL, asked))
    except ServerFailed as failure:
        failure.print()
        sys.exit(failure.exit_code)
    except ClforgeError as error:
        _errors.print(f"evaluate: {error}", markup=False, highlight=False)
        sys.exit(exit_codes.UNREACHABLE if isinstance(error, UnreachableError) else exit_codes.FAILED)
    report = Report.of(answers)
    report.print(show_wrong)
    if json_file is not None:
        report.write(json_file, seed)
    sys.exit(exit_codes.FAILED if report.missed else exit_codes.OK)


async def _serve_and_examine(model: Path, questions: Mapping[str, Sequence[Question]]) -> dict[str, list[Answer]]:
    async with local_server(EngineConfig(model=model, log_level=LogLevel.WARNING)) as server:
        with _errors.status(f"loading {model.name}"):
            target = await server.start()
        return await server.while_alive(_examine(target, questions))


async def _examine(target: str, questions: Mapping[str, Sequence[Question]]) -> dict[str, list[Answer]]:
    with Progress(console=_errors) as progress:
        task = progress.add_task("asking", total=sum(map(len, questions.values())))
        async with Client(target) as client:
            return await ask_all(client, questions, lambda: progress.advance(task))


if __name__ == "__main__":
    typer.run(main)
