"""Our engine as a side of the bench: scheduler, model and greedy sampling in one process, without RPCs.

The sequences of a group wait, between two measurements, for credit: they keep their KV cache and cost nothing.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import count
from typing import TYPE_CHECKING, Any

import typer

from engine_service.bench.config import OursConfig
from engine_service.bench.protocol import CHUNK_LEN, BenchError, Timed, serve, tell
from engine_service.compute.kv_plan import KVCachePlan, plan_for
from engine_service.config import EngineConfig, KVCacheType
from engine_service.engine import Engine
from engine_service.host import first_contact
from engine_service.models.tensor_table import read_hyperparameters
from engine_service.scheduling.messages import FinishedEvent, TokenEvent
from engine_service.scheduling.sampling_params import GenerationLimits, SamplingParams
from engine_service.scheduling.sequence import Request
from service_common.gguf_reader import GGUFReader
from service_common.logging import LogLevel, configure_logging
from service_common.options import command

if TYPE_CHECKING:
    from engine_service.bench.limits import Limits, MachineLimits
    from engine_service.compute.model_runner import ModelRunner
    from engine_service.models.hyperparameters import Hyperparameters

_A_DAY = 86400.0  # sequences may wait for credit while the other side is measured
_GREEDY = SamplingParams(seed=0, temperature=0.0)
_PROGRESS_STEP = 0.01
_LEAST_VOCABULARY = 256
app = typer.Typer(add_completion=False)


class Ours:
    """An OwnSide that drives an Engine step by step."""

    def __init__(self, engine: Engine, runner: ModelRunner) -> None:
        self._engine, self._runner = engine, runner
        self._ids = count(1)
        self._groups: dict[str, list[int]] = {}

    def prefill(self, prompt_ids: Sequence[int]) -> Timed:
        """The last chunk: from the request's arrival, or the end of the chunk before, to its first token, sampled."""
        started = time.perf_counter()
        self._add(prompt_ids, max_tokens=1)
        ends = self._run(self._engine, num_tokens=1)
        last_start = ends[-2] if len(ends) > 1 else started
        return Timed((len(prompt_ids) - 1) % CHUNK_LEN + 1, ends[-1] - last_start)

    def start(self, group: str, prompts: Sequence[Sequence[int]], max_len: int) -> None:
        """Leaves each sequence with its first token sampled and no credit."""
        self._groups[group] = [self._add(prompt, max_len - len(prompt), initial_credit=1) for prompt in prompts]
        self._run(self._engine, num_tokens=len(prompts))

    def decode(self, group: str, num_steps: int) -> Timed:
        """From a grant of credit to its end: scheduling, forward passes and sampling."""
        return self._decode(self._engine, group, num_steps)

    def copy(self) -> Timed:
        """Copies memory by a kernel of the engine's own device."""
        return self._machine.copy()

    def profile(self, name: str, num_seqs: int, prompt_len: int, num_steps: int) -> dict[str, Any]:
        """Times each launch of `num_steps` steps of `num_seqs` sequences or, without steps, of a prompt's chunks."""
        from engine_service.bench.profile import Profiler

        profiler = Profiler(self._runner)
        engine = Engine(self._engine.scheduler, profiler)
        prompts = [_prompt(prompt_len, seed) for seed in range(num_seqs)]
        if num_steps:
            self.start(name, prompts, prompt_len + 1 + num_steps)
            self._decode(engine, name, num_steps)
        else:
            self._add(prompts[0], max_tokens=1)
            self._run(engine, num_tokens=1)
        return profiler.profile().to_json(self._limits)

    @cached_property
    def _machine(self) -> MachineLimits:
        from engine_service.bench.limits import MachineLimits

        return MachineLimits(self._runner.device)

    @cached_property
    def _limits(self) -> Limits:
        return self._machine.measure()

    def _decode(self, engine: Engine, group: str, num_steps: int) -> Timed:
        request_ids = self._groups[group]
        num_tokens = num_steps * len(request_ids)
        started = time.perf_counter()
        for request_id in request_ids:
            engine.scheduler.grant(request_id, num_steps)
        ends = self._run(engine, num_tokens)
        return Timed(num_tokens, ends[-1] - started)

    def _add(self, prompt_ids: Sequence[int], max_tokens: int, initial_credit: int | None = None) -> int:
        request = Request(
            id=next(self._ids),
            prompt_ids=tuple(prompt_ids),
            sampling=_GREEDY,
            limits=GenerationLimits(max_tokens=max_tokens, ignore_eos=True),
            arrival=time.monotonic(),
            initial_credit=initial_credit,
            cache_salt=None,
        )
        self._engine.scheduler.add(request)
        return request.id

    def _run(self, engine: Engine, num_tokens: int) -> list[float]:
        """Steps until nothing can run; returns when each ended.

        BenchError where that was not the workload: `num_tokens` tokens, each once.
        """
        num_done, ends = 0, []
        while engine.has_work():
            for event in engine.step():
                if isinstance(event, TokenEvent):
                    num_done += 1
                elif isinstance(event, FinishedEvent) and event.error is not None:
                    raise event.error
            self._runner.device.finish()  # a step that samples nothing waits for nothing
            ends.append(time.perf_counter())
        if num_done != num_tokens:
            raise BenchError(f"{num_done} tokens were generated; the workload has {num_tokens}")
        if engine.scheduler.stats().num_preemptions:
            raise BenchError("sequences lost their KV cache, which must hold all of them: free some memory")
        return ends


def _prompt(prompt_len: int, seed: int) -> list[int]:
    """Ids that every vocabulary has; which ones does not change the work."""
    return random.Random(seed).choices(range(_LEAST_VOCABULARY), k=prompt_len)


def open_ours(config: OursConfig) -> tuple[Ours, dict[str, Any]]:
    """Loads the model; says how far it has got. Facts: what the report shows of the model and the device."""
    engine_config = EngineConfig(
        model=config.model,
        threads=config.threads,
        context_length=config.context_length,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=CHUNK_LEN,
        kv_cache_type=KVCacheType.F16,
        pause_timeout_seconds=_A_DAY,
    )
    contact = first_contact.establish(engine_config.device, threads=config.threads)
    from engine_service.compute.device import list_devices  # these import OpenCL, which first contact must precede
    from engine_service.loader import load_engine

    started = time.perf_counter()
    with GGUFReader(config.model) as reader:
        trained = read_hyperparameters(reader)
        hyperparameters = replace(trained, context_length=max(trained.context_length, config.context_length))
        plan = _plan(config, engine_config, reader, hyperparameters)
        loaded = load_engine(engine_config, reader, hyperparameters, plan, "", _progress_teller())
        contact.has_loaded()
        facts = {
            "vocab_size": loaded.model.vocab_size,
            "trained_context_length": trained.context_length,
            "file_bytes": config.model.stat().st_size,
            **_tensor_bytes(reader),
            "device_bytes": loaded.model.weight_bytes,
            "kv_cache_bytes": plan.nbytes,
            "load_seconds": round(time.perf_counter() - started, 2),
            "numerics_id": loaded.model.numerics_id,
            "device": loaded.model.device,
            "driver": list_devices()[engine_config.device].version.strip(),
        }
    return Ours(loaded.engine, loaded.runner), facts


def _plan(
    config: OursConfig, engine_config: EngineConfig, reader: GGUFReader, hyperparameters: Hyperparameters
) -> KVCachePlan:
    """Blocks for the sequences of the workloads and no more: most are far shorter than the longest.

    Sequences may be longer than the model was trained for: what they cost does not depend on what they say.
    """
    plan = plan_for(engine_config, reader, hyperparameters)
    num_blocks = -(-config.num_cached_tokens // plan.shape.block_size) + config.max_num_seqs
    return plan._replace(num_blocks=min(plan.num_blocks, num_blocks))


def _tensor_bytes(reader: GGUFReader) -> dict[str, int]:
    """Bytes of all tensors in the file, and of those that a step reads whole: of embeddings it reads a row a token."""
    sizes = {name: tensor.nbytes for name, tensor in reader.tensors.items()}
    gathered = sizes["token_embd.weight"] if "output.weight" in sizes else 0
    return {"tensor_bytes": sum(sizes.values()), "step_bytes": sum(sizes.values()) - gathered}


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
