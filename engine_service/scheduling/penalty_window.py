"""Repetition, frequency and presence penalties over the last tokens, kept up with each token in O(1)."""

from __future__ import annotations

from array import array
from collections import Counter

import numpy as np

from engine_service.scheduling.adjustments import ADJUSTMENT, AdjustmentArray
from engine_service.scheduling.sampling_params import SamplingParams


class PenaltyWindow:
    """Which tokens are in the window, and what that does to their logits.

    The repetition penalty (Keskar et al., CTRL, 2019; of llama.cpp's `penalties`) divides the logit of each token in
    the window, or multiplies it if negative. Frequency and presence penalties (OpenAI's API) are then taken from it for
    the times that the token was generated there.
    """

    def __init__(self, sampling: SamplingParams, token_ids: array[int]) -> None:
        """`token_ids` are the prompt's, the owner's own array: it grows and shrinks with `push` and `pop`."""
        self._divisor = np.float32(sampling.repetition_penalty)
        self._frequency = float(np.float32(sampling.frequency_penalty))
        self._presence = float(np.float32(sampling.presence_penalty))
        self._window = sampling.penalty_window
        self._token_ids, self._num_prompt_tokens = token_ids, len(token_ids)
        counts = Counter(token_ids[-self._window :])  # a window of 0 is the whole
        self._slots = {token_id: slot for slot, token_id in enumerate(counts)}
        self._counts = [[count, 0] for count in counts.values()]  # by slot: times in the window, times generated there
        self._array: AdjustmentArray = np.zeros(len(counts) + 64, ADJUSTMENT)
        self._array["token_id"][: len(counts)] = list(counts)
        self._array["divisor"] = self._divisor

    def adjustments(self) -> AdjustmentArray:
        """One for each token of the window that the penalties change; the caller's copy."""
        present = self._array[: len(self._counts)]
        return present[present["subtrahend"] != 0] if self._divisor == 1 else present.copy()

    def push(self) -> None:
        """The last of the known tokens is new."""
        last = len(self._token_ids) - 1
        self._enter(last)
        if self._window and last >= self._window:
            self._leave(last - self._window)

    def pop(self) -> None:
        """The last of the known tokens is about to go."""
        last = len(self._token_ids) - 1
        self._leave(last)
        if self._window and last >= self._window:
            self._enter(last - self._window)

    def _enter(self, position: int) -> None:
        token_id = self._token_ids[position]
        slot = self._slots.get(token_id)
        if slot is None:
            slot = self._slots[token_id] = len(self._counts)
            self._counts.append([0, 0])
            if len(self._counts) > len(self._array):
                self._array = np.resize(self._array, 2 * len(self._array))
        counts = self._counts[slot]
        counts[0] += 1
        counts[1] += position >= self._num_prompt_tokens
        self._write(slot, token_id)

    def _leave(self, position: int) -> None:
        token_id = self._token_ids[position]
        slot = self._slots[token_id]
        counts = self._counts[slot]
        counts[0] -= 1
        counts[1] -= position >= self._num_prompt_tokens
        if counts[0]:
            self._write(slot, token_id)
            return
        del self._slots[token_id]
        last_counts = self._counts.pop()
        if slot < len(self._counts):  # the last slot moves into the gap
            moved_id = int(self._array["token_id"][len(self._counts)])
            self._slots[moved_id], self._counts[slot] = slot, last_counts
            self._write(slot, moved_id)

    def _write(self, slot: int, token_id: int) -> None:
        generated = self._counts[slot][1]
        subtrahend = generated * self._frequency + (self._presence if generated else 0.0)
        self._array[slot] = token_id, self._divisor, subtrahend
