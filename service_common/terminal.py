"""Text of others on a user's terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text without characters that a terminal would act upon; each becomes U+FFFD."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text)
