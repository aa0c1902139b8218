"""What is measured, and how the two sides take turns."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

from engine_service.bench.figures import Figure, shown_rate
from engine_service.bench.protocol import CHUNK_LEN, OwnSide, Side, Timed

PROMPT_LEN = CHUNK_LEN
NUM_WARM_UPS = 1  # pairs that do not count: kernels are built, memory is touched
SETTLE_SECONDS = 0.1  # OpenMP's threads spin for a while after their work is done, on the CPUs of who comes next
OURS, PEER = "ours", "peer"
_COPY = "copy"

Prompts = Callable[[int], list[int]]
_T = TypeVar("_T")


class Listener(Protocol):
    """Who is told how it goes."""

    def say(self, text: str) -> None:
        """What has been done, or is about to be."""

    def advance(self) -> None:
        """Each side has had another turn; see `num_turns`."""


class Workload(NamedTuple):
    """One measurement is `num_steps` of decode by `num_seqs` sequences or, without steps, the prefill of one prompt.

    The sequences start with prompts of `prompt_len` tokens and go on from one measurement to the next, on both sides
    alike, so that prompts are computed once. `beside_copies` measures in each pair what the machine copies, too.
    """

    name: str
    num_seqs: int = 1
    num_steps: int = 0
    prompt_len: int = PROMPT_LEN
    beside_copies: bool = False

    def max_len(self, num_pairs: int) -> int:
        """Tokens of a sequence at the end of the run: the prompt, the one sampled after it, and those of all steps."""
        return self.prompt_len + 1 + self.num_steps * (NUM_WARM_UPS + num_pairs)


class Growth(NamedTuple):
    """How much longer the chunk that ends at `prompt_len` takes than the one that ends at CHUNK_LEN."""

    name: str
    prompt_len: int
    num_seqs: int = 1

    def max_len(self, num_pairs: int) -> int:
        """Tokens of its one sequence: the prompt, and the one sampled after it."""
        return self.prompt_len + 1


PREFILL = Workload(f"prefill_{PROMPT_LEN}")
DECODE_1 = Workload("decode_1", num_seqs=1, num_steps=32, beside_copies=True)
DECODE_8 = Workload("decode_8", num_seqs=8, num_steps=16)
DECODE_32 = Workload("decode_32", num_seqs=32, num_steps=8)
DECODE_8K = Workload("decode_8k", num_seqs=1, num_steps=16, prompt_len=8192)
CHUNK_GROWTH = Growth(f"prefill_chunk_2048_over_{CHUNK_LEN}", 2048)

QUICK = (PREFILL, DECODE_1)
BASIC = (*QUICK, DECODE_8, DECODE_32)
ALL = (*BASIC, DECODE_8K, CHUNK_GROWTH)


def random_prompts(vocab_size: int, seed: int) -> Prompts:
    """Gives another prompt of as many random ids as it is asked for, at each call."""
    rng = random.Random(seed)
    return lambda prompt_len: rng.choices(range(vocab_size), k=prompt_len)


def measure(
    sides: Mapping[str, Side],
    own: OwnSide,
    workload: Workload | Growth,
    num_pairs: int,
    prompts: Prompts,
    listener: Listener,
) -> Figure:
    """Measures `workload` once a pair on each of `sides` (OURS, perhaps PEER), with the same prompts.

    `own` is that of OURS. Who goes first changes from pair to pair.
    """
    if isinstance(workload, Growth):
        return _measure_growth(sides, workload, num_pairs, prompts, listener)
    if workload.num_steps:
        batch = [prompts(workload.prompt_len) for _ in range(workload.num_seqs)]
        for name, side in sides.items():
            listener.say(
                f"{workload.name}: {name} computes {workload.num_seqs} × {workload.prompt_len} tokens of prompts"
            )
            side.start(workload.name, batch, workload.max_len(num_pairs))
    prefilled = [] if workload.num_steps else [prompts(workload.prompt_len) for _ in range(num_turns(num_pairs))]

    def once(turn: int, name: str) -> Timed:
        if name == _COPY:
            return own.copy()
        if workload.num_steps:
            return sides[name].decode(workload.name, workload.num_steps)
        return sides[name].prefill(prefilled[turn])

    names = [*sides, _COPY] if workload.beside_copies else list(sides)
    turns: _Turns[Timed] = _Turns(
        workload.name, num_pairs, listener, lambda timed: f"{shown_rate(timed.rate)} tokens/s"
    )
    measured = turns.take(names, once)
    return Figure.of_rates(measured[OURS], measured.get(PEER, []), measured.get(_COPY, []))


def num_turns(num_pairs: int) -> int:
    """How often each side is measured, warm-ups included."""
    return NUM_WARM_UPS + num_pairs


def _measure_growth(
    sides: Mapping[str, Side], growth: Growth, num_pairs: int, prompts: Prompts, listener: Listener
) -> Figure:
    long_prompts = [prompts(growth.prompt_len) for _ in range(num_turns(num_pairs))]

    def once(turn: int, name: str) -> tuple[Timed, Timed]:
        prompt_ids = long_prompts[turn]
        return sides[name].prefill(prompt_ids[:CHUNK_LEN]), sides[name].prefill(prompt_ids)

    turns: _Turns[tuple[Timed, Timed]] = _Turns(
        growth.name, num_pairs, listener, lambda pair: f"{pair[1].seconds / pair[0].seconds:.2f} ×"
    )
    measured = turns.take(list(sides), once)
    return Figure.of_growth(measured[OURS], measured.get(PEER, []))


@dataclass(frozen=True)
class _Turns(Generic[_T]):
    """Lets each side be measured in turn."""

    title: str
    num_pairs: int
    listener: Listener
    shown: Callable[[_T], str]

    def take(self, names: Sequence[str], once: Callable[[int, str], _T]) -> dict[str, list[_T]]:
        """What `once` gave of each name in each pair that counts."""
        measured: dict[str, list[_T]] = {name: [] for name in names}
        for turn in range(num_turns(self.num_pairs)):
            pair = turn - NUM_WARM_UPS
            for name in reversed(names) if pair % 2 else names:
                time.sleep(SETTLE_SECONDS)
                measured[name].append(once(turn, name))
            said = ", ".join(f"{name} {self.shown(measured[name][-1])}" for name in names if name != _COPY)
            which = f"pair {pair + 1} of {self.num_pairs}" if pair >= 0 else "warm-up"
            self.listener.say(f"{self.title}: {which}: {said}")
            self.listener.advance()
        return {name: values[NUM_WARM_UPS:] for name, values in measured.items()}
