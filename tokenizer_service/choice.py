"""One choice on its way from the engine's token ids to the client's text. No I/O: deltas in, deltas out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from itertools import groupby
from typing import NamedTuple

from clforge.v1.generation_pb2 import FINISH_REASON_STOP, Delta, Finished, TokenLogprobs, Usage
from tokenizer_service.prompt_offsets import PromptOffsets
from tokenizer_service.sections import Sections
from tokenizer_service.text_stream import Piece, TextStream
from tokenizer_service.vocabulary import Vocabulary


class _Token(NamedTuple):
    token_id: int
    logprobs: TokenLogprobs | None


class Choice:
    """Detokenises, finds stop strings, tells sections apart, and counts what is delivered.

    After a stop string, or `halt`, further tokens are dropped; `finish` still tells the end.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        stops: Sequence[str],
        *,
        include_stop: bool,
        sections: Sections | None = None,
        num_echoed_characters: int = 0,
        prompt_offsets: PromptOffsets | None = None,
    ) -> None:
        """`sections`: None where they are not told apart. `num_echoed_characters` stand before the choice's own.

        `prompt_offsets`: for a prompt whose log-probabilities are asked for.
        """
        self._vocabulary = vocabulary
        self._text = TextStream[_Token](vocabulary, stops, include_stop=include_stop, sections=sections)
        self._num_echoed_characters = num_echoed_characters
        self._prompt_offsets = prompt_offsets
        self._halted = False
        self._stop_string: str | None = None
        self._detokenize_seconds = 0.0
        self.num_received_tokens = 0
        self.num_delivered_tokens = 0

    @property
    def halted(self) -> bool:
        """Whether a stop string or `halt` has ended the text."""
        return self._halted

    @property
    def num_held_tokens(self) -> int:
        """Tokens whose text cannot be delivered yet: the credit that the engine gets on top of the client's."""
        return 0 if self._halted else self._text.held_tokens

    def push(self, delta: Delta) -> list[Delta]:
        """Takes the engine's delta; returns what the client gets of it now, a delta for each section."""
        if delta.prompt_logprobs:
            return [self._prompt_delta(delta.prompt_logprobs)]
        self.num_received_tokens += len(delta.token_ids)
        started = time.perf_counter()
        pieces: list[Piece[_Token]] = []
        for index, token_id in enumerate(delta.token_ids):
            if self._halted:
                break
            logprobs = self._named(delta.logprobs[index]) if delta.logprobs else None
            pieces += self._accounted(self._text.push(token_id, _Token(token_id, logprobs)))
            if logprobs is not None:
                logprobs.text_offset = self._num_echoed_characters + self._text.token_start
        self._detokenize_seconds += time.perf_counter() - started
        return _deltas(pieces)

    def halt(self, num_delivered_tokens: int) -> None:
        """The client has found an end of its own: nothing more is delivered, and so many tokens count as delivered."""
        self._halted = True
        self.num_delivered_tokens = num_delivered_tokens

    def finish(self, finished: Finished) -> tuple[list[Delta], Finished]:
        """The engine's end of this choice. Returns the last text, if any was held back, and the end for the client.

        A choice that was halted ends with STOP whatever the engine ran into meanwhile. Usage counts what was delivered.
        """
        deltas = [] if self._halted else _deltas(self._accounted(self._text.finish()))
        result = Finished()
        result.CopyFrom(finished)
        if self._halted:
            result.ClearField("error")
            result.ClearField("matched_stop")
            result.reason = FINISH_REASON_STOP
        if self._stop_string is not None:
            result.stop_string = self._stop_string
        result.usage.delivered_tokens = self.num_delivered_tokens + result.HasField("stop_token_id")
        result.timings.detokenize.FromTimedelta(timedelta(seconds=self._detokenize_seconds))
        return deltas, result

    def local_usage(self, num_prompt_tokens: int) -> Usage:
        """What this process knows of the usage when the engine cannot tell any more."""
        return Usage(prompt_tokens=num_prompt_tokens, generated_tokens=self.num_received_tokens)

    def _accounted(self, pieces: list[Piece[_Token]]) -> list[Piece[_Token]]:
        for piece in pieces:
            self.num_delivered_tokens += len(piece.payloads)
            if piece.stop is not None:
                self._halted, self._stop_string = True, piece.stop
        return pieces

    def _named(self, logprobs: TokenLogprobs) -> TokenLogprobs:
        """With what only this service knows: the bytes of the tokens."""
        self._spell(logprobs)
        return logprobs

    def _prompt_delta(self, entries: Sequence[TokenLogprobs]) -> Delta:
        assert self._prompt_offsets is not None, "nobody asked for the prompt's log-probabilities"
        for entry in entries:
            self._spell(entry)
            entry.text_offset = self._prompt_offsets.push(entry.chosen.token_id)
        return Delta(prompt_logprobs=entries)

    def _spell(self, logprobs: TokenLogprobs) -> None:
        for entry in (logprobs.chosen, *logprobs.top):
            entry.token = self._vocabulary.token_bytes(entry.token_id, skip_special=False)


def _deltas(pieces: Sequence[Piece[_Token]]) -> list[Delta]:
    """The pieces with what they account for, those of one section after another together."""
    if len(pieces) < 2:
        return [_delta(piece) for piece in pieces if piece.text or piece.payloads]
    deltas = []
    for section, group in groupby(pieces, key=lambda piece: piece.section):
        together = list(group)
        text = "".join(piece.text for piece in together)
        payloads = [payload for piece in together for payload in piece.payloads]
        if text or payloads:
            deltas.append(_delta(Piece(text, payloads, None, section)))
    return deltas


def _delta(piece: Piece[_Token]) -> Delta:
    tokens = piece.payloads
    delta = Delta(
        text=piece.text,
        token_ids=[token.token_id for token in tokens],
        num_tokens=len(tokens),
        section=piece.section,
    )
    if tokens and tokens[0].logprobs is not None:
        delta.logprobs.extend(token.logprobs for token in tokens if token.logprobs is not None)
    return delta
