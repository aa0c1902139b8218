"""Fused launches: what they compute is what the same launches compute one by one, whoever takes part."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from engine_service.compute.device import Device
from engine_service.compute.fused_program import FusedProgram
from engine_service.compute.kernel_library import KernelLibrary
from engine_service.compute.kernel_sources import Variant
from engine_service.compute.launches import Launch, SeparateProgram, Unit
from engine_service.compute.step_inputs import StepSize
from engine_service.loader import load_engine
from tests.gguf_builder import tiny_llama
from tests.in_process import engine, request, run_to_end

WIDTH, ROWS = 84, 7
GROUPS = -(-WIDTH // 32)


@pytest.fixture(scope="module")
def fused(device: Device) -> FusedProgram:
    return FusedProgram(KernelLibrary(device))


class Rows:
    """A chain of norms, each of the one before, and the last one quantised: twelve launches on rows of their own."""

    def __init__(self, device: Device, num_rows: int = ROWS) -> None:
        self._device, self._num_rows = device, num_rows
        rng = np.random.default_rng(3)
        row = rng.standard_normal((num_rows, WIDTH), np.float32)
        weight = device.upload(rng.standard_normal(WIDTH, np.float32), "weight")
        sizes = np.int32(WIDTH), np.float32(1e-5)
        steps = [device.upload(row, "first"), *(device.zeros(row.nbytes, "rows") for _ in range(11))]
        norm = Variant.of("rms_norm", "rms_norm")
        self.launches = [Launch(norm, (x, weight, y, *sizes), Unit.TOKEN) for x, y in pairwise(steps)]
        self._quantised = [device.zeros(num_rows * GROUPS * size, "quantised") for size in (32, 4, 4)]
        quantize, width = Variant.of("quantize", "quantize_rows"), np.int32(WIDTH)
        self.launches.append(Launch(quantize, (steps[-1], *self._quantised, width), Unit.TOKEN))
        self.size = StepSize(num_rows, 1, 0, 0)
        self.counts = device.upload(np.array(self.size, np.int32), "counts")

    def read(self) -> bytes:
        """What came out in the end, which is zeroed for the next run."""
        out = np.empty((self._num_rows * GROUPS, 40), np.uint8)
        flat: NDArray[np.uint8] = out.reshape(-1)
        offset = 0
        for buffer in self._quantised:
            self._device.read(buffer, flat[offset : offset + buffer.size])
            self._device.write(buffer, np.zeros(buffer.size, np.uint8))
            offset += buffer.size
        return out.tobytes()


def test_fused_launches_give_the_bits_of_separate_ones_again_and_again(device: Device, fused: FusedProgram) -> None:
    """Each launch needs what the one before it has written; two hundred runs leave nothing that spoils the next."""
    rows = Rows(device)
    SeparateProgram(fused.library).bind(rows.launches, rows.counts).run(rows.size)
    wanted = rows.read()
    executable = fused.bind(rows.launches, rows.counts)
    for _ in range(200):
        executable.run(rows.size)
        assert rows.read() == wanted
    assert any(wanted)


@pytest.mark.parametrize("num_work_items", [1, 2, 3, 17])
def test_any_number_of_work_items_does_all_the_work(
    device: Device, fused: FusedProgram, monkeypatch: pytest.MonkeyPatch, num_work_items: int
) -> None:
    """One alone, or more than there are threads: nobody waits for one that has not begun."""
    rows = Rows(device)
    executable = fused.bind(rows.launches, rows.counts)
    executable.run(rows.size)
    wanted = rows.read()
    monkeypatch.setattr(Device, "num_compute_units", num_work_items)
    for _ in range(20):
        executable.run(rows.size)
        assert rows.read() == wanted


def test_operations_without_items_are_passed_over(device: Device, fused: FusedProgram) -> None:
    """A step without rows ends, and writes nothing."""
    rows = Rows(device)
    executable = fused.bind(rows.launches, device.zeros(20, "counts"))
    executable.run(StepSize(0, 0, 0, 0, 0))
    assert not any(rows.read())


def test_launches_of_other_variants_are_built_when_they_come(device: Device) -> None:
    """A program prepared for norms alone runs what quantises as well, and norms as before."""
    program, rows = FusedProgram(KernelLibrary(device)), Rows(device)
    program.prepare(rows.launches[:1])
    program.bind(rows.launches, rows.counts).run(rows.size)
    assert any(rows.read())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    paths = [folder / f"{arch}.gguf" for arch in ("llama", "qwen2")]
    for path in paths:
        tiny_llama(path, seed=5, arch=path.stem, layers=3)
    return paths


@pytest.mark.parametrize("portable", [False, True])
def test_a_model_gives_the_same_tokens_fused_and_not(
    models: list[Path], monkeypatch: pytest.MonkeyPatch, portable: bool
) -> None:
    """Ids and log-probabilities of prompts and answers, batched, native and portable, are equal bit for bit."""

    def answers() -> list[object]:
        found: list[object] = []
        for model in models:
            with engine(model, portable_kernels=portable) as running:
                for index in range(3):
                    running.add(request(index, list(range(3, 8 + 5 * index)), 6, logprobs=2))
                found.append(run_to_end(running))
        return found

    fused = answers()
    monkeypatch.setitem(
        load_engine.__globals__,
        "choose_program",
        lambda device, kernels, portable: SeparateProgram(KernelLibrary(device, portable=portable)),
    )
    assert answers() == fused
