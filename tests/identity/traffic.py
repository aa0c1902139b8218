"""Random requests that share prefixes, go on from each other and part in the middle of a block."""

from __future__ import annotations

import random

from engine_service.scheduling.sampling_params import GenerationLimits, SamplingParams
from engine_service.scheduling.sequence import Request
from engine_service.scheduling.speculation import Speculation
from tests.identity.answer import Answered

_LENGTHS = (1, 3, 7, 8, 9, 31, 32, 33, 64, 100, 180, 260)
_SALTS = ("", "", "", "", "", "", "tenant", None)
_NUM_RECENT = 8  # earlier requests that later ones take up again: the cache may still hold some of them


class Traffic:
    """Makes requests whose prompt and output fit `context_length`; what is drawn depends on `rng` alone."""

    def __init__(self, rng: random.Random, vocab_size: int, context_length: int) -> None:
        self._rng, self._vocab_size, self._context_length = rng, vocab_size, context_length
        self._heads = [self._token_ids(rng.randrange(30, 150)) for _ in range(2)]  # such as system prompts

    def request(self, request_id: int, now: float, earlier: list[Request], answered: list[Answered]) -> Request:
        """A request that arrives `now`, after `earlier` ones, of which some are `answered`."""
        rng = self._rng
        prompt_ids = self._prompt_ids(earlier, answered)[: self._context_length - 1]
        max_tokens = min(rng.choice((1, 8, 30, 60, 90)), self._context_length - len(prompt_ids))
        return Request(
            id=request_id,
            prompt_ids=prompt_ids,
            sampling=self._sampling(),
            limits=GenerationLimits(
                max_tokens=max_tokens,
                min_tokens=rng.choice((0, 0, min(4, max_tokens))),
                stop_token_ids=self._token_ids(rng.choice((0, 0, 4))),
                ignore_eos=rng.random() < 0.5,
            ),
            arrival=now,
            deadline=now + rng.uniform(0.02, 0.6) if rng.random() < 0.05 else None,
            num_choices=rng.choice((1, 1, 1, 1, 1, 2, 3)),
            priority=rng.choice((-1, 0, 0, 0, 1)),
            initial_credit=rng.choice((None, None, None, 0, 1, 6)),
            logprobs=rng.choice((0, 1, 5)),
            stream_id=rng.randrange(3),
            cache_salt=rng.choice(_SALTS),
            speculation=Speculation(max_draft_tokens=rng.choice((0, 0, 4, 16)), ngram_size=rng.choice((1, 2, 3))),
        )

    def _prompt_ids(self, earlier: list[Request], answered: list[Answered]) -> tuple[int, ...]:
        rng = self._rng
        tail_ids = self._token_ids(rng.choice((1, 2, 8, 20, 33)))
        match rng.choice(("new", "head", "head", "same", "parting", "parting", "turn", "turn")):
            case "same" if earlier:
                return rng.choice(earlier[-_NUM_RECENT:]).prompt_ids
            case "parting" if earlier:
                common = rng.choice(earlier[-_NUM_RECENT:]).prompt_ids
                return common[: rng.randrange(len(common) + 1)] + tail_ids
            case "turn" if answered:
                request, answers = rng.choice(answered[-_NUM_RECENT:])
                return request.prompt_ids + tuple(token.token_id for token in answers[-1].tokens) + tail_ids
            case "head":
                return rng.choice(self._heads) + tail_ids
            case _:
                return self._token_ids(rng.choice(_LENGTHS))

    def _sampling(self) -> SamplingParams:
        rng = self._rng
        return SamplingParams(
            seed=rng.getrandbits(64),
            temperature=rng.choice((0.0, 0.7, 1.0, 1.5)),
            top_k=rng.choice((0, 0, 1, 40)),
            top_p=rng.choice((1.0, 0.9)),
            min_p=rng.choice((0.0, 0.05)),
        )

    def _token_ids(self, count: int) -> tuple[int, ...]:
        return tuple(self._rng.randrange(self._vocab_size) for _ in range(count))
