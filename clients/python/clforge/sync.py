"""The client without asyncio: the same methods, which block, and plain iterators.

with Client("127.0.0.1:50051") as client:
    for event in client.generate("Once upon a time", max_tokens=50):
        if isinstance(event, Delta):
            print(event.text, end="")

All of it runs the asynchronous client on a thread with an event loop, which all sync clients of a process share. Any
thread may use a client. Where an event loop runs already, use `clforge.Client`: these methods would block it.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

import clforge.client
import clforge.session
from clforge.background_loop import BackgroundLoop
from clforge.events import Event

_P = ParamSpec("_P")
_R = TypeVar("_R")
_S = TypeVar("_S")
_A = TypeVar("_A")


class _Blocking(Generic[_A]):
    """Wraps an asynchronous object; its loop is there between `__enter__` and `__exit__`."""

    _asynchronous: _A
    _running: BackgroundLoop | None = None

    @property
    def _loop(self) -> BackgroundLoop:
        if self._running is None:
            name = type(self).__name__.lower()
            raise RuntimeError(f"the {name} is not open; use it in a with statement, as: with Client(target) as client")
        return self._running


def _like(
    _: Callable[Concatenate[Any, _P], None],
) -> Callable[[Callable[..., None]], Callable[Concatenate[Any, _P], None]]:
    """Gives an `__init__` the parameters of another one."""
    return lambda function: function


def _same(
    method: Callable[Concatenate[_A, _P], _R], become: Callable[[BackgroundLoop, _R], _S]
) -> Callable[Concatenate[_Blocking[_A], _P], _S]:
    """The asynchronous object's method, its parameters and documentation, with another result."""

    @functools.wraps(method)
    def call(self: _Blocking[_A], /, *args: _P.args, **kwargs: _P.kwargs) -> _S:
        return become(self._loop, method(self._asynchronous, *args, **kwargs))

    return call


def _wait(loop: BackgroundLoop, work: Coroutine[Any, Any, _R]) -> _R:
    return loop.run(work)


def _iterate(loop: BackgroundLoop, events: AsyncGenerator[_R, None]) -> Generator[_R, None, None]:
    """The events, or loads, by a plain iterator. Leaving the loop cancels the request at once."""

    async def following() -> _R | None:
        return await anext(events, None)

    async def close() -> None:
        await events.aclose()

    try:
        while (event := loop.run(following())) is not None:
            yield event
    finally:
        if not loop.is_closed:
            loop.run(close())


class Request:
    """One request of a session: iterate over it, once, for its events. Leaving the loop cancels it."""

    def __init__(self, loop: BackgroundLoop, request: clforge.session.Request) -> None:
        self._loop, self._request = loop, request

    @property
    def request_id(self) -> int:
        """Its number on the stream."""
        return self._request.request_id

    def cancel(self) -> None:
        """Asks the server to end the request; its events then end with Finished(CANCELLED), unless it ended before."""

        async def cancel() -> None:
            self._request.cancel()

        self._loop.run(cancel())

    def __iter__(self) -> Iterator[Event]:
        return _iterate(self._loop, self._request.events())


def _request(loop: BackgroundLoop, work: Coroutine[Any, Any, clforge.session.Request]) -> Request:
    return Request(loop, loop.run(work))


class Session(_Blocking[clforge.session.Session]):
    """Many requests on one stream; from `Client.session`. Leaving the `with` block cancels those still running.

    Any number of threads may use it. What `clforge.Session` says of a stream that ends early holds here too.
    """

    def __init__(self, loop: BackgroundLoop, session: clforge.session.Session) -> None:
        self._asynchronous, self._given = session, loop

    def __enter__(self) -> Self:
        self._given.run(self._asynchronous.__aenter__())
        self._running = self._given
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.run(self._asynchronous.__aexit__(kind, error, trace))
        self._running = None

    generate = _same(clforge.session.Session.generate, _iterate)
    submit = _same(clforge.session.Session.submit, _request)


class Client(_Blocking[clforge.client.Client]):
    """`clforge.Client`, with its parameters and methods, for use as `with Client(…) as client`."""

    @_like(clforge.client.Client.__init__)
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._asynchronous = clforge.client.Client(*args, **kwargs)

    def __enter__(self) -> Self:
        loop = BackgroundLoop.acquire()
        loop.run(self._asynchronous.__aenter__())
        self._running = loop
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        loop, self._running = self._loop, None
        loop.run(self._asynchronous.__aexit__(kind, error, trace))
        loop.release()

    @property
    def target(self) -> str:
        """The server's address."""
        return self._asynchronous.target

    generate = _same(clforge.client.Client.generate, _iterate)
    chat = _same(clforge.client.Client.chat, _iterate)
    complete = _same(clforge.client.Client.complete, _wait)
    render_chat = _same(clforge.client.Client.render_chat, _wait)
    encode = _same(clforge.client.Client.encode, _wait)
    encode_batch = _same(clforge.client.Client.encode_batch, _wait)
    decode = _same(clforge.client.Client.decode, _wait)
    decode_batch = _same(clforge.client.Client.decode_batch, _wait)
    model_info = _same(clforge.client.Client.model_info, _wait)
    wait_for_ready = _same(clforge.client.Client.wait_for_ready, _wait)
    list_requests = _same(clforge.client.Client.list_requests, _wait)
    cancel_request = _same(clforge.client.Client.cancel_request, _wait)
    load = _same(clforge.client.Client.load, _wait)
    watch_load = _same(clforge.client.Client.watch_load, _iterate)
    session = _same(clforge.client.Client.session, Session)
