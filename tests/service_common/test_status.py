"""The table between errors and google.rpc.Status, and the interceptor that applies it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from structlog.testing import capture_logs

from clforge.v1 import tokenizer_pb2, tokenizer_pb2_grpc
from service_common.errors import (
    Code,
    InvalidArgumentError,
    NotFoundError,
    RequestError,
    ResourceExhaustedError,
    UnavailableError,
    UnknownError,
)
from service_common.rpc import make_server
from service_common.status import MAX_MESSAGE_CHARACTERS, from_rpc_error, from_status, to_status


def test_status_carries_reason_field_and_delay() -> None:
    """Code, message, ErrorInfo, BadRequest and RetryInfo all come from the one error."""
    error = ResourceExhaustedError("queue is full", reason="QUEUE_FULL", field="prompt", retry_after_seconds=1.5)
    status = to_status(error)
    info, bad_request, retry = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.BadRequest(),
        error_details_pb2.RetryInfo(),
    )
    for detail, message in zip(status.details, (info, bad_request, retry), strict=True):
        assert detail.Unpack(message)
    assert (status.code, status.message) == (Code.RESOURCE_EXHAUSTED, "queue is full")
    assert (info.reason, info.domain) == ("QUEUE_FULL", "clforge.v1")
    assert bad_request.field_violations[0].field == "prompt"
    assert (retry.retry_delay.seconds, retry.retry_delay.nanos) == (1, 500_000_000)


def test_absent_parts_give_no_details() -> None:
    """An error without field and delay carries ErrorInfo alone."""
    assert len(to_status(NotFoundError("no such request", reason="NO_REQUEST")).details) == 1


@pytest.mark.parametrize(
    "error",
    [
        InvalidArgumentError("temperature", float("nan"), "it must be a number from 0 to 100"),
        UnavailableError("loading", reason="LOADING", retry_after_seconds=0.25),
        NotFoundError("no model x", reason="NO_MODEL", field="model"),
    ],
)
def test_round_trip_keeps_everything(error: RequestError) -> None:
    """from_status is the inverse of to_status, class included."""
    back = from_status(to_status(error))
    assert type(back) is type(error)
    assert (str(back), back.reason, back.field, back.retry_after_seconds) == (
        str(error),
        error.reason,
        error.field,
        error.retry_after_seconds,
    )


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.UNKNOWN])
def test_every_code_has_a_class(code: Code) -> None:
    """No code of ours turns into another one on its way through from_status."""
    assert from_status(status_pb2.Status(code=code, message="m")).code is code


def test_foreign_status_is_an_unknown_error() -> None:
    """A code outside the table, without details, still becomes an error with a message."""
    error = from_status(status_pb2.Status(code=15, message="data loss"))
    assert type(error) is UnknownError
    assert (str(error), error.reason) == ("data loss", "UNKNOWN")


def test_unexpected_exception_is_internal_and_not_leaked() -> None:
    """The client gets an id; the log gets the id and the exception (ISSUE-2)."""
    with capture_logs() as events:
        status = to_status(KeyError("secret prompt"))
    assert status.code == Code.INTERNAL
    assert "secret" not in status.message
    assert events[0]["error_id"] in status.message
    assert isinstance(events[0]["exc_info"], KeyError)


def test_long_message_is_cut() -> None:
    """A status always fits into HTTP/2 headers."""
    assert len(to_status(NotFoundError("x" * 100_000, reason="R")).message) == MAX_MESSAGE_CHARACTERS


class _Raising(tokenizer_pb2_grpc.TokenizerServiceServicer):
    """Raises in a unary and in a streaming handler."""

    async def Encode(self, request: tokenizer_pb2.EncodeRequest, context: Any) -> tokenizer_pb2.EncodeResponse:
        raise InvalidArgumentError("texts", 9999, "at most 1024")

    async def Generate(
        self, request: tokenizer_pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[tokenizer_pb2.GenerateResponse]:
        yield tokenizer_pb2.GenerateResponse()
        raise ZeroDivisionError("of ours")


async def test_what_handlers_raise_reaches_the_client_as_a_status() -> None:
    """A RequestError keeps its details over a real connection; another exception is INTERNAL without its text."""
    server = make_server()
    tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server(_Raising(), server)  # type: ignore[abstract]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = tokenizer_pb2_grpc.TokenizerServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as unary:
            await stub.Encode(tokenizer_pb2.EncodeRequest())
        error = from_rpc_error(unary.value)
        assert (type(error), error.field) == (InvalidArgumentError, "texts")
        call = stub.Generate(tokenizer_pb2.GenerateRequest())
        assert await call.read() == tokenizer_pb2.GenerateResponse()
        with pytest.raises(grpc.aio.AioRpcError) as streaming:
            await call.read()
        assert streaming.value.code() is grpc.StatusCode.INTERNAL
        assert "of ours" not in str(streaming.value.details())
    await server.stop(None)
