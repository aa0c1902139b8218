"""What `clforge chat` talks about, and the commands that change it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

from clforge.chat import Chat, Message, chat_to_proto
from clforge.errors import InvalidRequestError
from clforge.params import Params, params_to_proto
from service_common.errors import ConfigError

_MAX_FILE_BYTES = 16 << 20  # no longer conversation could be sent
_LISTS = ("stop", "stop_token_ids")


class CommandError(ConfigError):
    """A command that cannot be followed."""


class Outcome(NamedTuple):
    """What follows from a command: something to tell, a question to ask (again), or the end of the chat."""

    tell: str = ""
    ask: bool = False
    leave: bool = False


@dataclass
class Conversation:
    """The turns so far, oldest first, and how they are answered."""

    system: str | None
    params: Params
    messages: list[Message] = field(default_factory=list)

    def prompt(self) -> Chat:
        """What the model is to answer."""
        return Chat(list(self.messages), self.system)

    def ask(self, text: str) -> None:
        """Adds a turn of the user's, in place of one that got no answer: templates want turns to alternate."""
        if self.messages and self.messages[-1]["role"] == "user":
            self.messages.pop()
        self.messages.append({"role": "user", "content": text})

    def answer(self, text: str, reasoning: str) -> None:
        """Adds the model's turn, if it said anything."""
        turn: Message = {"role": "assistant", "content": text}
        if reasoning:
            turn["reasoning_content"] = reasoning
        if text or reasoning:
            self.messages.append(turn)

    def command(self, line: str) -> Outcome:
        """Follows a line that begins with a slash. CommandError for one that cannot be followed."""
        name, argument = [*line.split(maxsplit=1), ""][:2]
        if name not in COMMANDS:
            raise CommandError(f"there is no {name}; /help lists what there is, and a space before the slash says it")
        return COMMANDS[name].run(self, argument.strip())


class Command(NamedTuple):
    """A command: what --help says that it takes and does, and what does it."""

    takes: str
    help: str
    run: Callable[[Conversation, str], Outcome]


def _help(conversation: Conversation, argument: str) -> Outcome:
    lines = [f"{f'{name} {command.takes}':<26}{command.help}" for name, command in COMMANDS.items()]
    keys = ("Enter sends, Alt-Enter begins a new line, a pasted text may have many.", "Ctrl-C ends the answer.")
    return Outcome("\n".join([*lines, *keys]))


def _reset(conversation: Conversation, argument: str) -> Outcome:
    conversation.messages.clear()
    return Outcome("the conversation begins anew")


def _system(conversation: Conversation, argument: str) -> Outcome:
    if argument:
        conversation.system = argument
    return Outcome(f"system: {conversation.system}" if conversation.system else "nothing is said before the first turn")


def _params(conversation: Conversation, argument: str) -> Outcome:
    given: dict[str, Any] = dict(conversation.params)
    for assignment in argument.split():
        name, _, value = assignment.partition("=")
        given.pop(name, None)
        if value:
            given[name] = [value] if name in _LISTS and not value.startswith("[") else _value(value)
    conversation.params = _checked(given)
    shown = " ".join(f"{name}={json.dumps(value)}" for name, value in conversation.params.items())
    return Outcome(shown or "the server's defaults; change them like this: /params temperature=0.7 top_p=0.9")


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _checked(given: dict[str, Any]) -> Params:
    try:
        params_to_proto(cast("Params", given))
    except (TypeError, InvalidRequestError) as error:
        raise CommandError(str(error)) from error
    return cast("Params", given)


def _regenerate(conversation: Conversation, argument: str) -> Outcome:
    while conversation.messages and conversation.messages[-1]["role"] == "assistant":
        conversation.messages.pop()
    if not conversation.messages:
        raise CommandError("nothing has been asked yet")
    return Outcome(ask=True)


def _save(conversation: Conversation, argument: str) -> Outcome:
    content = {"system": conversation.system, "messages": conversation.messages, "params": conversation.params}
    path = _path(argument)
    try:
        with open(path, "w", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {error.strerror}") from error
    return Outcome(f"saved {len(conversation.messages)} turns to {path}")


def _load(conversation: Conversation, argument: str) -> Outcome:
    path = _path(argument)
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(_MAX_FILE_BYTES + 1)[:_MAX_FILE_BYTES])
        system, messages, given = content.get("system"), content["messages"], content.get("params", {})
        chat_to_proto(Chat(messages, system))
    except OSError as error:
        raise CommandError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, InvalidRequestError) as error:
        raise CommandError(f"{path} holds no conversation that /save wrote ({error})") from None
    conversation.params = _checked(given)
    conversation.system, conversation.messages = system, messages
    return Outcome(f"loaded {len(messages)} turns from {path}")


def _path(argument: str) -> Path:
    if not argument:
        raise CommandError("name a file")
    return Path(argument).expanduser()


def _quit(conversation: Conversation, argument: str) -> Outcome:
    return Outcome(leave=True)


COMMANDS = {
    "/help": Command("", "show this", _help),
    "/reset": Command("", "begin anew; what /system and /params said stays", _reset),
    "/system": Command("[TEXT]", "show or set what the model is told before the first turn", _system),
    "/params": Command("[NAME=VALUE ...]", "show or change parameters; NAME= takes the server's default", _params),
    "/regenerate": Command("", "answer the last turn again", _regenerate),
    "/save": Command("FILE", "write the conversation, as JSON", _save),
    "/load": Command("FILE", "go on with a conversation that was saved", _load),
    "/quit": Command("", "leave, like Ctrl-D", _quit),
}
