"""Metrics over HTTP: exposition, the address rules, and its own kinds of metric."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.parser import text_string_to_metric_families

from service_common.addresses import parse_address
from service_common.errors import ConfigError
from service_common.metrics import (
    MAX_CONNECTIONS,
    Figure,
    Figures,
    WeightedHistogram,
    exposed,
    make_registry,
    metrics_address,
)

LOCAL = parse_address("127.0.0.1:0", "--metrics")


def scraped(address: object) -> str:
    """What Prometheus would read."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as response:
        return str(response.read().decode())


@contextlib.contextmanager
def idle_connections(port: int, count: int) -> Iterator[list[socket.socket]]:
    """Clients that connect and say nothing."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(count)]


def test_registry_is_served_and_parses() -> None:
    """What comes over HTTP is the text format, with memory, CPU and collector of this process in it."""
    with exposed(make_registry(), LOCAL) as address:
        families = {family.name for family in text_string_to_metric_families(scraped(address))}
    assert {"process_resident_memory_bytes", "process_cpu_seconds", "python_info", "python_gc_collections"} <= families
    assert not [name for name in families if name.endswith("_created")]


def test_end_of_the_block_closes_the_port() -> None:
    """The thread ends and the port is free for the next server, although somebody is still connected."""
    with exposed(make_registry(), LOCAL) as address:
        assert address is not None
        with idle_connections(address.port, 1):
            scraped(address)
    assert not [thread for thread in threading.enumerate() if thread.name == "metrics"]
    with exposed(make_registry(), address) as again:
        assert again == address


def test_without_an_address_nothing_is_served() -> None:
    """Metrics are off unless asked for."""
    assert metrics_address(None, "--metrics", insecure=False) is None
    with exposed(make_registry(), None) as address:
        assert address is None
    assert not [thread for thread in threading.enumerate() if thread.name == "metrics"]


def test_registries_are_apart() -> None:
    """Two servers in one process share no metric, so that nothing is registered twice."""
    assert make_registry() is not make_registry()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0.0.0.0:9090", ["--metrics", "0.0.0.0:9090", "--insecure"]),
        ("unix:/run/x", ["--metrics", "unix:/run/x", "host:port"]),
        ("9090", ["--metrics", "'9090'", "host:port"]),
    ],
)
def test_address_that_must_not_be_is_refused(text: str, words: list[str]) -> None:
    """Beyond this machine only with --insecure (D14), and only where Prometheus can read."""
    with pytest.raises(ConfigError) as caught:
        metrics_address(text, "--metrics", insecure=False)
    assert [word for word in words if word not in str(caught.value)] == []
    assert text != "0.0.0.0:9090" or metrics_address(text, "--metrics", insecure=True)


def test_taken_port_is_a_config_error() -> None:
    """It names option and address."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with (
            pytest.raises(ConfigError, match=f"--metrics: address already in use: {address}"),
            exposed(make_registry(), parse_address(address, "--metrics")),
        ):
            pass


def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that say nothing are dropped after a while; as long as they fill all places others are turned away."""
    monkeypatch.setattr("service_common.metrics._Handler.timeout", 0.2)
    with exposed(make_registry(), LOCAL) as address:
        assert address is not None
        num_threads = threading.active_count()
        with idle_connections(address.port, MAX_CONNECTIONS + 5) as sockets:
            turned_away = sockets[-1]
            turned_away.settimeout(5)
            assert turned_away.recv(1) == b""
            assert threading.active_count() <= num_threads + MAX_CONNECTIONS
            deadline = time.monotonic() + 5
            while threading.active_count() > num_threads:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert "process_cpu" in scraped(address)


def test_weighted_histogram_is_the_librarys_with_repetition() -> None:
    """n observations at once give the samples that n single ones give."""
    plain, weighted = CollectorRegistry(), CollectorRegistry()
    one = Histogram("x", "help", buckets=(1, 2.5), registry=plain)
    many = WeightedHistogram("x", "help", (1, 2.5), weighted)
    for value, count in ((0.5, 3), (1, 2), (2.0, 1), (7.0, 4), (2.0, 0)):
        many.observe(value, count)
        for _ in range(count):
            one.observe(value)

    def samples(registry: CollectorRegistry) -> set[tuple[str, str, float]]:
        found = (sample for family in registry.collect() for sample in family.samples)
        return {(s.name, s.labels.get("le", ""), s.value) for s in found if not s.name.endswith("_created")}

    assert samples(weighted) == samples(plain)


def test_figures_are_read_at_the_scrape() -> None:
    """Gauges and counters come from the snapshot of that moment; without one there are no samples."""

    @dataclass
    class Snapshot:
        load: float

    snapshot: Snapshot | None = None
    registry = CollectorRegistry()
    figures = (Figure("load", "now", lambda s: s.load), Figure("work_total", "ever", lambda s: 2 * s.load))
    registry.register(Figures(figures, lambda: snapshot))
    assert registry.get_sample_value("load") is None
    snapshot = Snapshot(3.0)
    assert (registry.get_sample_value("load"), registry.get_sample_value("work_total")) == (3.0, 6.0)
    with pytest.raises(ValueError, match="Duplicated"):
        registry.register(Figures(figures, lambda: snapshot))
