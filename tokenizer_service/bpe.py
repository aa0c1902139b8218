"""Byte-pair encoding by rank, as the tokenizers library does it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tokenizers import Encoding, Tokenizer, models, pre_tokenizers

from tokenizer_service.offsets import Encoded

BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))

_UNKNOWN = "\0unknown"  # no merge leads to it, so no text can give it


class Bpe:
    """Merges the letters of a text, which are characters as the caller spells them.

    A letter that is no token becomes those of its bytes, BYTE_TOKENS, with `byte_fallback`; else `unk_id`; without one
    it is left out, and what stands beside it does not merge.
    """

    def __init__(
        self,
        ids: Mapping[str, int],
        merges: Sequence[tuple[str, str]],
        words: pre_tokenizers.PreTokenizer | None,
        *,
        letters: Iterable[str] = BYTE_TOKENS,
        unk_id: int | None = None,
        byte_fallback: bool = False,
        ignore_merges: bool = False,
    ) -> None:
        """`merges` in order of rank; `words` cuts the text before; `ignore_merges`: see PreTokenizer. No letter is
        left out if all of `letters` are tokens."""
        leaves_out = unk_id is None and not ids.keys() >= set(letters)
        self._left_out = max(ids.values(), default=-1) + 1 if leaves_out else None
        unknown = self._left_out if leaves_out else unk_id
        self._tokenizer = Tokenizer(
            models.BPE(
                dict(ids) if unknown is None else {**ids, _UNKNOWN: unknown},
                list(merges),
                unk_token=None if unknown is None else _UNKNOWN,
                byte_fallback=byte_fallback,
                ignore_merges=ignore_merges,
            )
        )
        if words is not None:
            self._tokenizer.pre_tokenizer = words

    def encode(self, texts: list[str]) -> list[int]:
        """Ids of all texts, one after the other."""
        ids: list[int] = []
        for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False):
            ids += encoding.ids
        return ids if self._left_out is None else [token_id for token_id in ids if token_id != self._left_out]

    def encode_with_offsets(self, text: str) -> Encoded:
        """Ids of one text, with the characters that each stands for."""
        return encoded(self._tokenizer.encode(text, add_special_tokens=False), self._left_out)


def encoded(encoding: Encoding, left_out: int | None = None) -> Encoded:
    """What the library found, without the tokens of id `left_out`."""
    found = zip(encoding.ids, encoding.offsets, strict=True)
    kept = [(token_id, offsets) for token_id, offsets in found if token_id != left_out]
    return Encoded([token_id for token_id, _ in kept], [offsets for _, offsets in kept])
