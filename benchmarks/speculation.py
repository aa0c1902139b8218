"""What drafts bring when all, half or none of their tokens are accepted: tokens/s of decode ÷ those without drafts.

    python -m benchmarks.serving --only speculation

A greedy answer is always the same, so once it is known drafts can be made of it, as right or as wrong as wanted.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from engine_service.bench.protocol import BenchError
from engine_service.compute.kv_plan import plan_for
from engine_service.config import EngineConfig
from engine_service.host import first_contact
from engine_service.models.tensor_table import read_hyperparameters
from engine_service.scheduling.drafter import Drafter
from engine_service.scheduling.messages import FinishedEvent, TokenEvent
from engine_service.scheduling.sampling_params import GenerationLimits, SamplingParams
from engine_service.scheduling.sequence import Request
from engine_service.scheduling.sequence import Sequence as ScheduledSequence
from engine_service.scheduling.speculation import MAX_DRAFT_TOKENS, Speculation
from service_common.gguf_reader import GGUFReader
from service_common.resources import usable_cpus

if TYPE_CHECKING:
    from engine_service.engine import Engine

_GREEDY = SamplingParams(seed=0, temperature=0.0)


class SpeculationLoad(NamedTuple):
    """Shares of right draft tokens, how long prompt and answer are, and how often each share is measured."""

    acceptances: Sequence[float] = (1.0, 0.5, 0.0)
    prompt_len: int = 128
    max_tokens: int = 128
    num_pairs: int = 3


class KnownAnswer:
    """A DraftSource that knows the answer and tells it with errors: each token is right with chance `acceptance`."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self.token_ids: tuple[int, ...] = ()
        self.acceptance = 0.0

    def draft(self, sequence: ScheduledSequence, max_tokens: int) -> tuple[int, ...]:
        """As DraftSource has it. A wrong token is the one with the id before or after the right one's."""
        following = self.token_ids[sequence.num_generated :][:max_tokens]
        return tuple(token_id if self._rng.random() < self.acceptance else token_id ^ 1 for token_id in following)


class _Answer(NamedTuple):
    token_ids: tuple[int, ...]
    rate: float  # tokens/s from the first token to the last
    drafted: int
    accepted: int


_LOAD = SpeculationLoad()


def measure(model: Path, seed: int, load: SpeculationLoad = _LOAD) -> dict[str, float]:
    """Tokens/s without drafts, and for each acceptance the median ratio of pairs and the share that was accepted."""
    known = KnownAnswer(seed)
    plain_rates: list[float] = []
    figures: dict[str, float] = {}
    with _engine(model, known, load) as engine:
        asking = _Asking(engine, random.Random(seed).choices(range(256), k=load.prompt_len), load.max_tokens)
        known.token_ids = asking.ask(max_draft_tokens=0).token_ids
        for known.acceptance in load.acceptances:
            ratios, drafted, accepted = [], 0, 0
            for number in range(load.num_pairs):
                order = (0, MAX_DRAFT_TOKENS) if number % 2 else (MAX_DRAFT_TOKENS, 0)
                answers = {most: asking.ask(most) for most in order}
                plain, with_drafts = answers[0], answers[MAX_DRAFT_TOKENS]
                if plain.token_ids != known.token_ids or with_drafts.token_ids != known.token_ids:
                    raise BenchError("drafts have changed the answer, which must never happen")
                plain_rates.append(plain.rate)
                ratios.append(with_drafts.rate / plain.rate)
                drafted += with_drafts.drafted
                accepted += with_drafts.accepted
            name = f"{known.acceptance:.0%}".removesuffix("%")
            figures[f"speedup_{name}"] = median(ratios)
            figures[f"accepted_share_{name}"] = accepted / max(1, drafted)
    return {"plain_tokens_per_s": median(plain_rates), **figures}


class _Asking:
    def __init__(self, engine: Engine, prompt_ids: Sequence[int], max_tokens: int) -> None:
        self._engine, self._prompt_ids, self._max_tokens = engine, tuple(prompt_ids), max_tokens
        self._ids = count(1)

    def ask(self, max_draft_tokens: int) -> _Answer:
        """The answer of a request of its own, alone."""
        self._engine.add(
            Request(
                id=next(self._ids),
                prompt_ids=self._prompt_ids,
                sampling=_GREEDY,
                limits=GenerationLimits(max_tokens=self._max_tokens, ignore_eos=True),
                arrival=time.monotonic(),
                speculation=Speculation(max_draft_tokens=max_draft_tokens),
            )
        )
        token_ids: list[int] = []
        while True:
            for event in self._engine.step():
                if isinstance(event, TokenEvent):
                    token_ids.append(event.token.token_id)
                elif isinstance(event, FinishedEvent):
                    if event.error is not None:
                        raise event.error
                    usage, seconds = event.usage, event.timings.decode_seconds
                    rate = (len(token_ids) - 1) / seconds
                    return _Answer(tuple(token_ids), rate, usage.drafted_tokens, usage.accepted_tokens)


@contextmanager
def _engine(model: Path, known: KnownAnswer, load: SpeculationLoad) -> Iterator[Engine]:
    context_length = load.prompt_len + load.max_tokens
    threads = usable_cpus()
    config = EngineConfig(model=model, threads=threads, context_length=context_length, max_num_seqs=1)
    first_contact.establish(config.device, threads=threads)
    from engine_service.loader import load_engine  # it imports OpenCL, which first contact must precede

    with GGUFReader(model) as reader:
        hyperparameters = read_hyperparameters(reader)
        plan = plan_for(config, reader, hyperparameters)
        drafter = Drafter(lambda sequence: known)
        loaded = load_engine(config, reader, hyperparameters, plan, "", lambda done, total: None, drafter=drafter)
        try:
            yield loaded.engine
        finally:
            loaded.engine.close()
