"""How many tokens the engine may generate for a request, as the client and the detokeniser allow."""

from __future__ import annotations

MAX_CREDIT = (1 << 31) - 1  # also the most tokens a choice can have, so that more credit means nothing


class CreditWindow:
    """Credit per choice: what the client has allowed plus the tokens held back here, whose text it cannot see yet.

    The client cannot grant for what it does not see, so without the addition a window smaller than a character's bytes
    or a stop string would never move. A delta that releases held tokens may exceed the client's credit by their number.
    """

    def __init__(self, initial: int | None) -> None:
        """`initial` None: the client allows max_tokens, and grants change nothing."""
        self._allowed = initial
        self._forwarded = 0

    def grant(self, tokens: int) -> None:
        """The client allows so many more."""
        if self._allowed is not None:
            self._allowed = min(self._allowed + tokens, MAX_CREDIT)

    def initial(self) -> int | None:
        """The credit to submit the request with; it counts as forwarded."""
        self._forwarded = self._allowed or 0
        return self._allowed

    def forward(self, num_held_tokens: int) -> int:
        """What the engine must be granted now, 0 for nothing; it counts as forwarded."""
        if self._allowed is None:
            return 0
        missing = max(0, min(self._allowed + num_held_tokens, MAX_CREDIT) - self._forwarded)
        self._forwarded += missing
        return missing
