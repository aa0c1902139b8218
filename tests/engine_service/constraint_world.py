"""Constrained generation in the test's own process: an engine, a compiler of grammars, and texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine_service.bundled import BUNDLED_MODEL
from engine_service.constraints.compiler import GrammarCompiler
from engine_service.constraints.spec import ConstraintSpec
from engine_service.constraints.token_bytes import TokenBytes
from engine_service.engine import Engine
from engine_service.models.tensor_table import read_hyperparameters
from engine_service.scheduling.messages import FinishedEvent, TokenEvent
from engine_service.scheduling.sampling_params import SamplingParams
from engine_service.scheduling.sequence import FinishReason, Request
from service_common.gguf_reader import GGUFReader
from tests import in_process


@dataclass
class Output:
    """What a choice gave."""

    token_ids: list[int] = field(default_factory=list)
    end: FinishedEvent | None = None

    @property
    def reason(self) -> FinishReason:
        """Why it ended."""
        assert self.end is not None
        return self.end.reason


@dataclass
class ConstraintWorld:
    """An engine, and what makes its requests."""

    engine: Engine
    compiler: GrammarCompiler
    tokens: TokenBytes

    def request(self, number: int, spec: ConstraintSpec, max_tokens: int = 100, **options: Any) -> Request:
        """A hot one: a small model's tokens are nearly random then, and only the constraint gives them a form."""
        fields = {"sampling": SamplingParams(seed=number, temperature=5.0), "grammar": self.compiler.compile_now(spec)}
        return in_process.request(number, [1, 5 + number % 50, 9], max_tokens, **(fields | options))

    def run(self, *requests: Request) -> dict[tuple[int, int], Output]:
        """The outputs of all choices, by request and choice."""
        for request in requests:
            self.engine.add(request)
        outputs: dict[tuple[int, int], Output] = {}
        while self.engine.has_work():
            for event in self.engine.step():
                if isinstance(event, TokenEvent | FinishedEvent):
                    output = outputs.setdefault((event.request_id, event.choice), Output())
                    if isinstance(event, TokenEvent):
                        output.token_ids.append(event.token.token_id)
                    else:
                        output.end = event
        self.engine.scheduler.check_integrity()
        return outputs

    def text(self, output: Output) -> str:
        """The output's text; it must be UTF-8."""
        return self.raw(output).decode("utf-8")

    def raw(self, output: Output) -> bytes:
        """The output's bytes, which may end within a character."""
        return b"".join(self.tokens.texts[token_id] for token_id in output.token_ids)


@contextmanager
def constraint_world(model: Path = BUNDLED_MODEL, **options: Any) -> Iterator[ConstraintWorld]:
    """A world with `model` loaded; `options` are those of EngineConfig."""
    with compiler_of(model) as compiler, in_process.engine(model, **options) as engine, GGUFReader(model) as reader:
        yield ConstraintWorld(engine, compiler, _token_bytes(reader)())


@contextmanager
def compiler_of(model: Path, **options: Any) -> Iterator[GrammarCompiler]:
    """A compiler for the vocabulary of `model`; `options` are its own."""
    with GGUFReader(model) as reader:
        compiler = GrammarCompiler(_token_bytes(reader), **options)
        try:
            yield compiler
        finally:
            compiler.close()


def _token_bytes(reader: GGUFReader) -> Callable[[], TokenBytes]:
    return lambda: TokenBytes.from_gguf(reader, read_hyperparameters(reader).vocab_size)
