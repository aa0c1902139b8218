"""Finding special tokens spelled in text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tokenizers import AddedToken, Tokenizer, models

from tokenizer_service.stripped_spaces import StrippedSpaces

_TEXT_ID = 0


class SpecialSplitter:
    """Cuts a text into special tokens and the text between them.

    The leftmost match is taken, of those that start at the same character the longest. (llama.cpp takes the longest
    match of the whole text first, and only ASCII's white space beside a token: the two differ where special tokens
    overlap, and beside other white space.)
    """

    def __init__(self, ids: Mapping[str, int], stripped: StrippedSpaces | None = None) -> None:
        """`ids` by spelling, none empty; `stripped`: those to which white space beside them belongs."""
        before, after = stripped or (frozenset(), frozenset())
        self._tokenizer = Tokenizer(models.WordLevel({"": _TEXT_ID}, unk_token=""))
        self._tokenizer.add_special_tokens(
            [AddedToken(text, normalized=False, lstrip=ids[text] in before, rstrip=ids[text] in after) for text in ids]
        )
        self._ids = {self._tokenizer.token_to_id(text): token_id for text, token_id in ids.items()}

    def split(self, text: str) -> Iterator[int | str]:
        """In the order of the text: the id of each special token, and each stretch of text between, never empty."""
        if not self._ids:
            if text:
                yield text
            return
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        for found, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            yield text[start:end] if found == _TEXT_ID else self._ids[found]
