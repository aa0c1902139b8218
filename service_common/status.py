"""One table between our errors and what goes over the wire as google.rpc.Status.

A RequestError becomes its code, its message and the details ErrorInfo(reason, domain), BadRequest where a field is at
fault, and RetryInfo where coming back makes sense. Any other exception becomes INTERNAL with a short id: the traceback
goes to the log under that id, never to a client.
"""

from __future__ import annotations

import secrets
from datetime import timedelta
from typing import Any, Never

import grpc
import structlog
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from service_common.errors import (
    AlreadyExistsError,
    CancelledRequestError,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    PermissionDeniedError,
    RequestError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
    UnknownError,
)

DOMAIN = "clforge.v1"
MAX_MESSAGE_CHARACTERS = 1024  # a status travels in HTTP/2 headers, which peers limit to 8 KiB

_DETAILS_KEY = "grpc-status-details-bin"
_GRPC_CODES = {code.value[0]: code for code in grpc.StatusCode}


_ERRORS: dict[int, type[RequestError]] = {
    error.code: error
    for error in (
        InvalidArgumentError,
        OutOfRangeError,
        NotFoundError,
        AlreadyExistsError,
        FailedPreconditionError,
        ResourceExhaustedError,
        UnavailableError,
        UnimplementedError,
        InternalError,
        CancelledRequestError,
        DeadlineExceededError,
        UnauthenticatedError,
        PermissionDeniedError,
        UnknownError,
    )
}


def as_request_error(error: Exception) -> RequestError:
    """`error` itself if it is a RequestError; otherwise logs it and gives an InternalError that names the log entry."""
    if isinstance(error, RequestError):
        return error
    error_id = secrets.token_hex(4)
    structlog.get_logger(__name__).error("internal error", error_id=error_id, exc_info=error)
    return InternalError(f"internal error {error_id}; the server's log tells more under this id", reason="INTERNAL")


def to_status(error: Exception) -> status_pb2.Status:
    """Builds the status of `error`, details included. The message is cut to MAX_MESSAGE_CHARACTERS."""
    failure = as_request_error(error)
    message = str(failure)[:MAX_MESSAGE_CHARACTERS]
    status = status_pb2.Status(code=int(failure.code), message=message)
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=failure.reason, domain=DOMAIN))
    if failure.field is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(field=failure.field, description=message)
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    if failure.retry_after_seconds is not None:
        delay = Duration()
        delay.FromTimedelta(timedelta(seconds=failure.retry_after_seconds))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def from_status(status: status_pb2.Status) -> RequestError:
    """The inverse of `to_status`, for statuses of any origin.

    Missing details give reason "UNKNOWN", no field, no retry; an unknown code gives UnknownError.
    """
    reason, field, retry_after_seconds = "UNKNOWN", None, None
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            reason = _unpack(detail, error_details_pb2.ErrorInfo()).reason
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            violations = _unpack(detail, error_details_pb2.BadRequest()).field_violations
            field = violations[0].field if violations else None
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = _unpack(detail, error_details_pb2.RetryInfo())
            retry_after_seconds = retry.retry_delay.ToTimedelta().total_seconds()
    kind = _ERRORS.get(status.code, UnknownError)
    # Not kind(...): InvalidArgumentError composes a message from its arguments, and here it is composed already.
    error = kind.__new__(kind)
    RequestError.__init__(error, status.message, reason=reason, field=field, retry_after_seconds=retry_after_seconds)
    return error


def from_rpc_error(error: grpc.aio.AioRpcError) -> RequestError:
    """The error that ended an RPC of ours: from its status details if they came, else from code and message."""
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                return from_status(status_pb2.Status.FromString(value))
            except DecodeError:
                break
    return from_status(status_pb2.Status(code=error.code().value[0], message=error.details() or ""))


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: Exception) -> Never:
    """Ends the RPC with the status of `error`, details in grpc-status-details-bin. Raises, as `context.abort` does."""
    status = to_status(error)
    await context.abort(_GRPC_CODES[status.code], status.message, ((_DETAILS_KEY, status.SerializeToString()),))


def _unpack(detail: Any, message: Any) -> Any:
    detail.Unpack(message)
    return message
