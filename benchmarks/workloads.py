"""What is measured, and how the two sides take turns."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from benchmarks.figures import Figure, shown_rate
from benchmarks.protocol import Side, Timed

PROMPT_LEN = 512
NUM_WARM_UPS = 1  # pairs that do not count: kernels are built, memory is touched
SETTLE_SECONDS = 0.1  # OpenMP's threads spin for a while after their work is done, on the CPUs of who comes next
OURS, PEER = "ours", "peer"

Prompts = Callable[[], list[int]]


class Workload(NamedTuple):
    """One measurement is `num_steps` of decode by `num_seqs` sequences or, without steps, the prefill of one prompt.

    The sequences start with prompts of PROMPT_LEN tokens and go on from one measurement to the next, on both sides
    alike, so that prompts are computed once.
    """

    name: str
    num_seqs: int = 1
    num_steps: int = 0

    def max_len(self, num_pairs: int) -> int:
        """Tokens of a sequence at the end of the run: the prompt, the one sampled after it, and those of all steps."""
        return PROMPT_LEN + 1 + self.num_steps * (NUM_WARM_UPS + num_pairs)


PREFILL = Workload(f"prefill_{PROMPT_LEN}")
DECODE_1 = Workload("decode_1", num_seqs=1, num_steps=32)
DECODE_8 = Workload("decode_8", num_seqs=8, num_steps=16)


def random_prompts(vocab_size: int, seed: int) -> Prompts:
    """Gives another prompt of PROMPT_LEN random ids at each call."""
    rng = random.Random(seed)
    return lambda: rng.choices(range(vocab_size), k=PROMPT_LEN)


def measure(
    sides: Mapping[str, Side], workload: Workload, num_pairs: int, prompts: Prompts, say: Callable[[str], None]
) -> Figure:
    """Measures `workload` once a pair on each of `sides` (OURS, perhaps PEER), with the same prompts.

    Who goes first changes from pair to pair. `say` is told how it goes.
    """
    if workload.num_steps:
        batch = [prompts() for _ in range(workload.num_seqs)]
        for name, side in sides.items():
            say(f"{workload.name}: {name} computes {workload.num_seqs} × {PROMPT_LEN} tokens of prompts")
            side.start(workload.name, batch, workload.max_len(num_pairs))
    measured: dict[str, list[Timed]] = {name: [] for name in sides}
    for pair in range(-NUM_WARM_UPS, num_pairs):
        prompt_ids = prompts()
        for name, side in list(sides.items())[:: -1 if pair % 2 else 1]:
            time.sleep(SETTLE_SECONDS)
            timed = side.decode(workload.name, workload.num_steps) if workload.num_steps else side.prefill(prompt_ids)
            measured[name].append(timed)
        shown = ", ".join(f"{name} {shown_rate(measured[name][-1].rate)}" for name in sides)
        say(f"{workload.name}: {f'pair {pair + 1} of {num_pairs}' if pair >= 0 else 'warm-up'}: {shown} tokens/s")
    counted = {name: measured[name][NUM_WARM_UPS:] for name in sides}
    return Figure(counted[OURS], counted.get(PEER, []))
