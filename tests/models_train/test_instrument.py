"""The bundled model as an instrument: what is wrong with positions, mask or cache is seen in its answers.

A token that sees one place of the future, where nothing has been written yet, is not: answers stay right. That is for
the self-test and the kernels' own tests, which are left out here because they would find every one of these faults.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engine_service import loader
from engine_service.compute import kernel_sources
from engine_service.compute.fused_program import FusedProgram
from engine_service.compute.kernel_library import KernelLibrary
from engine_service.compute.step_inputs import StepInputs
from engine_service.models import llama
from engine_service.models.rotary import rotary_table
from engine_service.scheduling.messages import ScheduledChunk
from models.train.examination import examination
from tests.models_train.bundled import share_right

_SKILLS = ("recall 20", "recall 50", "copying", "sorting", "reversing", "dates")
QUESTIONS = [question for skill in _SKILLS for question in examination(seed=5, num_questions=6)[skill]]
_VISIBLE = "s.num_visible[i] = positions[row] + 1;"  # the mask, in kernels/cpu/attention.cl

Break = Callable[[pytest.MonkeyPatch], None]


def rotary(change: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> Break:
    """A changed table of rotations (num_positions, rope_dim / 2, 2)."""

    def broken(*arguments: Any) -> NDArray[np.float32]:
        return np.ascontiguousarray(change(rotary_table(*arguments)))

    return lambda patch: patch.setattr(llama, "rotary_table", broken)


def mask(line: str) -> Break:
    """Attention with `line` in the place of the one that says how many tokens a query sees."""
    read = kernel_sources.part

    def broken(path: str) -> str:
        text = read(path)
        assert path != "cpu/attention.cl" or _VISIBLE in text
        return text.replace(_VISIBLE, line)

    return lambda patch: patch.setattr(kernel_sources, "part", broken)


def slots(change: Callable[[NDArray[np.int32]], NDArray[np.int32]]) -> Break:
    """Keys and values written to other slots than those that are read."""
    fill_rows = StepInputs._fill_rows

    def broken(inputs: StepInputs, chunk: ScheduledChunk, row: int, stop: int) -> None:
        fill_rows(inputs, chunk, row, stop)
        slot_mapping = inputs._host["slot_mapping"][row:stop]
        slot_mapping[:] = change(slot_mapping)

    return lambda patch: patch.setattr(StepInputs, "_fill_rows", broken)


BREAKS: dict[str, Break] = {
    "no position is rotated": rotary(lambda table: np.broadcast_to(table[:1], table.shape)),
    "two positions share an angle": rotary(lambda table: table[np.arange(len(table)) // 2]),
    "frequencies in reverse order": rotary(lambda table: table[:, ::-1]),
    "no mask": mask("s.num_visible[i] = max_blocks * BLOCK_SIZE;"),
    "a token does not see itself": mask("s.num_visible[i] = max(positions[row], 1);"),
    "slots off by one": slots(lambda slot_mapping: slot_mapping + 1),
    "neighbouring blocks swapped": slots(lambda slot_mapping: slot_mapping ^ 32),
    "sequences share sixteen blocks": slots(lambda slot_mapping: slot_mapping % (16 * 32)),
}


def test_the_unbroken_engine_answers_rightly() -> None:
    """At least nine in ten of the questions that the breaks are tried on."""
    assert share_right(QUESTIONS) >= 0.9


@pytest.mark.parametrize("fault", BREAKS)
def test_a_fault_shows_in_the_answers(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With positions, mask or cache broken at one place, fewer than half of the answers are right."""
    monkeypatch.setattr(loader, "choose_program", lambda device, kernels, portable: FusedProgram(KernelLibrary(device)))
    BREAKS[fault](monkeypatch)
    share = share_right(QUESTIONS)
    print(f"{fault}: {share:.0%} right")
    assert share < 0.5
