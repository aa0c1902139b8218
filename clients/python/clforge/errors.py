"""Every error that the SDK raises on purpose.

ClforgeError
├── UnreachableError            no server answers at the address
│   └── TLSError                  one does, but a secure connection cannot be made
├── ConnectionLostError         the connection broke after the server had begun to answer
├── ProtocolError               the server said what it must not
└── StatusError                 the server refused or failed: code, reason, field, retry_after_seconds
    ├── InvalidRequestError       INVALID_ARGUMENT, OUT_OF_RANGE; also raised before anything is sent
    ├── NotFoundError             NOT_FOUND
    ├── FailedPreconditionError   FAILED_PRECONDITION, ALREADY_EXISTS, ABORTED
    ├── OverloadedError           RESOURCE_EXHAUSTED
    ├── UnavailableError          UNAVAILABLE: loading, draining, or its engine is gone
    ├── DeadlineError             DEADLINE_EXCEEDED
    ├── RequestCancelledError     CANCELLED, by somebody else
    ├── AuthenticationError       UNAUTHENTICATED: the API key is missing, unknown, expired or revoked
    │   └── PermissionDeniedError   PERMISSION_DENIED: the key may not do this
    ├── UnimplementedError        UNIMPLEMENTED: this server, model or device lacks it
    └── ServerError               INTERNAL, UNKNOWN, DATA_LOSS
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import status_pb2
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo

_DETAILS_KEY = "grpc-status-details-bin"
_DOMAIN = "clforge.v1"
_SHOWN_CHARACTERS = 200  # of a value that is at fault
_ENDED_WHILE_WRITING = "Internal error from Core"  # what grpc.aio puts in place of the status that crossed a write
_LAST_ERROR = "; last error: "  # in what gRPC says when a connection did not come about

# What gRPC says, in words of its own and of BoringSSL's, when a handshake fails, and what that means; the first counts.
_TLS_CAUSES = {
    "WRONG_VERSION_NUMBER": "the server does not speak TLS; connect without it",
    "certificate has expired": "the server's certificate has expired; it needs a new one",
    "CERTIFICATE_VERIFY_FAILED": "no authority that this client trusts vouches for the server's certificate; "
    "give the server's own as ca",
    "Hostname Verification": "the server's certificate is for another name; connect by a name that it holds, "
    "or give that as server_name",
    "handshake failed": "the handshake fails; the server's log may tell more",
    "Socket closed": "the server hangs up; it may take TLS only, or ask for the client's certificate",
}


class ClforgeError(Exception):
    """Base of all errors raised on purpose; str() is a message for a user, with the remedy where there is one."""


class UnreachableError(ClforgeError):
    """No server answers at `target`."""

    def __init__(self, target: str, cause: str) -> None:
        self.target = target
        super().__init__(self._message(target, cause))

    def _message(self, target: str, cause: str) -> str:
        return f"no server answers at {target} ({cause}); start one with: clforge serve; or give its address"


class TLSError(UnreachableError):
    """Somebody answers at `target`, but one side speaks TLS and the other not, or one does not trust the other."""

    def _message(self, target: str, cause: str) -> str:
        return f"no secure connection to {target}: {cause}"


class ConnectionLostError(ClforgeError):
    """The connection to `target` broke after the server had begun to answer; what it had sent stays valid."""

    def __init__(self, target: str, cause: str) -> None:
        self.target = target
        super().__init__(f"the connection to {target} broke ({cause}); the server may have stopped")


class ProtocolError(ClforgeError):
    """The server broke the protocol, for instance by leaving out an update."""


class StatusError(ClforgeError):
    """The server refused or failed a request.

    `code` is the status code's name, `reason` a stable word for programs, `field` the request's field at fault, and
    `retry_after_seconds`, where set, when trying again makes sense.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str,
        reason: str = "UNKNOWN",
        field: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code, self.reason, self.field, self.retry_after_seconds = code, reason, field, retry_after_seconds


class InvalidRequestError(StatusError):
    """A parameter is out of its range, or the prompt does not fit the served context."""


class NotFoundError(StatusError):
    """No such request or model."""


class FailedPreconditionError(StatusError):
    """The server is not in the state that the request needs."""


class OverloadedError(StatusError):
    """A limit of the server is reached: too many requests or tokens wait, or this one was never read."""


class UnavailableError(StatusError):
    """The server loads its model, drains, or has lost its engine."""


class DeadlineError(StatusError):
    """Time ran out."""


class RequestCancelledError(StatusError):
    """Somebody else cancelled."""


class AuthenticationError(StatusError):
    """The API key is missing, unknown, expired or revoked."""


class PermissionDeniedError(AuthenticationError):
    """The API key is good, but may not do this."""


class UnimplementedError(StatusError):
    """This server, model or device lacks what was asked for."""


class ServerError(StatusError):
    """The server failed; its log tells more."""


_ERRORS: dict[grpc.StatusCode, type[StatusError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequestError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPreconditionError,
    grpc.StatusCode.ALREADY_EXISTS: FailedPreconditionError,
    grpc.StatusCode.ABORTED: FailedPreconditionError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: OverloadedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
    grpc.StatusCode.CANCELLED: RequestCancelledError,
    grpc.StatusCode.UNAUTHENTICATED: AuthenticationError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.UNIMPLEMENTED: UnimplementedError,
    grpc.StatusCode.INTERNAL: ServerError,
    grpc.StatusCode.UNKNOWN: ServerError,
    grpc.StatusCode.DATA_LOSS: ServerError,
}
_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def from_status(status: status_pb2.Status) -> StatusError:
    """The error of a status, with what ErrorInfo, BadRequest and RetryInfo among its details say."""
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    info, bad_request, retry = ErrorInfo(), BadRequest(), RetryInfo()
    _unpack(status, info)
    _unpack(status, bad_request)
    retryable = _unpack(status, retry)
    return _ERRORS.get(code, ServerError)(
        status.message or f"the server failed with {code.name}",
        code=code.name,
        reason=info.reason or "UNKNOWN",
        field=bad_request.field_violations[0].field if bad_request.field_violations else None,
        retry_after_seconds=retry.retry_delay.ToTimedelta().total_seconds() if retryable else None,
    )


def to_status(error: StatusError) -> status_pb2.Status:
    """The inverse of `from_status`, for whoever plays a server."""
    code = grpc.StatusCode[error.code]
    status = status_pb2.Status(code=code.value[0], message=str(error))
    status.details.add().Pack(ErrorInfo(reason=error.reason, domain=_DOMAIN))
    if error.field is not None:
        violation = BadRequest.FieldViolation(field=error.field)
        status.details.add().Pack(BadRequest(field_violations=[violation]))
    if error.retry_after_seconds is not None:
        retry = RetryInfo()
        retry.retry_delay.FromTimedelta(timedelta(seconds=error.retry_after_seconds))
        status.details.add().Pack(retry)
    return status


def from_rpc_error(error: grpc.aio.AioRpcError, target: str, *, answered: bool) -> ClforgeError:
    """The error that ended an RPC to `target`; `answered` tells whether the server had sent anything.

    UNAVAILABLE without a status of the server's own comes from the transport.
    """
    if error.details() == _ENDED_WHILE_WRITING:
        return ConnectionLostError(target, "the stream ended while something was being sent")
    status = _status(error)
    if status is None and error.code() is grpc.StatusCode.UNAVAILABLE:
        details = error.details() or "no cause given"
        if answered:
            return ConnectionLostError(target, _transport_cause(details))
        if (cause := _tls_cause(details)) is not None:
            return TLSError(target, cause)
        return UnreachableError(target, _transport_cause(details))
    return from_status(status or status_pb2.Status(code=error.code().value[0], message=error.details() or ""))


def _transport_cause(details: str) -> str:
    """The point of "failed to connect to all addresses; last error: UNKNOWN: ipv4:…: Connection refused"."""
    return details.rsplit(": ", 1)[-1] if _LAST_ERROR in details else details


def _tls_cause(details: str) -> str | None:
    if _LAST_ERROR not in details:
        return None
    return next((cause for sign, cause in _TLS_CAUSES.items() if sign in details), None)


def _status(error: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                return None
    return None


def _unpack(status: status_pb2.Status, message: Message) -> bool:
    """Fills `message` from the first detail of its type; whether there is one."""
    return any(detail.Unpack(message) for detail in status.details)


def invalid(field: str, value: Any, limit: str) -> InvalidRequestError:
    """An error for a parameter that cannot even be sent; a long value is shown by its beginning."""
    shown = repr(value)
    if len(shown) > _SHOWN_CHARACTERS:
        shown = f"{shown[:_SHOWN_CHARACTERS]}…"
    message = f"{field} is {shown}; {limit}"
    return InvalidRequestError(message, code="INVALID_ARGUMENT", reason="BAD_PARAMETER", field=field)
