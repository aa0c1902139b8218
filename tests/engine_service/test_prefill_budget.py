"""The controller that keeps prefill from stalling decode, without a clock: durations are handed in."""

from __future__ import annotations

import random
from math import inf

import pytest

from engine_service.scheduling.prefill_budget import PrefillBudget
from tests.engine_service.scheduler_world import make_request, make_world

MIN_TOKENS = 2


def run(budget: PrefillBudget, num_decodes: int, num_steps: int, fixed: float, per_token: float) -> list[float]:
    """Steps with as much prefill as the budget gives, at most 512; their durations as multiples of decode alone."""
    stretches = []
    for _ in range(num_steps):
        num_prefill = min(512, budget.limit(num_decodes))
        seconds = fixed + per_token * (num_decodes + num_prefill)
        budget.observe(num_decodes, num_prefill, seconds)
        stretches.append(seconds / (fixed + per_token * num_decodes))
    return stretches


def test_without_decode_tokens_there_is_no_limit() -> None:
    """Prefill that stalls nobody takes the whole step."""
    assert PrefillBudget(1.7, MIN_TOKENS).limit(0) > 1 << 40


def test_without_a_stretch_there_is_no_limit() -> None:
    """An infinite stretch switches the controller off, measuring steps included."""
    assert PrefillBudget(inf, MIN_TOKENS).limit(7) > 1 << 40


def test_the_first_step_with_decode_tokens_is_measured_without_prefill() -> None:
    """Nothing is known yet of what decode tokens take, so one step shows it."""
    budget = PrefillBudget(1.7, MIN_TOKENS)
    budget.observe(0, 512, 3.4)
    assert budget.limit(1) == 0
    budget.observe(1, 0, 0.05)
    assert budget.limit(1) >= MIN_TOKENS


@pytest.mark.parametrize(("fixed", "per_token"), [(0.045, 0.0067), (0.4, 0.002), (0.002, 0.0001)])
@pytest.mark.parametrize("num_decodes", [1, 4, 32])
def test_mixed_steps_stay_within_the_stretch(fixed: float, per_token: float, num_decodes: int) -> None:
    """After a few steps a step with prefill lasts at most 1.7 times, and not much less than, one without."""
    budget = PrefillBudget(1.7, MIN_TOKENS)
    budget.observe(0, 512, fixed + 512 * per_token)
    stretches = sorted(run(budget, num_decodes, 400, fixed, per_token)[10:])
    assert stretches[-1] <= 1.7 + 1e-9 or stretches[-1] * (fixed + num_decodes * per_token) <= 0.05 + fixed
    assert stretches[len(stretches) // 2] > 1.35


def test_drafts_of_changing_length_do_not_mislead_it() -> None:
    """A step's decode tokens are 1 to 17 of one sequence: what each step may take follows its own number."""
    budget = PrefillBudget(1.7, MIN_TOKENS)
    budget.observe(0, 512, 0.03 + 512 * 0.004)
    rng = random.Random(2)
    stretches = [run(budget, rng.choice((1, 1, 4, 8, 17)), 1, 0.03, 0.004)[0] for _ in range(400)][40:]
    assert max(stretches) <= 1.7 + 1e-9
    assert sorted(stretches)[len(stretches) // 2] > 1.35


def test_noise_keeps_the_p99_below_twice_the_idle_figure() -> None:
    """With steps that vary by 5 % the 99th percentile of mixed steps stays below 2 × decode alone."""
    rng = random.Random(1)
    budget = PrefillBudget(1.7, MIN_TOKENS)
    budget.observe(0, 512, 3.5)
    durations = []
    for _ in range(2000):
        num_prefill = budget.limit(4)
        seconds = (0.045 + 0.0067 * (4 + num_prefill)) * rng.gauss(1.0, 0.05)
        budget.observe(4, num_prefill, seconds)
        durations.append(seconds)
    assert sorted(durations[10:])[int(0.99 * 1990)] <= 2 * (0.045 + 0.0067 * 4)


def test_it_follows_a_change_of_load() -> None:
    """When decode tokens become slower or faster, the measuring step shows it and the limit follows."""
    budget = PrefillBudget(1.7, MIN_TOKENS)
    budget.observe(0, 512, 3.5)
    run(budget, 2, 100, 0.05, 0.005)
    slow = run(budget, 2, 200, 0.15, 0.015)[100:]
    fast = run(budget, 2, 400, 0.05, 0.005)[300:]
    assert max(slow) <= 1.75
    assert max(fast) <= 1.75
    few, many = budget.limit(2), budget.limit(40)
    assert many > 2 * few


def test_a_hiccup_does_not_open_the_gates() -> None:
    """One decode step that took ten times as long as the others moves the limit by no more than an eighth."""
    budget = PrefillBudget(1.7, MIN_TOKENS)
    budget.observe(0, 512, 3.5)
    run(budget, 4, 100, 0.045, 0.0067)
    budget.observe(4, 0, 0.072)
    before = budget.limit(4)
    budget.observe(4, 0, 0.72)
    assert before <= budget.limit(4) <= before * 1.125 + 1


def test_a_floor_keeps_prompts_moving() -> None:
    """Where a single prefill token is dearer than the whole stretch, some are granted all the same."""
    budget = PrefillBudget(1.7, MIN_TOKENS)
    budget.observe(0, 16, 16.0)
    budget.observe(1, 0, 0.01)
    assert budget.limit(1) == MIN_TOKENS


def test_every_so_many_mixed_steps_one_goes_without_prefill() -> None:
    """In an endless row of mixed steps what decode alone takes is measured again and again, at little cost."""
    budget = PrefillBudget(1.7, MIN_TOKENS)
    budget.observe(0, 512, 3.5)
    stretches = run(budget, 4, 330, 0.045, 0.0067)
    assert stretches.count(1.0) == 10


def test_a_long_prompt_does_not_stall_a_running_request() -> None:
    """While a prompt of 4,000 tokens comes in, no token of a running request takes twice its idle time."""
    world = make_world(
        num_blocks=400, block_size=32, context_length=8192, max_num_batched_tokens=512, max_step_stretch=1.7
    )
    world.step_seconds, world.token_seconds = 0.045, 0.0067
    world.add(make_request(1, prompt_len=100, max_tokens=2000))
    idle: list[float] = []
    busy: list[float] = []
    for number in range(1100):
        if number == 100:
            world.add(make_request(2, prompt_len=4000, max_tokens=10, arrival=world.clock.now))
        before = world.clock.now
        world.step()
        (idle if number < 100 else busy).append(world.clock.now - before)
        if number > 100 and 2 not in world.live:
            break
    assert 2 not in world.live
    assert max(busy) <= 2 * max(idle[1:])
