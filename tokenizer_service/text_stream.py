"""From generated tokens to deliverable text: detokenizing, stop strings, sections, with every token accounted for."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

from clforge.v1.generation_pb2 import SECTION_UNSPECIFIED, Section
from tokenizer_service.detokenizer import Detokenizer, HasTokenBytes
from tokenizer_service.sections import Run, Sections
from tokenizer_service.stop_strings import Scan, StopStrings

T = TypeVar("T")


class Piece(NamedTuple, Generic[T]):
    """What may be delivered now.

    text: the next part of the choice's text; whole characters, may be empty.
    payloads: one for each token that this piece accounts for, in the order of generation; may be empty.
    stop: the stop string that ended the text with this piece, or None. No piece follows one with a stop.
    section: what all of the text is part of; SECTION_UNSPECIFIED where sections are not told apart.
    """

    text: str
    payloads: list[T]
    stop: str | None
    section: Section.ValueType


class _HeldToken(NamedTuple, Generic[T]):
    """A token whose text is not delivered: it may go once the delivered text is `release_at` characters long."""

    release_at: int
    payload: T


class TextStream(Generic[T]):
    """The text of one choice, with what may yet become a stop string, a mark or a whole character held back.

    A token's text is what it adds to the decoded text: a character belongs to the token that completes it. A token is
    accounted for, once, by the piece that delivers the first character of its text; one without text goes with the
    text before it, and one that only begins a character with the text that completes that character.

    Laws: without stop strings the texts of all pieces, `finish` included, concatenated, equal
    `vocabulary.decode_continuation(ids)`, and their payloads are all payloads in order. With a stop string in the
    text, the texts are what precedes the first one (with `include_stop`, its end), and the payloads are those of the
    tokens whose text is at least partly delivered: their number is Stop.num_delivered_tokens. Sections change neither.
    """

    def __init__(
        self,
        vocabulary: HasTokenBytes,
        stops: Sequence[str] = (),
        *,
        include_stop: bool = False,
        skip_special: bool = True,
        sections: Sections | None = None,
    ) -> None:
        """Raises InvalidArgumentError for an empty stop string. `sections`: cuts the text into sections."""
        self._detokenizer = Detokenizer(vocabulary, skip_special=skip_special)
        self._stops = StopStrings(stops, include_stop=include_stop)
        self._sections = sections
        self._held: deque[_HeldToken[T]] = deque()
        self._num_delivered = 0

    @property
    def held_tokens(self) -> int:
        """Tokens pushed and not yet accounted for by a piece: the credit that the holder of this stream still owes."""
        return len(self._held)

    @property
    def token_start(self) -> int:
        """Where the text of the latest token begins in the choice's text; see Detokenizer."""
        return self._detokenizer.token_start

    def push(self, token_id: int, payload: T) -> list[Piece[T]]:
        """Take one generated token with its `payload`. Must not be called after a piece with a stop, or `finish`."""
        num_decoded = self._detokenizer.num_characters
        holds_nothing = self._num_delivered == num_decoded and not self._held
        text = self._detokenizer.push(token_id)
        scan = self._stops.push(text)
        if holds_nothing and text and scan.text == text and self._sections is None:
            # As below, for what most tokens are.
            self._num_delivered += len(text)
            return [Piece(text, [payload], scan.stop, SECTION_UNSPECIFIED)]
        gives_text = bool(text) or self._detokenizer.held_tokens > 0
        self._held.append(_HeldToken(num_decoded + gives_text, payload))
        if self._sections is not None:
            self._sections.decoded(token_id, len(text))
        return self._deliver(scan, is_end=False)

    def finish(self) -> list[Piece[T]]:
        """End of the tokens: what was held back. A stop string can still end here, in the flushed character."""
        text = self._detokenizer.flush()
        scan = self._stops.push(text)
        if scan.stop is None:
            scan = Scan(scan.text + self._stops.flush(), None)
        return self._deliver(scan, is_end=True)

    def _deliver(self, scan: Scan, *, is_end: bool) -> list[Piece[T]]:
        pieces = [
            Piece(run.text, self._release(len(run.text)), None, run.section)
            for run in self._runs(scan.text, is_end=is_end or scan.stop is not None)
        ]
        if scan.stop is not None:
            pieces.append(Piece("", self._release(0), scan.stop, self._section))
            self._held.clear()
        elif not pieces and (payloads := self._release(0)):
            pieces.append(Piece("", payloads, None, self._section))
        return pieces

    @property
    def _section(self) -> Section.ValueType:
        return SECTION_UNSPECIFIED if self._sections is None else self._sections.section

    def _runs(self, text: str, *, is_end: bool) -> list[Run]:
        if self._sections is None:
            return [Run(SECTION_UNSPECIFIED, text)] if text else []
        runs = self._sections.push(text)
        return runs + self._sections.flush() if is_end else runs

    def _release(self, num_characters: int) -> list[T]:
        """The payloads of the tokens that can be accounted for once so many more characters are delivered."""
        self._num_delivered += num_characters
        payloads = []
        while self._held and self._held[0].release_at <= self._num_delivered:
            payloads.append(self._held.popleft().payload)
        return payloads
