"""Our engine as a side of the bench: scheduler, model and greedy sampling in one process, without RPCs.

The sequences of a group wait, between two measurements, for credit: they keep their KV cache and cost nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

import typer

from benchmarks.config import OursConfig
from benchmarks.protocol import BenchError, Timed, serve, tell
from engine_service.compute.kv_plan import plan_for
from engine_service.config import EngineConfig, KVCacheType
from engine_service.host import first_contact
from engine_service.models.tensor_table import read_hyperparameters
from engine_service.scheduling.messages import FinishedEvent, TokenEvent
from engine_service.scheduling.sampling_params import GenerationLimits, SamplingParams
from engine_service.scheduling.sequence import Request
from service_common.gguf_reader import GGUFReader
from service_common.logging import LogLevel, configure_logging
from service_common.options import command

if TYPE_CHECKING:
    from engine_service.engine import Engine

_A_DAY = 86400.0  # sequences may wait for credit while the other side is measured
_GREEDY = SamplingParams(seed=0, temperature=0.0)
_PROGRESS_STEP = 0.01
app = typer.Typer(add_completion=False)


class Ours:
    """A Side that drives an Engine step by step."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._ids = count(1)
        self._groups: dict[str, list[int]] = {}

    def prefill(self, prompt_ids: Sequence[int]) -> Timed:
        """From the arrival of a request to its first token, which is sampled."""
        started = time.perf_counter()
        self._add(prompt_ids, max_tokens=1)
        self._run(num_tokens=1)
        return Timed(len(prompt_ids), time.perf_counter() - started)

    def start(self, group: str, prompts: Sequence[Sequence[int]], max_len: int) -> None:
        """Leaves each sequence with its first token sampled and no credit."""
        self._groups[group] = [self._add(prompt, max_len - len(prompt), initial_credit=1) for prompt in prompts]
        self._run(num_tokens=len(prompts))

    def decode(self, group: str, num_steps: int) -> Timed:
        """From a grant of credit to its end: scheduling, forward passes and sampling."""
        request_ids = self._groups[group]
        num_tokens = num_steps * len(request_ids)
        started = time.perf_counter()
        for request_id in request_ids:
            self._engine.scheduler.grant(request_id, num_steps)
        self._run(num_tokens)
        return Timed(num_tokens, time.perf_counter() - started)

    def _add(self, prompt_ids: Sequence[int], max_tokens: int, initial_credit: int | None = None) -> int:
        request = Request(
            id=next(self._ids),
            prompt_ids=tuple(prompt_ids),
            sampling=_GREEDY,
            limits=GenerationLimits(max_tokens=max_tokens, ignore_eos=True),
            arrival=time.monotonic(),
            initial_credit=initial_credit,
        )
        self._engine.scheduler.add(request)
        return request.id

    def _run(self, num_tokens: int) -> None:
        """Steps until nothing can run. BenchError where that was not the workload: `num_tokens` tokens, each once."""
        num_done = 0
        while self._engine.has_work():
            for event in self._engine.step():
                if isinstance(event, TokenEvent):
                    num_done += 1
                elif isinstance(event, FinishedEvent) and event.error is not None:
                    raise event.error
        if num_done != num_tokens:
            raise BenchError(f"{num_done} tokens were generated; the workload has {num_tokens}")
        if self._engine.scheduler.stats().num_preemptions:
            raise BenchError("sequences lost their KV cache, which must hold all of them: free some memory")


def open_ours(config: OursConfig) -> tuple[Ours, dict[str, Any]]:
    """Loads the model; says how far it has got. Facts: what the report shows of the model and the device."""
    engine_config = EngineConfig(
        model=config.model,
        threads=config.threads,
        context_length=config.context_length,
        max_num_seqs=config.max_num_seqs,
        kv_cache_type=KVCacheType.F16,
        pause_timeout_seconds=_A_DAY,
    )
    first_contact.establish(engine_config.device, threads=config.threads)
    from engine_service.compute.device import list_devices  # these import OpenCL, which first contact must precede
    from engine_service.loader import load_engine

    started = time.perf_counter()
    with GGUFReader(config.model) as reader:
        hyperparameters = read_hyperparameters(reader)
        if hyperparameters.context_length < config.context_length:
            served = f"{reader.name} was trained for {hyperparameters.context_length} tokens"
            raise BenchError(f"{served}; the bench takes sequences of up to {config.context_length}")
        file_bytes = sum(tensor.nbytes for tensor in reader.tensors.values())
        plan = plan_for(engine_config, reader, hyperparameters)
        loaded = load_engine(engine_config, reader, hyperparameters, plan, "", _progress_teller())
    facts = {
        "vocab_size": loaded.model.vocab_size,
        "file_bytes": file_bytes,
        "device_bytes": loaded.model.weight_bytes,
        "load_seconds": round(time.perf_counter() - started, 2),
        "numerics_id": loaded.model.numerics_id,
        "device": loaded.model.device,
        "driver": list_devices()[engine_config.device].version.strip(),
    }
    return Ours(loaded.engine), facts


def _progress_teller() -> Callable[[int, int], None]:
    """Tells the bench of each hundredth that is loaded."""
    told = 0.0

    def progress(done_bytes: int, total_bytes: int) -> None:
        nonlocal told
        fraction = done_bytes / total_bytes
        if fraction >= told + _PROGRESS_STEP:
            tell(progress=fraction)
            told = fraction

    return progress


@app.command()
@command(OursConfig)
def run(config: OursConfig) -> None:
    """Measure our engine as the bench tells by standard input."""
    configure_logging(level=LogLevel.WARNING)
    serve(lambda: open_ours(config))


if __name__ == "__main__":
    app()
