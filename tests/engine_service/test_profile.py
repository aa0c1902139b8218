"""Profiles: what a step has to do, and from launches to rates."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from engine_service.bench.limits import Limits
from engine_service.bench.profile import LaunchTime, totals
from engine_service.bench.protocol import CHUNK_LEN, SideProcess
from engine_service.compute.work import StepShape, Work, attention_work, matmul_work
from engine_service.scheduling.messages import ScheduledChunk
from engine_service.scheduling.sampling_params import GenerationLimits, SamplingParams
from engine_service.scheduling.sequence import Request, Sequence
from service_common.options import child_environment
from tests.gguf_builder import tiny_llama


def chunk(start: int, num_tokens: int, *, samples: bool) -> ScheduledChunk:
    """A chunk of some sequence."""
    limits = GenerationLimits(max_tokens=1)
    request = Request(id=1, prompt_ids=(1,), sampling=SamplingParams(seed=0), limits=limits, arrival=0.0)
    sequence = Sequence(request, 0, (0.0, 0, 0), max_tokens=1, end_token_ids=frozenset(), credit=1)
    return ScheduledChunk(sequence, start, num_tokens, int(samples))


def test_a_steps_shape_counts_what_attention_reads() -> None:
    """A token attends to all before it and to itself; a context counts once, however many tokens a chunk has."""
    shape = StepShape.of([chunk(9, 1, samples=True), chunk(4, 3, samples=False)])
    assert shape == StepShape(num_tokens=4, num_logit_rows=1, num_context_tokens=17, num_attended=10 + 5 + 6 + 7)


def test_work_follows_the_steps_shape() -> None:
    """Weights are read once a step, rows once each, a context once a sequence; products and sums count two."""
    shape = StepShape(num_tokens=4, num_logit_rows=0, num_context_tokens=17, num_attended=28)
    assert matmul_work(1000, 8, 32, only_logit_rows=False)(shape) == Work(1000 + 4 * 4 * 40, 2 * 4 * 8 * 32)
    assert matmul_work(1000, 8, 32, only_logit_rows=True)(shape) == Work(0, 0)
    assert attention_work(2, 16, context_bytes=64)(shape) == Work(17 * 64 + 4 * 2 * 4 * 32, 4 * 28 * 32)


def test_launches_of_one_name_are_one_row_per_step() -> None:
    """Times and work are means over the steps; the most expensive comes first."""
    times = [LaunchTime("norm", 0.5, Work(0, 0)), LaunchTime("matmul", 2.0, Work(10, 40))] * 2
    norm_free = [LaunchTime("matmul", 4.0, Work(20, 80)), *times]
    matmul, norm = totals(norm_free, num_steps=2)
    assert (matmul.name, matmul.num_launches, matmul.seconds, matmul.nbytes) == ("matmul", 1.5, 4.0, 20.0)
    assert (norm.name, norm.num_launches, norm.seconds) == ("norm", 1.0, 0.5)
    rates = matmul.to_json(Limits(bytes_per_s=10.0, ops_per_s=40.0))
    assert (rates["of_copy"], rates["of_multiply_add"]) == (0.5, 0.5)
    assert norm.to_json(Limits(10.0, 40.0))["gb_per_s"] is None


def test_every_launch_of_a_step_is_timed(tmp_path: Path) -> None:
    """Prefill and decode are profiled on the engine that serves, whose answers go on as before."""
    path = tmp_path / "tiny.gguf"
    tiny_llama(path, seed=3, layers=2, context_length=2048)
    options = ["--threads=1", "--context-length=1100", "--max-num-seqs=4", "--num-cached-tokens=4400"]
    command = [sys.executable, "-P", "-m", "engine_service.bench.ours", f"--model={path}", *options]
    with SideProcess("ours", command, child_environment()) as ours:
        prefill = ours.profile("prompt", num_seqs=1, prompt_len=CHUNK_LEN + 1, num_steps=0)
        decode = ours.profile("sequences", num_seqs=3, prompt_len=5, num_steps=4)
        assert ours.copy().rate > 0
        assert ours.prefill([1] * (CHUNK_LEN + 1)).num_tokens == 1
    assert (prefill["steps"], decode["steps"]) == (2, 4)
    launches = {kernel["kernel"]: kernel["launches"] for kernel in decode["kernels"]}
    assert (launches["attention"], launches["gather_rows"]) == (2, 1)
    matmul = next(kernel for kernel in decode["kernels"] if kernel["kernel"].startswith("matmul"))
    assert min(matmul["ms"], matmul["gb_per_s"], matmul["gop_per_s"], decode["copy_gb_per_s"]) > 0
    assert decode["sum_ms"] == pytest.approx(sum(kernel["ms"] for kernel in decode["kernels"]), rel=0.01)
