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
        PermissionDeniedError,
        ProtocolError,
        RequestCancelledError,
        ServerError,
        StatusError,
        TLSError,
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
    from clforge.load import Load, RequestInfo, RequestState
    from clforge.params import Params
    from clforge.session import Request, Session
    from clforge.tls import TLS
    from clforge.tokens import Decoding, Encoding

__all__ = [
    "TLS",
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
    "Load",
    "Logprob",
    "Message",
    "ModelInfo",
    "NotFoundError",
    "OverloadedError",
    "Params",
    "PermissionDeniedError",
    "ProtocolError",
    "RenderedChat",
    "Request",
    "RequestCancelledError",
    "RequestInfo",
    "RequestState",
    "Section",
    "ServerError",
    "Session",
    "StatusError",
    "TLSError",
    "Timings",
    "TokenLogprobs",
    "UnavailableError",
    "UnimplementedError",
    "UnreachableError",
    "Usage",
]

_MODULES = tuple(
    f"clforge.{name}" for name in ("client", "session", "chat", "params", "events", "load", "tls", "tokens", "errors")
)


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in map(import_module, _MODULES):
            if name in vars(module):
                return vars(module)[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
