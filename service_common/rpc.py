"""gRPC servers and channels as both services make them: one policy for keepalive, message sizes and errors."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from service_common.addresses import Address
from service_common.status import abort, as_request_error

MAX_MESSAGE_BYTES = 16 << 20
KEEPALIVE_SECONDS = 60  # how often an idle connection is probed; a prefill may send nothing for longer
KEEPALIVE_TIMEOUT_SECONDS = 20
MIN_PING_SECONDS = 10  # a client that pings more often than this gets GOAWAY

_COMMON_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", KEEPALIVE_SECONDS * 1000),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_SECONDS * 1000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]


def make_server(
    *interceptors: grpc.aio.ServerInterceptor,
    shares_port: bool = False,
    max_connection_age_seconds: float | None = None,
) -> grpc.aio.Server:
    """An asyncio server without services or ports. What its handlers raise reaches clients by `status.to_status`.

    So does what `interceptors` raise, which see a call before its handler does. `shares_port` is for processes that
    listen on one port together, which another holds for them (addresses.reserved).
    A connection of `max_connection_age_seconds`, give or take a tenth, is told to take no new streams; the client opens
    another one, perhaps to another server of the same name, and the streams of the old one go on to their end.
    """
    options = [
        *_COMMON_OPTIONS,
        # Unasked, gRPC lets a second server take over half of the first one's port without a word.
        ("grpc.so_reuseport", int(shares_port)),
        ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_SECONDS * 1000),
    ]
    if max_connection_age_seconds is not None:  # gRPC's default grace for streams is without end
        options.append(("grpc.max_connection_age_ms", round(max_connection_age_seconds * 1000)))
    return grpc.aio.server(interceptors=[StatusInterceptor(), *interceptors], options=options)


def make_channel(
    address: Address, credentials: grpc.ChannelCredentials | None = None, *, server_name: str | None = None
) -> grpc.aio.Channel:
    """A channel to `address` that reconnects by itself, at least every 3 seconds; in plaintext without `credentials`.

    `server_name` is the name that the server's certificate must hold; None takes it from the address.
    """
    options = [
        *_COMMON_OPTIONS,
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1000),
        ("grpc.max_reconnect_backoff_ms", 3000),
        ("grpc.enable_http_proxy", 0),  # an engine link never goes through a proxy meant for the web
    ]
    if server_name is not None:
        options.append(("grpc.ssl_target_name_override", server_name))
    if credentials is None:
        return grpc.aio.insecure_channel(address.target, options=options)
    return grpc.aio.secure_channel(address.target, credentials, options=options)


class StatusInterceptor(grpc.aio.ServerInterceptor):
    """Lets handlers raise RequestError; whatever else escapes them becomes INTERNAL with an id (see `status`)."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        return None if handler is None else wrapped_handler(handler, _answering_once, _answering_many)


def wrapped_handler(
    handler: grpc.RpcMethodHandler[Any, Any],
    wrap_once: Callable[[Callable[..., Awaitable[Any]]], Callable[..., Awaitable[Any]]],
    wrap_many: Callable[[Callable[..., AsyncIterator[Any]]], Callable[..., AsyncIterator[Any]]],
) -> grpc.RpcMethodHandler[Any, Any]:
    """`handler` with another behaviour around its own: one for methods that answer once, one for streams of answers."""
    make = _MAKERS[handler.request_streaming, handler.response_streaming]
    behavior = getattr(handler, make.__name__.removesuffix("_rpc_method_handler"))
    wrap: Callable[..., Any] = wrap_many if handler.response_streaming else wrap_once
    return make(wrap(behavior), handler.request_deserializer, handler.response_serializer)  # type: ignore[no-any-return]


def _answering_once(behavior: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(behavior)
    async def wrapped(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await behavior(request, context)
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            await abort(context, as_request_error(error))

    return wrapped


def _answering_many(behavior: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
    @functools.wraps(behavior)
    async def wrapped(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        try:
            async for response in behavior(request, context):
                yield response
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            await abort(context, as_request_error(error))

    return wrapped


_MAKERS: dict[tuple[bool, bool], Callable[..., Any]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}
