"""Every error that CLForge raises on purpose.

ClforgeError
├── StartupError          the process cannot start as asked: exit code 2, one line on standard error
│   ├── ConfigError       an option, and what is wrong with it
│   └── ModelFileError    a model file: file, field, value, limit
├── DeviceError           an OpenCL operation failed: operation, code, parameters
└── RequestError          one request failed; carries a status code for the wire
    ├── InvalidArgumentError, OutOfRangeError, NotFoundError, AlreadyExistsError, FailedPreconditionError
    │   └── ChatTemplateError  (an InvalidArgumentError) what a chat template says, or the limit that it broke
    ├── ResourceExhaustedError, UnavailableError      may say when to come back
    ├── UnimplementedError, InternalError
    └── CancelledRequestError, DeadlineExceededError, UnauthenticatedError, PermissionDeniedError, UnknownError
                              what a peer's status may say
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar


class Code(IntEnum):
    """Status codes by their google.rpc.Code numbers, so that code without gRPC can name them."""

    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


class ClforgeError(Exception):
    """Base of all errors raised on purpose; str() is a message for a user, with the remedy where there is one."""


class StartupError(ClforgeError):
    """The process cannot start as asked. Ends it with exit code 2 and one line."""


class ConfigError(StartupError):
    """An option has a value that cannot be used."""


class ModelFileError(StartupError):
    """A model file cannot be used. The message names file, field, value and limit."""

    def __init__(self, file: str, field: str, value: object, limit: str) -> None:
        self.file, self.field, self.value, self.limit = file, field, value, limit
        super().__init__(f"{file}: {field} is {_shown(value)}; {limit}")


def _shown(value: object, longest: int = 80) -> str:
    text = value if isinstance(value, str) else repr(value)
    text = text.encode("unicode_escape").decode("ascii")
    return text if len(text) <= longest else f"{text[:longest]}… ({len(text)} characters)"


class DeviceError(ClforgeError):
    """An OpenCL operation failed. The message carries operation, code name and parameters."""

    def __init__(self, operation: str, code: str, **parameters: object) -> None:
        self.operation, self.code, self.parameters = operation, code, parameters
        shown = ", ".join(f"{name}={value}" for name, value in parameters.items())
        super().__init__(f"{operation} failed: {code}" + (f" ({shown})" if shown else ""))


class RequestError(ClforgeError):
    """One request failed, others go on.

    `field` names the request's field at fault, `reason` is a stable upper-case word for programs, and
    `retry_after_seconds`, where set, tells when trying again makes sense.
    """

    code: ClassVar[Code]

    def __init__(
        self, message: str, *, reason: str, field: str | None = None, retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(message)
        self.reason, self.field, self.retry_after_seconds = reason, field, retry_after_seconds


class InvalidArgumentError(RequestError):
    """A parameter that no state of the server would make valid."""

    code = Code.INVALID_ARGUMENT

    def __init__(self, field: str, value: object, limit: str) -> None:
        super().__init__(f"{field} is {_shown(value)}; {limit}", reason="BAD_PARAMETER", field=field)


class ChatTemplateError(InvalidArgumentError):
    """The model's chat template cannot render the conversation: it refuses it, it is wrong, or it broke a limit.

    INVALID_ARGUMENT for limits too: the same conversation would break them again, however idle the server is.
    """

    def __init__(self, message: str, *, field: str, reason: str = "CHAT_TEMPLATE") -> None:
        RequestError.__init__(self, message, reason=reason, field=field)


class OutOfRangeError(RequestError):
    """The prompt is longer than the served context."""

    code = Code.OUT_OF_RANGE


class NotFoundError(RequestError):
    """No such request or model."""

    code = Code.NOT_FOUND


class AlreadyExistsError(RequestError):
    """A request id was used before."""

    code = Code.ALREADY_EXISTS


class FailedPreconditionError(RequestError):
    """The caller's view of the server is out of date."""

    code = Code.FAILED_PRECONDITION


class ResourceExhaustedError(RequestError):
    """A limit of the server was reached."""

    code = Code.RESOURCE_EXHAUSTED


class UnavailableError(RequestError):
    """Loading, draining, or the engine is gone."""

    code = Code.UNAVAILABLE


class UnimplementedError(RequestError):
    """This server, model or device lacks what was asked for."""

    code = Code.UNIMPLEMENTED


class InternalError(RequestError):
    """A broken invariant of our own."""

    code = Code.INTERNAL


class CancelledRequestError(RequestError):
    """The other side cancelled."""

    code = Code.CANCELLED


class DeadlineExceededError(RequestError):
    """Time ran out."""

    code = Code.DEADLINE_EXCEEDED


class UnauthenticatedError(RequestError):
    """The caller did not say who it is."""

    code = Code.UNAUTHENTICATED


class PermissionDeniedError(RequestError):
    """The caller may not do this."""

    code = Code.PERMISSION_DENIED


class UnknownError(RequestError):
    """A peer failed in a way that its status does not tell."""

    code = Code.UNKNOWN
