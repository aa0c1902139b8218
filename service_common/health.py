"""grpc.health.v1 for one service, and reflection.

"" serves while the process lives, so a liveness probe never depends on load. The service's full name serves while
requests can be served: not while the model loads, not while the process drains.

grpcio-health-checking's own asyncio servicer (1.80) is not used: when one of two watchers of a name leaves, the other
hears nothing more, and a watcher that does not read blocks every change of status.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from service_common.errors import NotFoundError

_Status = health_pb2.HealthCheckResponse
_Context = grpc.aio.ServicerContext[Any, Any]


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # generated without types
    """Answers Check and Watch. Must be used from the event loop's thread."""

    def __init__(self, service: str) -> None:
        """`service` is a full name such as "clforge.v1.EngineService"; it starts as not ready."""
        self._service = service
        self._ready = False
        self._draining = False
        self._changed = asyncio.Event()

    @property
    def ready(self) -> bool:
        """Whether the service's name is SERVING."""
        return self._ready and not self._draining

    def set_ready(self, ready: bool) -> None:
        """Says whether requests can be served. Has no effect on the answers once `drain` was called."""
        self._ready = ready
        self._wake_watchers()

    def drain(self) -> None:
        """Makes the service NOT_SERVING for good."""
        self._draining = True
        self._wake_watchers()

    def add_to_server(self, server: grpc.aio.Server, services: Iterable[str] = ()) -> None:
        """Registers this servicer and reflection of itself, the service, and further `services` by full name."""
        health_pb2_grpc.add_HealthServicer_to_server(self, server)
        names = (self._service, *services, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)

    async def Check(self, request: health_pb2.HealthCheckRequest, context: _Context) -> health_pb2.HealthCheckResponse:
        """The status now; NOT_FOUND for a service that this process does not have."""
        status = self._status(request.service)
        if status == _Status.SERVICE_UNKNOWN:
            raise NotFoundError(f"no service {request.service!r} here; there is {self._service!r}", reason="NO_SERVICE")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: _Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """The status now and whenever it has changed; a slow reader sees the latest one."""
        sent = None
        while True:
            changed = self._changed
            status = self._status(request.service)
            if status != sent:
                yield health_pb2.HealthCheckResponse(status=status)
                sent = status
            await changed.wait()

    def _status(self, service: str) -> int:
        if service == "":
            return int(_Status.SERVING)
        if service != self._service:
            return int(_Status.SERVICE_UNKNOWN)
        return int(_Status.SERVING if self.ready else _Status.NOT_SERVING)

    def _wake_watchers(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
