"""Which tokens hold a string."""

from __future__ import annotations

import random

from engine_service.token_search import TokenSearch


def test_it_finds_what_a_look_at_each_token_finds() -> None:
    """Strings of one to four bytes among tokens of none to six, and never across two of them."""
    rng = random.Random(3)
    texts = [bytes(rng.choices(b"ab\n", k=rng.randrange(7))) for _ in range(300)]
    search = TokenSearch(texts)
    for _ in range(200):
        wanted = bytes(rng.choices(b"ab\n", k=rng.randrange(1, 5)))
        assert search.ids_containing(wanted) == {index for index, text in enumerate(texts) if wanted in text}


def test_a_vocabulary_without_bytes_holds_nothing() -> None:
    """Also where what is looked for is longer than all texts together."""
    assert TokenSearch([b"", b""]).ids_containing(b"a") == frozenset()
    assert TokenSearch([b"a"]).ids_containing(b"aaaa") == frozenset()
