"""An engine in the test's own process: no RPCs, no threads."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine_service.compute.kv_plan import plan_for
from engine_service.compute.model_runner import ModelRunner
from engine_service.config import EngineConfig
from engine_service.engine import Engine
from engine_service.loader import load_engine
from engine_service.models.tensor_table import read_hyperparameters
from engine_service.scheduling.messages import FinishedEvent, ScheduledChunk, ScheduledStep, TokenEvent
from engine_service.scheduling.sampling_params import GenerationLimits, SamplingParams
from engine_service.scheduling.sequence import Request, Sequence
from service_common.gguf_reader import GGUFReader


@contextmanager
def engine(model: Path, **options: Any) -> Iterator[Engine]:
    """An engine with `model` loaded; `options` are those of EngineConfig."""
    config = EngineConfig(model=model, **options)
    with GGUFReader(model) as reader:
        hyperparameters = read_hyperparameters(reader)
        plan = plan_for(config, reader, hyperparameters)
        loaded = load_engine(config, reader, hyperparameters, plan, "", lambda done, total: None)
        try:
            yield loaded.engine
        finally:
            loaded.engine.close()


def request(request_id: int, prompt_ids: list[int], max_tokens: int, **options: Any) -> Request:
    """A greedy request, unless `options`, which are fields of Request, say otherwise."""
    fields: dict[str, Any] = {
        "sampling": SamplingParams(seed=1, temperature=0.0),
        "limits": GenerationLimits(max_tokens=max_tokens),
        "arrival": 0.0,
    }
    return Request(id=request_id, prompt_ids=tuple(prompt_ids), **(fields | options))


def run_to_end(running: Engine) -> dict[int, list[Any]]:
    """Steps until all requests have ended; the sampled tokens of each request's choice 0, in order."""
    tokens: dict[int, list[Any]] = {}
    while running.has_work():
        for event in running.step():
            if isinstance(event, TokenEvent) and event.choice == 0:
                tokens.setdefault(event.request_id, []).append(event.token)
            if isinstance(event, FinishedEvent):
                assert event.error is None, event.error
    return tokens


def logits(model: Path, token_ids: list[int], **options: Any) -> NDArray[np.float32]:
    """Logits (len(token_ids), vocab_size) after each token, from one ragged batch of one-token chunks."""
    count = len(token_ids)
    with engine(model, max_num_seqs=count, **options) as running:
        runner = running._runner
        assert isinstance(runner, ModelRunner)
        blocks = array("i", range(-(-count // 32)))
        sequence = Sequence(
            request=request(1, token_ids, 1),
            choice=0,
            rank=(0.0, 0, 0),
            max_tokens=1,
            end_token_ids=frozenset(),
            credit=1,
        )
        sequence.block_table = blocks
        chunks = [ScheduledChunk(sequence, position, 1, 1) for position in range(count)]
        runner.run(ScheduledStep(chunks, count, count))
        vocab_size = runner._sampler.vocab_size
        out = np.empty((count, vocab_size), np.float32)
        runner.device.read(runner._model.logits, out)
        return out
