"""Prompts of every kind as text. The vocabulary is the 256 bytes."""

from __future__ import annotations

from clforge.v1 import generation_pb2, tokenizer_pb2


def prompt_text(prompt: tokenizer_pb2.Prompt) -> str:
    """A prompt of any kind as text."""
    match prompt.WhichOneof("kind"):
        case "chat":
            return render(prompt.chat)
        case "token_ids":
            return decode(prompt.token_ids)
        case _:
            return prompt.text


def render(chat: generation_pb2.Chat) -> str:
    """A conversation, one line for each turn."""
    return "".join(f"{turn.role}: {turn.content}\n" for turn in chat.messages)


def encode(text: str) -> tokenizer_pb2.TokenIds:
    """One id for each byte of UTF-8."""
    return tokenizer_pb2.TokenIds(ids=text.encode())


def decode(ids: tokenizer_pb2.TokenIds) -> str:
    """The text of these bytes; what is not UTF-8 becomes U+FFFD."""
    return bytes(ids.ids).decode(errors="replace")
