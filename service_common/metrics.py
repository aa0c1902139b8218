"""Prometheus metrics over HTTP: what both services share. Each service's own metrics.py says what is counted.

A registry belongs to one server and is never the library's global one. No metric or label holds a prompt, an output, or
anything that names a client.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from math import inf
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, NamedTuple
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import structlog
from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    make_wsgi_app,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from service_common.addresses import MAX_PORT, Address, check_bindable, check_exposure, parse_address
from service_common.errors import ConfigError

REQUEST_SECONDS = 5.0  # a client that says and takes nothing for so long is dropped
MAX_CONNECTIONS = 8  # at a time; further ones are turned away

LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
"""Upper bounds in seconds, from a token of a small model to a long answer."""

COUNT_BUCKETS = tuple(float(1 << power) for power in range(18))
"""Upper bounds for counts of tokens and sequences."""


def make_registry() -> CollectorRegistry:
    """A registry that holds what the library knows of this process: memory, CPU, files, garbage collection."""
    # Else each metric has one more series, its moment of creation, which the text format calls a gauge.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


class Figure(NamedTuple):
    """A gauge, or a counter where `name` ends with _total, whose value is read from a snapshot when it is scraped."""

    name: str
    help: str
    read: Callable[[Any], float]


class Figures(Collector):
    """Metrics that somebody counts anyway. They have no value while there is no snapshot."""

    def __init__(self, figures: Sequence[Figure], snapshot: Callable[[], Any | None]) -> None:
        """`snapshot` gives what the figures read, or None; it is called from the threads of the HTTP server."""
        self._figures, self._snapshot = figures, snapshot

    def describe(self) -> Iterable[Metric]:
        """The metrics without values."""
        return [_family(figure) for figure in self._figures]

    def collect(self) -> Iterable[Metric]:
        """The metrics with the values of one snapshot."""
        if (snapshot := self._snapshot()) is None:
            return self.describe()
        families = [_family(figure) for figure in self._figures]
        for family, figure in zip(families, self._figures, strict=True):
            family.add_metric([], figure.read(snapshot))
        return families


class WeightedHistogram(Collector):
    """A histogram that takes many observations of one value at once, which the library's own does not."""

    def __init__(self, name: str, help: str, buckets: Sequence[float], registry: CollectorRegistry) -> None:
        self._name, self._help = name, help
        self._bounds = (*buckets, inf)
        self._counts = [0] * len(self._bounds)
        self._sum = 0.0
        self._lock = threading.Lock()
        registry.register(self)

    def observe(self, value: float, count: int) -> None:
        """`count` observations of `value`."""
        with self._lock:
            self._counts[bisect_left(self._bounds, value)] += count
            self._sum += value * count

    def describe(self) -> Iterable[Metric]:
        """The metric without values."""
        return [HistogramMetricFamily(self._name, self._help)]

    def collect(self) -> Iterable[Metric]:
        """The metric; bucket counts are cumulative."""
        with self._lock:
            counts, total = list(accumulate(self._counts)), self._sum
        bounds = [floatToGoString(bound) for bound in self._bounds]  # type: ignore[no-untyped-call]
        family = HistogramMetricFamily(self._name, self._help)
        family.add_metric([], list(zip(bounds, counts, strict=True)), total)
        return [family]


def metrics_address(text: str | None, option: str, *, insecure: bool) -> Address | None:
    """Reads where metrics are to be served; None for nowhere. ConfigError for what `check_exposure` does not allow."""
    if text is None:
        return None
    address = parse_address(text, option)
    if address.path is not None:
        raise ConfigError(f"{option}: {text!r} is a Unix socket, which Prometheus cannot read; write host:port")
    check_exposure(address, insecure=insecure, remedy="listen on 127.0.0.1, or allow it with --insecure")
    return address


def metrics_addresses(text: str | None, option: str, count: int, *, insecure: bool) -> list[Address]:
    """As `metrics_address`, for so many processes: each has the port after the last one's; empty for nowhere."""
    first = metrics_address(text, option, insecure=insecure)
    if first is None:
        return []
    if first.port == 0:  # each lets the system choose
        return [first] * count
    if first.port + count - 1 > MAX_PORT:
        raise ConfigError(f"{option}: {count} processes need the ports from {first.port} on, up to {MAX_PORT} at most")
    return [replace(first, port=first.port + index) for index in range(count)]


@contextlib.contextmanager
def exposed(registry: CollectorRegistry, address: Address | None) -> Iterator[Address | None]:
    """Serves `registry` at http://ADDRESS/metrics while the block runs; without an address, does nothing.

    Gives the address with its final port. ConfigError when it is taken or cannot be listened on.
    """
    if address is None:
        yield None
        return
    server = _listen(address, registry)
    bound = replace(address, port=server.server_port)
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    structlog.get_logger(__name__).info("metrics served", url=f"http://{bound}/metrics")
    try:
        yield bound
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _family(figure: Figure) -> CounterMetricFamily | GaugeMetricFamily:
    kind = CounterMetricFamily if figure.name.endswith("_total") else GaugeMetricFamily
    return kind(figure.name, figure.help, labels=())


def _listen(address: Address, registry: CollectorRegistry) -> _Server:
    check_bindable(address)
    try:
        server = _Server(address.host, address.port)
    except OSError as error:  # somebody was faster
        raise ConfigError(f"{address.option}: cannot listen on {address}: {error.strerror}") from error
    server.set_app(make_wsgi_app(registry))
    return server


class _Handler(WSGIRequestHandler):
    timeout = REQUEST_SECONDS

    def log_message(self, format: str, *args: object) -> None:
        """Scrapes are not worth a log line."""


class _Server(ThreadingMixIn, WSGIServer):
    """A thread per connection, MAX_CONNECTIONS of them at most."""

    daemon_threads = True

    def __init__(self, host: str, port: int) -> None:
        self.address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Binds without asking the name service for our name, as HTTPServer does, which may take long."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away or said nothing; the standard library would print a traceback."""
        structlog.get_logger(__name__).debug("a scrape failed", exc_info=True)
