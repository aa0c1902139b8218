"""CLForge's client: `async with Client(target) as client: ...`; see `Client`.

Names are loaded at first use: the services import `clforge.v1` and must not pay for the client.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clforge.chat import Chat, Message, RenderedChat
    from clforge.client import Client
    from clforge.errors import (
        AuthenticationError,
        ClforgeError,
        ConnectionLostError,
        DeadlineError,
        FailedPreconditionError,
        InvalidRequestError,
        NotFoundError,
        OverloadedError,
        ProtocolError,
        RequestCancelledError,
        ServerError,
        StatusError,
        UnavailableError,
        UnimplementedError,
        UnreachableError,
    )
    from clforge.events import (
        Accepted,
        ChatTemplateOrigin,
        Choice,
        Completion,
        Delta,
        Event,
        Finished,
        FinishReason,
        Logprob,
        ModelInfo,
        Section,
        Timings,
        TokenLogprobs,
        Usage,
    )
    from clforge.params import Params
    from clforge.session import Request, Session
    from clforge.tokens import Decoding, Encoding

__all__ = [
    "Accepted",
    "AuthenticationError",
    "Chat",
    "ChatTemplateOrigin",
    "Choice",
    "ClforgeError",
    "Client",
    "Completion",
    "ConnectionLostError",
    "DeadlineError",
    "Decoding",
    "Delta",
    "Encoding",
    "Event",
    "FailedPreconditionError",
    "FinishReason",
    "Finished",
    "InvalidRequestError",
    "Logprob",
    "Message",
    "ModelInfo",
    "NotFoundError",
    "OverloadedError",
    "Params",
    "ProtocolError",
    "RenderedChat",
    "Request",
    "RequestCancelledError",
    "Section",
    "ServerError",
    "Session",
    "StatusError",
    "Timings",
    "TokenLogprobs",
    "UnavailableError",
    "UnimplementedError",
    "UnreachableError",
    "Usage",
]

_MODULES = (
    "clforge.client",
    "clforge.session",
    "clforge.chat",
    "clforge.params",
    "clforge.events",
    "clforge.tokens",
    "clforge.errors",
)


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in map(import_module, _MODULES):
            if name in vars(module):
                return vars(module)[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
