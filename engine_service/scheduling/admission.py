"""From a request to its sequences, if it can be served at all."""

from __future__ import annotations

from engine_service.scheduling.block_manager import BlockManager
from engine_service.scheduling.messages import SchedulerConfig
from engine_service.scheduling.sampling_state import SamplingState
from engine_service.scheduling.sequence import Request, Sequence
from service_common.errors import OutOfRangeError


class Admission:
    """Fits requests to the served context and to the pool of KV blocks."""

    def __init__(self, config: SchedulerConfig, blocks: BlockManager, eog_token_ids: frozenset[int]) -> None:
        self._config = config
        self._blocks = blocks
        self._eog_token_ids = eog_token_ids

    def sequences_of(self, request: Request) -> tuple[Sequence, ...]:
        """The request's choices, QUEUED, max_tokens clamped to the context.

        OutOfRangeError where the prompt leaves no room for a token, or prompt and output need more blocks than exist.
        """
        max_tokens = self._max_tokens(request)
        head_start_seconds = request.priority * self._config.priority_step_seconds
        end_token_ids = frozenset(request.limits.stop_token_ids)
        if not request.limits.ignore_eos:
            end_token_ids |= self._eog_token_ids
        return tuple(
            Sequence(
                request=request,
                choice=choice,
                rank=(request.arrival - head_start_seconds, request.id, choice),
                max_tokens=max_tokens,
                end_token_ids=end_token_ids,
                credit=max_tokens if request.initial_credit is None else request.initial_credit,
                max_draft_tokens=self._max_draft_tokens(request),
                constraint=None if request.grammar is None else request.grammar.start(),
                sampling_state=SamplingState.of(request.sampling, request.prompt_ids),
            )
            for choice in range(request.num_choices)
        )

    def _max_draft_tokens(self, request: Request) -> int:
        if request.sampling.mirostat is not None:
            return 0  # what one token leaves of its mu is known only when the step has run
        wanted = request.speculation.max_draft_tokens
        return self._config.max_draft_tokens if wanted is None else wanted

    def _max_tokens(self, request: Request) -> int:
        num_prompt_tokens, context_length = len(request.prompt_ids), self._config.context_length
        room = context_length - num_prompt_tokens
        if room < 1:
            context = f"the served context of {context_length} must have room for one more"
            raise OutOfRangeError(
                f"the prompt has {num_prompt_tokens} tokens; {context}", reason="PROMPT_TOO_LONG", field="token_ids"
            )
        max_tokens = min(request.limits.max_tokens, room)
        num_blocks = self._blocks.blocks_for(num_prompt_tokens + max_tokens - 1)  # the last token is never fed
        if num_blocks > self._blocks.num_blocks:
            message = (
                f"{num_prompt_tokens} prompt tokens and {max_tokens} to generate need {num_blocks} KV blocks of "
                f"{self._blocks.block_size} tokens; the pool has {self._blocks.num_blocks}: ask for fewer tokens"
            )
            raise OutOfRangeError(message, reason="REQUEST_TOO_LARGE", field="params.stopping.max_tokens")
        return max_tokens
