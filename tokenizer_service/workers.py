"""Several processes on one TCP port, and the one that looks after them.

The kernel hands each connection to one of the workers (SO_REUSEPORT), which keeps it. Their parent holds the port, so
that no other server can join in, starts one worker and, when that can serve, the others; once all can, the service is
ready: each worker's health says so from then on for itself, and `ready ADDRESS` is printed once.

A worker that ends by itself costs the requests that it served, and is replaced; more than MAX_REPLACEMENTS within
REPLACEMENT_SECONDS, or one that cannot start as asked, end the service with a code that is not 0. A signal to the
parent drains all workers.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import structlog

from service_common.addresses import Address, check_bindable, check_exposure, parse_address, reserved
from service_common.child import KILL_SECONDS, Child, describe_exit
from service_common.lifecycle import EXIT_FAILURE, EXIT_STARTUP, FLUSH_SECONDS, Shutdown, announce_ready
from service_common.metrics import metrics_addresses
from service_common.options import to_argv
from service_common.security import ServerSecurity
from tokenizer_service.config import TokenizerConfig

MAX_REPLACEMENTS = 5
REPLACEMENT_SECONDS = 60.0

_WORKER = "tokenizer_service.worker"
_DRAINED = (0, -signal.SIGTERM)  # a worker may be told to end before it has learnt how


async def serve(config: TokenizerConfig) -> int:
    """Serves until a signal or the end of too many workers; returns the exit code.

    ConfigError for addresses that cannot be used.
    """
    address = parse_address(config.grpc, "--grpc")
    check_exposure(address, insecure=ServerSecurity.of(config).may_be_reached)
    scraped_at = metrics_addresses(config.metrics, "--metrics", config.workers, insecure=config.insecure)
    for each in scraped_at:
        check_bindable(each)
    shutdown = Shutdown()
    with shutdown.on_signals(), reserved(address) as held:
        workers = Workers(_worker_configs(config, held, scraped_at), str(held), shutdown)
        looking_after = asyncio.create_task(workers.look_after())
        hurrying = asyncio.create_task(workers.hurry())
        await shutdown.requested()
        had_to_kill = await workers.stop(config.drain_seconds + FLUSH_SECONDS + KILL_SECONDS / 2)
        hurrying.cancel()
        await looking_after
    return EXIT_FAILURE if had_to_kill and shutdown.exit_code == 0 else shutdown.exit_code


class Workers:
    """The children, one for each configuration. Belongs to the event loop of the main thread."""

    def __init__(self, configs: Sequence[TokenizerConfig], address: str, shutdown: Shutdown) -> None:
        """`address` is announced when all can serve; `shutdown` is asked for when they cannot be kept up."""
        self._configs, self._address, self._shutdown = configs, address, shutdown
        self._children: dict[int, Child] = {}
        self._up: set[int] = set()
        self._is_open = self._stopping = False
        self._replaced: deque[float] = deque(maxlen=MAX_REPLACEMENTS)
        self._first_up = asyncio.Event()

    async def look_after(self) -> None:
        """Starts the workers, and others in place of those that end, until `stop`."""
        await asyncio.gather(*(self._keep(index) for index in range(len(self._configs))))

    async def hurry(self) -> None:
        """Passes a second wish to end on."""
        await self._shutdown.hurried()
        for child in self._children.values():
            child.interrupt()

    async def stop(self, seconds: float) -> bool:
        """Drains all workers and returns when they have ended: whether one had to be killed, after `seconds`."""
        self._stopping = True
        self._first_up.set()
        by_themselves = await asyncio.gather(*(child.stop(seconds) for child in self._children.values()))
        return not all(by_themselves)

    async def _keep(self, index: int) -> None:
        # One alone tells what is wrong with an option or the model, as all of them would.
        if index > 0:
            await self._first_up.wait()
        while not self._stopping:
            child = await Child.start("worker", _WORKER, to_argv(self._configs[index]), listens=True)
            if self._stopping:
                await child.stop(0)
                return
            self._children[index] = child
            announced = asyncio.create_task(self._announced(index, child))
            code = await child.ended()
            announced.cancel()
            self._up.discard(index)
            self._judge(child, code)

    async def _announced(self, index: int, child: Child) -> None:
        await child.announced()
        self._up.add(index)
        self._first_up.set()
        if self._is_open:
            child.tell("open")
        elif len(self._up) == len(self._configs):
            self._is_open = True
            for each in self._children.values():
                each.tell("open")
            announce_ready(self._address)

    def _judge(self, child: Child, code: int) -> None:
        """Decides what the end of a worker means: that another takes its place, or that the service ends."""
        if self._stopping:
            if code not in _DRAINED:
                self._shutdown.exit_code = max(self._shutdown.exit_code, EXIT_FAILURE)
            return
        log = structlog.get_logger(__name__).bind(worker=child.pid, how=describe_exit(code))
        now = time.monotonic()
        if code == EXIT_STARTUP:  # it has said why
            self._give_up("a worker cannot serve as asked", EXIT_STARTUP)
        elif len(self._replaced) == MAX_REPLACEMENTS and now - self._replaced[0] < REPLACEMENT_SECONDS:
            log.critical("a worker ended, as too many have", num=MAX_REPLACEMENTS, seconds=REPLACEMENT_SECONDS)
            self._give_up("too many workers ended", EXIT_FAILURE)
        else:
            self._replaced.append(now)
            log.error("a worker ended, and with it the requests that it served; another takes its place")

    def _give_up(self, reason: str, exit_code: int) -> None:
        self._stopping = True
        self._shutdown.request(reason, exit_code)


def _worker_configs(config: TokenizerConfig, held: Address, scraped_at: Sequence[Address]) -> list[TokenizerConfig]:
    """Each worker's own options."""
    addresses: Sequence[Address | None] = scraped_at or [None] * config.workers
    return [
        replace(config, workers=1, grpc=str(held), metrics=None if address is None else str(address))
        for address in addresses
    ]
