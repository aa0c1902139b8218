"""`clforge serve` beside llama-server: the same file, prompts and threads, the two alternating in one run.

usage: python -m benchmarks.serve_against [--model FILE] [--pairs N] [--streams N] [--requests N] [--json FILE]
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from typing import Any

import typer
from rich.console import Console

from benchmarks.against_report import Round, figures_of_pairs, markdown, show
from benchmarks.config import AgainstConfig
from benchmarks.llama_cpp import llama_server, peer_python
from benchmarks.llama_server import LlamaServer
from benchmarks.models import MODELS, find_shared_data, make_model
from benchmarks.server import Server
from benchmarks.streams import Stream, ask_clforge, ask_llama_server, closed_loop, random_text, tokens_per_second
from clforge import Client
from engine_service.bench.machine import ROOT, commit, machine_facts
from engine_service.bench.peer import PACKAGE, check_peer, peer_build
from service_common.options import command
from service_common.resources import usable_cpus

_RESULTS = ROOT / "benchmarks" / "results.against.json"
_SETTLE_SECONDS = 0.5  # threads of either server spin for a while after their work is done
_CONTEXT_TOKENS = 1024  # of a stream, at llama-server; ours takes what a sequence needs
app = typer.Typer(add_completion=False)
console = Console(stderr=True, highlight=False, soft_wrap=True)


class AgainstBench:
    """One run: what is the same for all its models."""

    def __init__(self, config: AgainstConfig) -> None:
        self.output = config.json or _RESULTS
        self._config = config
        self._threads = config.threads or usable_cpus()
        self._machine = machine_facts(self._threads)
        self._commit = commit((self.output, self.output.with_suffix(".md")))
        version = peer_build(peer_python())["version"]
        self._binary, self._version = llama_server(version.removeprefix(f"{PACKAGE} ")), version

    def measure(self, model: Path) -> dict[str, Any]:
        """A model's entry in the results."""
        config = self._config
        options = (f"--max-num-seqs={max(8, config.streams)}", f"--threads={self._threads}")
        with LlamaServer(self._binary, model, config.streams, _CONTEXT_TOKENS, self._threads) as theirs:
            peer = {"sources": self._version, **theirs.facts}
            check_peer(peer, self._machine["instructions"])
            with Server.whole(model, *options) as ours:
                pairs = asyncio.run(self._pairs(model.stem, ours.address, theirs.address))
        load = {name: getattr(config, name) for name in ("streams", "requests", "prompt_words", "max_tokens")}
        facts = {"machine": self._machine, "peer": peer, "load": load, "commit": self._commit}
        return {**figures_of_pairs(pairs), **facts}

    async def _pairs(self, title: str, ours: str, theirs: str) -> list[dict[str, Round]]:
        max_tokens, rng, pairs = self._config.max_tokens, random.Random(1), []
        async with Client(ours) as client:
            ways: dict[str, Callable[[str], Awaitable[Stream]]] = {
                "ours": lambda prompt: ask_clforge(client, prompt, max_tokens),
                "peer": lambda prompt: ask_llama_server(theirs, prompt, max_tokens),
            }
            for number in range(-1, self._config.pairs):  # the first pair touches memory and does not count
                prompts = [random_text(rng, self._config.prompt_words) for _ in range(self._config.requests)]
                pair = {}
                for name in sorted(ways, reverse=bool(number % 2)):
                    await asyncio.sleep(_SETTLE_SECONDS)
                    streams = await closed_loop(ways[name], prompts, self._config.streams)
                    first_tokens = median(stream.first_token_seconds for stream in streams)
                    pair[name] = Round(tokens_per_second(streams), first_tokens)
                    console.print(f"{title}: pair {number + 1}: {name} {pair[name].tokens_per_s:.1f} tokens/s")
                pairs.append(pair)
        return pairs[1:]

    def write(self, results: dict[str, Any]) -> None:
        """Writes the results so far."""
        self.output.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        self.output.with_suffix(".md").write_text(markdown(results), encoding="utf-8")


def find_models(config: AgainstConfig) -> list[Path]:
    """The files to serve, made where they are missing."""
    if config.model is not None:
        return [config.model.absolute()]
    shared_data = find_shared_data()
    return [make_model(model, shared_data, peer_python) for model in MODELS]


@app.command()
@command(AgainstConfig)
def run(config: AgainstConfig) -> None:
    """Measure many streams at once, of `clforge serve` and of llama-server, and write a table, a JSON file, a page."""
    bench = AgainstBench(config)
    results: dict[str, Any] = {}
    for model in find_models(config):
        results[model.stem] = bench.measure(model)
        bench.write(results)
    show(results)


if __name__ == "__main__":
    app()
