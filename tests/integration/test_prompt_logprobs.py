"""Log-probabilities of a prompt, and drafts, end to end: as a user of the Python SDK sees them."""

from __future__ import annotations

from typing import Any

from clforge import Client
from tests.identity.models import BUNDLED
from tests.integration.served import served

PROMPT = "The cat sat on the mat. The cat sat on the"


async def test_a_prompt_is_scored_in_the_text_that_echo_returns() -> None:
    """Every token but the first has a log-probability, its bytes, and its place in the answer's text."""
    with served(BUNDLED) as address:
        async with Client(address) as client:
            answer = await client.complete(PROMPT, max_tokens=4, echo=True, prompt_logprobs=2, logprobs=0)
    entries = answer.prompt_logprobs
    assert answer.text.startswith(PROMPT)
    assert len(entries) == answer.accepted.num_prompt_tokens - 1
    for entry in entries:
        assert entry.chosen.logprob <= 0
        assert len(entry.top) == 2
        text = entry.chosen.token.decode().removeprefix(" " if entry.text_offset == 0 else "")
        assert answer.text[entry.text_offset :].startswith(text)
    first = answer.choices[0].logprobs[0]
    assert first.text_offset == len(PROMPT)


async def test_drafts_change_the_usage_and_not_the_output() -> None:
    """A text that repeats is drafted, sampled or greedy, and comes out the same."""
    with served(BUNDLED) as address:
        async with Client(address) as client:
            for temperature in (0.0, 0.8):
                asked: dict[str, Any] = {
                    "max_tokens": 40,
                    "seed": 5,
                    "temperature": temperature,
                    "logprobs": 1,
                    "ignore_eos": True,
                }
                plain = await client.complete(PROMPT, max_draft_tokens=0, **asked)
                drafted = await client.complete(PROMPT, max_draft_tokens=8, **asked)
                assert plain.choices[0].logprobs == drafted.choices[0].logprobs
                assert plain.text == drafted.text
                assert plain.choices[0].finished.usage.drafted_tokens == 0
                usage = drafted.choices[0].finished.usage
                assert usage.drafted_tokens >= usage.accepted_tokens
    assert usage.drafted_tokens > 0
