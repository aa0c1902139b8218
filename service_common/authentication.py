"""Who calls: an API key in the metadata of each call, `authorization: Bearer KEY`.

Every method needs one but grpc.health.v1, which probes and balancers ask, and which tells nothing but whether the
service serves. Reflection needs one like the rest. The file of keys is read again when it changes: calls of a key that
is gone from it, or whose time is over, end with UNAUTHENTICATED, as new ones do.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health

from service_common.api_keys import ApiKey, find_key, read_keys
from service_common.callers import Caller
from service_common.errors import ConfigError, UnauthenticatedError
from service_common.private_files import stamp
from service_common.rpc import wrapped_handler
from service_common.status import abort

CHECK_SECONDS = 1.0  # how long a revoked key may go on

_OPEN_TO_ALL = f"/{health.SERVICE_NAME}/"
_SCHEME = "bearer "
_HOW = "send it as metadata: authorization: Bearer KEY"

_Context = grpc.aio.ServicerContext[Any, Any]

_caller: contextvars.ContextVar[Caller] = contextvars.ContextVar("caller")


def current_caller() -> Caller:
    """Who makes the call that is being served; where no keys are asked for, nobody in particular."""
    return _caller.get(None) or Caller()


class Authentication(grpc.aio.ServerInterceptor):
    """Lets callers with a key in, and tells handlers who they are (`current_caller`). Belongs to the event loop."""

    def __init__(self, path: Path) -> None:
        """`path` is the file of keys (api_keys.py). ConfigError where it cannot be used, or holds no key.

        Later it may: then all are revoked.
        """
        self._path = path
        self._seen = stamp(path)
        self._keys: Mapping[str, ApiKey] = read_keys(path)
        if not self._keys:
            raise ConfigError(f"--api-keys: {path} holds no key; make one with: clforge keys NAME --file {path}")
        self._callers: dict[str, Caller] = {}
        self._calls: dict[Caller, dict[asyncio.Task[Any], _Context]] = {}
        self._endings: set[asyncio.Task[None]] = set()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        if handler_call_details.method.startswith(_OPEN_TO_ALL):
            return await continuation(handler_call_details)
        try:
            caller = self._authenticate(dict(handler_call_details.invocation_metadata))
        except UnauthenticatedError as error:
            return _refusing(error)
        handler = await continuation(handler_call_details)
        return None if handler is None else wrapped_handler(handler, self._once(caller), self._many(caller))

    async def watch(self) -> None:
        """Follows the file and the clock, until cancelled."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            self.refresh()

    def refresh(self) -> None:
        """Reads the file again if it has changed, and ends the calls of keys that are good no more.

        A file that cannot be used is logged, and the keys stay as they were.
        """
        found = stamp(self._path)
        if found != self._seen:
            self._seen = found
            self._read()
        for caller in list(self._callers.values()):
            key = self._keys.get(caller.name)
            if key is None or key.sha256 != caller.sha256 or key.is_expired():
                self._revoke(caller)
            else:
                caller.limits = key.limits

    def _read(self) -> None:
        log = structlog.get_logger(__name__)
        try:
            self._keys = read_keys(self._path)
            log.info("API keys read", num_keys=len(self._keys))
        except ConfigError as error:
            log.error("the API keys stay as they were", error=str(error))

    def _authenticate(self, metadata: Mapping[str, Any]) -> Caller:
        value = metadata.get("authorization")
        if not isinstance(value, str) or not value.lower().startswith(_SCHEME):
            raise UnauthenticatedError(f"an API key is needed; {_HOW}", reason="NO_API_KEY")
        key = find_key(self._keys, value[len(_SCHEME) :].strip())
        if key is None:
            raise UnauthenticatedError("the API key is not known here, or was revoked", reason="UNKNOWN_API_KEY")
        if key.is_expired():
            raise UnauthenticatedError(f"the API key {key.name!r} expired at {key.expires}", reason="EXPIRED_API_KEY")
        return self._callers.setdefault(key.name, Caller(key.name, key.sha256, key.limits))

    def _revoke(self, caller: Caller) -> None:
        calls = self._calls.pop(caller, {})
        structlog.get_logger(__name__).warning("API key revoked or expired", key=caller.name, num_calls=len(calls))
        del self._callers[caller.name]
        for task, context in calls.items():
            ending = asyncio.create_task(_end_call(task, context))
            self._endings.add(ending)
            ending.add_done_callback(self._endings.discard)

    @contextlib.contextmanager
    def _call(self, caller: Caller, context: _Context) -> Iterator[None]:
        """The life of a call, which is a task; a revocation ends it.

        UnauthenticatedError where one came first: between headers and request a client may take its time.
        """
        if self._callers.get(caller.name) is not caller:
            raise _revoked()
        task = asyncio.current_task()
        assert task is not None
        calls = self._calls.setdefault(caller, {})
        calls[task] = context
        _caller.set(caller)
        try:
            yield
        finally:
            del calls[task]
            if not calls and self._calls.get(caller) is calls:
                del self._calls[caller]

    def _once(self, caller: Caller) -> Callable[[Callable[..., Awaitable[Any]]], Callable[..., Awaitable[Any]]]:
        def wrap(behavior: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
            async def wrapped(request: Any, context: Any) -> Any:
                with self._call(caller, context):
                    return await behavior(request, context)

            return wrapped

        return wrap

    def _many(self, caller: Caller) -> Callable[[Callable[..., AsyncIterator[Any]]], Callable[..., AsyncIterator[Any]]]:
        def wrap(behavior: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
            async def wrapped(request: Any, context: Any) -> AsyncIterator[Any]:
                with self._call(caller, context):
                    async for response in behavior(request, context):
                        yield response

            return wrapped

        return wrap


async def _end_call(task: asyncio.Task[Any], context: _Context) -> None:
    """Cancels a call, and tells its client why: a handler that waits for a slow reader could not say it any more."""
    task.cancel()
    await asyncio.wait([task])
    with contextlib.suppress(Exception):  # abort always raises; the client may be gone, or have been told all by then
        await abort(context, _revoked())


def _revoked() -> UnauthenticatedError:
    return UnauthenticatedError("the API key was revoked, or expired", reason="REVOKED_API_KEY")


def _refusing(error: UnauthenticatedError) -> grpc.RpcMethodHandler[Any, Any]:
    """Refuses at once, whether the client streams or not, and whether there is such a method or not."""

    async def refuse(_requests: Any, _context: Any) -> AsyncIterator[bytes]:
        raise error
        yield b""

    return grpc.stream_stream_rpc_method_handler(refuse)
