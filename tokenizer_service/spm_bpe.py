"""SentencePiece BPE (`tokenizer.ggml.model` = llama): of all adjacent pairs the one whose joint token has the highest
score merges first, the leftmost of equal ones.

Source: llama.cpp, src/llama-vocab.cpp (commit 00ad355e), llm_tokenizer_spm_session; SentencePiece, bpe_model.cc.

The tokenizers library merges by the rank of a pair instead. Ranking all pairs by the score of their joint token gives
the same result where scores differ: up to the moment when a token forms, the merges inside its text are those that
would happen were it alone, so the halves from which it forms are always the same, and pairs of other halves never
come up. Runs of one character may share a score if the longer one ranks first: whichever order is taken, a run grows
from its left end. Vocabularies with other ties among scores are merged by `merge_by_score`, which is exact and slow.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import accumulate

from tokenizers import Regex, pre_tokenizers

from service_common.errors import ModelFileError
from service_common.gguf_reader import GGUFReader
from service_common.special_tokens import TOKENS_KEY
from service_common.token_spelling import SPACE, bytes_of_pieces
from service_common.token_table import TokenKind, TokenTable, read_scores
from tokenizer_service.added_tokens import AddedByDefault
from tokenizer_service.bpe import BYTE_TOKENS, Bpe
from tokenizer_service.normalization_keys import ADD_SPACE_PREFIX_KEY
from tokenizer_service.offsets import Encoded, joined

# Sum of squared lengths of tokens, in characters, which bounds the work of `_pairs`. Llama 2's is near 2^20.
_MAX_SQUARED_LENGTHS = 1 << 31


class SpmBpe:
    """Encodes text without special tokens, and gives the bytes of tokens."""

    added = AddedByDefault(bos=True)

    def __init__(self, reader: GGUFReader, table: TokenTable, unk_id: int | None) -> None:
        """Build from the file's scores. `unk_id` stands for characters that neither a token nor byte tokens give.

        Raises ModelFileError for scores that do not fit the tokens, and tokens too long to be cut into pairs.
        """
        self.add_space_prefix = reader.get_bool(ADD_SPACE_PREFIX_KEY, True)
        self._prefix = SPACE if self.add_space_prefix else ""
        self._ids = _ids_from_text(table)
        self._byte_ids = {table.byte_value(token_id): token_id for token_id in table.of_kind(TokenKind.BYTE)}
        self._unk_id = unk_id
        scores = read_scores(reader, len(table))
        self._scores = {text: float(scores[token_id]) for text, token_id in self._ids.items()}
        _check_lengths(reader.name, self._ids)
        pairs = ranked_pairs(self._ids, self._scores)
        self._is_ranked = not _has_ties({left + right for left, right in pairs}, self._scores)
        ids = self._ids | {BYTE_TOKENS[byte]: token_id for byte, token_id in self._byte_ids.items()}
        self._bpe = Bpe(ids, pairs, words_between_spaces(self._ids), unk_id=unk_id, byte_fallback=True)

    def encode(self, text: str) -> list[int]:
        """Ids of a text in which special tokens are not looked for, and which follows none but special tokens."""
        text = self._prefix + text.replace(" ", SPACE)
        if not self._is_ranked:
            return [token_id for piece in merge_by_score(text, self._scores) for token_id in self._piece_ids(piece)]
        return self._bpe.encode([text])

    def encode_with_offsets(self, text: str) -> Encoded:
        """As `encode`, with the characters of `text` that each token stands for."""
        spelled = self._prefix + text.replace(" ", SPACE)
        if self._is_ranked:
            found = self._bpe.encode_with_offsets(spelled)
        else:
            pieces = merge_by_score(spelled, self._scores)
            starts = accumulate(map(len, pieces), initial=0)
            found = joined(zip(starts, map(self._piece_with_offsets, pieces), strict=False))
        added = len(self._prefix)
        return Encoded(found.ids, [(max(start - added, 0), end - added) for start, end in found.ranges])

    def _piece_with_offsets(self, piece: str) -> Encoded:
        ids = self._piece_ids(piece)
        return Encoded(ids, [(0, len(piece))] * len(ids))

    def _piece_ids(self, piece: str) -> list[int]:
        if piece in self._ids:
            return [self._ids[piece]]
        spelled = piece.encode("utf-8")
        if self._byte_ids.keys() >= set(spelled):
            return [self._byte_ids[byte] for byte in spelled]
        return [] if self._unk_id is None else [self._unk_id]

    def text_bytes(self, text: str) -> bytes:
        """The bytes that a normal token's spelling stands for."""
        return bytes_of_pieces(text)


def ranked_pairs(texts: Collection[str], scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Every way to join two of the token `texts` to a third, those of the highest score first."""
    return sorted(_pairs(texts), key=lambda pair: _rank(pair, scores))


def words_between_spaces(texts: Iterable[str]) -> pre_tokenizers.PreTokenizer | None:
    """Cuts a text before its spaces, if none of the token `texts` goes on after a word; else None.

    Then the words can be encoded one by one, and those seen before are looked up.
    """
    if any(SPACE in text.lstrip(SPACE) for text in texts):
        return None
    return pre_tokenizers.Split(Regex(f"{SPACE}+[^{SPACE}]*|[^{SPACE}]+"), "isolated")


def merge_by_score(text: str, scores: Mapping[str, float]) -> list[str]:
    """The pieces of `text` after all merges, by definition: the best pair of neighbours whose joint text has a score
    is merged, the leftmost of equal ones, until there is none. `scores` is by token text."""
    pieces = list(text)
    following = list(range(1, len(pieces) + 1))
    preceding = list(range(-1, len(pieces) - 1))
    queue: list[tuple[float, int, int, str]] = []

    def offer(left: int, right: int) -> None:
        if left >= 0 and right < len(pieces):
            joint = pieces[left] + pieces[right]
            if joint in scores:
                heapq.heappush(queue, (-scores[joint], left, right, joint))

    for right in range(1, len(pieces)):
        offer(right - 1, right)
    while queue:
        _, left, right, joint = heapq.heappop(queue)
        if not pieces[left] or not pieces[right] or pieces[left] + pieces[right] != joint:
            continue  # one of the two was merged since
        pieces[left], pieces[right] = joint, ""
        following[left] = following[right]
        if following[left] < len(pieces):
            preceding[following[left]] = left
        offer(preceding[left], left)
        offer(left, following[left])
    return [piece for piece in pieces if piece]


def _ids_from_text(table: TokenTable) -> dict[str, int]:
    """Ids of the tokens that merges may give. User-defined ones have been cut out of the text already, but for those
    that are spelled with the sign for a space, which is not in the text yet."""
    ids = {table.texts[token_id]: token_id for token_id in table.of_kind(TokenKind.NORMAL)}
    for token_id in table.of_kind(TokenKind.USER_DEFINED):
        if SPACE in table.texts[token_id]:
            ids[table.texts[token_id]] = token_id
    ids.pop("", None)
    return ids


def _pairs(texts: Collection[str]) -> Iterator[tuple[str, str]]:
    for text in texts:
        for cut in range(1, len(text)):
            if text[:cut] in texts and text[cut:] in texts:
                yield text[:cut], text[cut:]


def _rank(pair: tuple[str, str], scores: Mapping[str, float]) -> tuple[float, int]:
    joint = pair[0] + pair[1]
    return -scores[joint], -len(joint)


def _has_ties(joints: Iterable[str], scores: Mapping[str, float]) -> bool:
    """Whether two of the tokens have the same score and are not runs of one and the same character."""
    by_score: defaultdict[float, list[str]] = defaultdict(list)
    for joint in joints:
        by_score[scores[joint]].append(joint)
    return any(len(texts) > 1 and len(set("".join(texts))) > 1 for texts in by_score.values())


def _check_lengths(file: str, texts: Iterable[str]) -> None:
    squared_lengths = sum(len(text) ** 2 for text in texts)
    if squared_lengths > _MAX_SQUARED_LENGTHS:
        limit = f"must be at most {_MAX_SQUARED_LENGTHS}: the tokens are too long"
        raise ModelFileError(file, f"sum of the squared lengths of {TOKENS_KEY}", squared_lengths, limit)
