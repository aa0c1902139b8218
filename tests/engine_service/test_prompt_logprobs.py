"""Log-probabilities of a prompt's own tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine_service.engine import Engine
from engine_service.scheduling.messages import PromptLogprobsEvent, TokenEvent
from engine_service.scheduling.sampled_token import SampledToken
from tests.gguf_builder import tiny_llama
from tests.in_process import engine, logits, request

PROMPT = [3 + position * 7 % 290 for position in range(70)]
TOP = 4
MAX_ERROR = 4e-5  # docs/numerics.md section 10


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model."""
    path = tmp_path_factory.mktemp("prompt_logprobs") / "tiny.gguf"
    tiny_llama(path, seed=3)
    return path


def scores(running: Engine, request_id: int, **options: int) -> tuple[SampledToken, ...]:
    """What an engine says of the prompt, before the first token of any choice."""
    running.add(request(request_id, PROMPT, 4, prompt_logprobs=TOP, **options))
    found: list[SampledToken] = []
    num_tokens = 0
    while running.has_work():
        for event in running.step():
            if isinstance(event, PromptLogprobsEvent):
                assert (event.request_id, event.choice, num_tokens) == (request_id, 0, 0)
                found += event.tokens
            num_tokens += isinstance(event, TokenEvent) and event.request_id == request_id
    return tuple(found)


def test_they_are_those_of_the_softmax_in_float64(model: Path) -> None:
    """Of each token but the first, after those before it; with the most likely ones in order."""
    with engine(model, context_length=128) as running:
        found = scores(running, 1)
    rows = logits(model, PROMPT, context_length=128).astype(np.float64)
    logprobs = rows - rows.max(1, keepdims=True)
    logprobs -= np.log(np.exp(logprobs).sum(1, keepdims=True))
    assert [token.token_id for token in found] == PROMPT[1:]
    for token, row in zip(found, logprobs, strict=False):
        assert token.logprob == pytest.approx(row[token.token_id], abs=MAX_ERROR)
        best = np.argsort(-row, kind="stable")[:TOP]
        assert [top_id for top_id, _ in token.top] == best.tolist()
        assert [logprob for _, logprob in token.top] == pytest.approx(row[best].tolist(), abs=MAX_ERROR)


def test_chunks_neighbours_and_cached_prompts_change_no_bit(model: Path) -> None:
    """The prompt is computed again for them, in chunks as large as rows of logits allow, once for all choices."""
    with engine(model, context_length=128, max_num_seqs=1, max_prefill_chunk=9) as running:
        alone = scores(running, 1)
    with engine(model, context_length=128, max_num_seqs=3, max_num_batched_tokens=20) as running:
        running.add(request(1, PROMPT, 30))
        running.step()
        assert scores(running, 2, num_choices=2) == alone
        assert scores(running, 3) == alone
