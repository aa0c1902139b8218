"""From generated tokens to deliverable text: detokenizing, then stop strings, with every token accounted for."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

from tokenizer_service.detokenizer import Detokenizer, HasTokenBytes
from tokenizer_service.stop_strings import Scan, StopStrings

T = TypeVar("T")


class Piece(NamedTuple, Generic[T]):
    """What may be delivered now.

    text: the next part of the choice's text; whole characters, may be empty.
    payloads: one for each token that this piece accounts for, in the order of generation; may be empty.
    stop: the stop string that ended the text with this piece, or None. No piece follows one with a stop.
    """

    text: str
    payloads: list[T]
    stop: str | None


class _HeldToken(NamedTuple, Generic[T]):
    """A token whose text is not delivered: it may go once the delivered text is `release_at` characters long."""

    release_at: int
    payload: T


class TextStream(Generic[T]):
    """The text of one choice, with what may yet become a stop string or a whole character held back.

    A token's text is what it adds to the decoded text: a character belongs to the token that completes it. A token is
    accounted for, once, by the piece that delivers the first character of its text; one without text goes with the
    text before it, and one that only begins a character with the text that completes that character.

    Laws: without stop strings the texts of all pieces, `finish` included, concatenated, equal
    `vocabulary.decode_continuation(ids)`, and their payloads are all payloads in order. With a stop string in the
    text, the texts are what precedes the first one (with `include_stop`, its end), and the payloads are those of the
    tokens whose text is at least partly delivered: their number is Stop.num_delivered_tokens.
    """

    def __init__(
        self,
        vocabulary: HasTokenBytes,
        stops: Sequence[str] = (),
        *,
        include_stop: bool = False,
        skip_special: bool = True,
    ) -> None:
        """Raises InvalidArgumentError for an empty stop string."""
        self._detokenizer = Detokenizer(vocabulary, skip_special=skip_special)
        self._stops = StopStrings(stops, include_stop=include_stop)
        self._held: deque[_HeldToken[T]] = deque()
        self._num_decoded = 0
        self._num_delivered = 0

    @property
    def held_tokens(self) -> int:
        """Tokens pushed and not yet accounted for by a piece: the credit that the holder of this stream still owes."""
        return len(self._held)

    def push(self, token_id: int, payload: T) -> Piece[T]:
        """Take one generated token with its `payload`. Must not be called after a piece with a stop, or `finish`."""
        text = self._detokenizer.push(token_id)
        gives_text = bool(text) or self._detokenizer.held_tokens > 0
        self._held.append(_HeldToken(self._num_decoded + gives_text, payload))
        self._num_decoded += len(text)
        return self._deliver(self._stops.push(text))

    def finish(self) -> Piece[T]:
        """End of the tokens: what was held back. A stop string can still end here, in the flushed character."""
        text = self._detokenizer.flush()
        self._num_decoded += len(text)
        scan = self._stops.push(text)
        if scan.stop is None:
            scan = Scan(scan.text + self._stops.flush(), None)
        return self._deliver(scan)

    def _deliver(self, scan: Scan) -> Piece[T]:
        self._num_delivered += len(scan.text)
        payloads = []
        while self._held and self._held[0].release_at <= self._num_delivered:
            payloads.append(self._held.popleft().payload)
        if scan.stop is not None:
            self._held.clear()
        return Piece(scan.text, payloads, scan.stop)
