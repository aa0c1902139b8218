"""Two processes, one with a CPU thread and one with two, for what needs a device. Imports no OpenCL itself."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context

import structlog

from engine_service.host.first_contact import default_cache_dir, prepare_environment

THREADS = (1, 2)


@contextmanager
def pools() -> Iterator[dict[int, ProcessPoolExecutor]]:
    """A pool of one process by its number of CPU threads; what has not begun at the end of the block is dropped."""
    with ExitStack() as stack:
        made = {}
        for threads in THREADS:
            made[threads] = ProcessPoolExecutor(1, get_context("spawn"), _prepare, (threads,))
            stack.callback(made[threads].shutdown, cancel_futures=True)
        yield made


def _prepare(threads: int) -> None:
    """The number of threads is fixed when OpenCL is first used."""
    prepare_environment(default_cache_dir(), threads)
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
