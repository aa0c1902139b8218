"""How fast text becomes token ids: our vocabularies, llama.cpp's, and the tokenizers library with nothing around it."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers

from engine_service.bench.machine import ROOT
from engine_service.bench.protocol import BenchError
from service_common.gguf_reader import GGUFReader
from service_common.special_tokens import MODEL_KEY, PRE_KEY, SpecialTokens
from service_common.token_spelling import SPACE
from service_common.token_table import TokenKind, TokenTable, read_scores
from tokenizer_service.byte_level_bpe import words_of
from tokenizer_service.merges import mergeable_ids, read_merges
from tokenizer_service.pre_tokenizers import PRE_TOKENIZERS
from tokenizer_service.spm_bpe import ranked_pairs
from tokenizer_service.vocabulary import Vocabulary

MEGABYTE = 1_000_000
SECONDS = 2.0  # at least, of each measurement
_PIECE_CHARACTERS = 4096  # a prompt of usual length

Encode = Callable[[str], int]


def sample_texts(vocabulary_texts: Path) -> list[str]:
    """Prose, code, and the odd texts of many scripts beside a vocabulary, in pieces of a prompt's length."""
    files = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("*/*.py"))]
    text = "\n".join(path.read_text(encoding="utf-8") for path in [*files, vocabulary_texts])
    return [text[start : start + _PIECE_CHARACTERS] for start in range(0, len(text), _PIECE_CHARACTERS)]


def measure(vocabulary: Path, texts: Sequence[str], peer_python: Path | None) -> dict[str, float]:
    """MB/s on one thread of `texts`, one call each, by who encodes them; the peer where it is given.

    BenchError where the peer gives another number of tokens: then it does not do the same work.
    """
    with GGUFReader(vocabulary) as reader:
        ours = Vocabulary.from_gguf(reader)
        bare = bare_tokenizer(reader)
    rates = {
        "ours": _rate(lambda text: len(ours.encode(text, add_special=False)), texts),
        "tokenizers": _rate(lambda text: len(bare.encode_batch_fast([text])[0].ids), texts),
    }
    if peer_python is not None:
        rates["llama_cpp"], num_tokens = _peer(vocabulary, texts, peer_python)
        our_tokens = sum(len(ours.encode(text, add_special=False)) for text in texts)
        if num_tokens != our_tokens:
            raise BenchError(f"{vocabulary.name}: llama.cpp gives {num_tokens} tokens, and we {our_tokens}")
    return rates


def bare_tokenizer(reader: GGUFReader) -> Tokenizer:
    """The library's own BPE for a file, without special tokens: byte-level with the file's merges and rule, or
    SentencePiece's as the tokenizer.json of such models has it (text not cut into words)."""
    special = SpecialTokens.from_gguf(reader)
    table = TokenTable.from_gguf(reader, special)
    return {"gpt2": _bare_byte_level, "llama": _bare_spm}[reader.get_str(MODEL_KEY)](reader, table)


def _bare_spm(reader: GGUFReader, table: TokenTable) -> Tokenizer:
    scores = read_scores(reader, len(table)).tolist()
    ids = {table.texts[token_id]: token_id for token_id in table.of_kind(TokenKind.NORMAL)}
    byte_ids = {table.texts[token_id]: token_id for token_id in table.of_kind(TokenKind.BYTE)}
    pairs = ranked_pairs(ids.keys(), {text: scores[token_id] for text, token_id in ids.items()})
    tokenizer = Tokenizer(models.BPE(ids | byte_ids, pairs, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    return tokenizer


def _bare_byte_level(reader: GGUFReader, table: TokenTable) -> Tokenizer:
    rule = PRE_TOKENIZERS[reader.get_str(PRE_KEY, "default")]
    ids = mergeable_ids(table)
    tokenizer = Tokenizer(models.BPE(ids, read_merges(reader, table, ids), ignore_merges=rule.ignore_merges))
    tokenizer.pre_tokenizer = words_of(rule)
    return tokenizer


def _rate(encode: Encode, texts: Sequence[str]) -> float:
    """MB/s, after one round that does not count: it fills caches of words, as a server's are."""
    num_bytes = sum(len(text.encode()) for text in texts)
    sum(map(encode, texts))
    num_rounds, started = 0, time.perf_counter()
    while time.perf_counter() - started < SECONDS:
        sum(map(encode, texts))
        num_rounds += 1
    return num_rounds * num_bytes / (time.perf_counter() - started) / MEGABYTE


def _peer(vocabulary: Path, texts: Sequence[str], python: Path) -> tuple[float, int]:
    """Its MB/s, and how many tokens it makes of all texts."""
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        json.dump(list(texts), file)
        file.flush()
        command = [str(python), "-m", "benchmarks.peer_encode", str(vocabulary), file.name]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"llama.cpp did not encode: {done.stderr.strip().splitlines()[-1:]}")
    answer = json.loads(done.stdout.splitlines()[-1])
    return answer["bytes_per_second"] / MEGABYTE, answer["num_tokens"]
