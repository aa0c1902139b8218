"""The engine process: which parts there are, and how they start and end.

It binds at once and answers health and GetTokenizer while the weights load on the engine thread. OpenCL is imported on
that thread, after first contact has prepared the environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import grpc
import structlog

from clforge.v1.engine_pb2_grpc import add_EngineServiceServicer_to_server
from engine_service.compute.kv_plan import plan_for
from engine_service.config import EngineConfig
from engine_service.constraints.compiler import GrammarCompiler
from engine_service.constraints.token_bytes import TokenBytes
from engine_service.engine_loop import EngineLoop
from engine_service.host import first_contact
from engine_service.metrics import EngineMetrics
from engine_service.models.tensor_table import read_hyperparameters
from engine_service.request_registry import RequestRegistry
from engine_service.served_model import ServedModel
from engine_service.server import SERVICE, EngineServer, Loading, Serving, TokenizerFile
from service_common import lifecycle, rpc
from service_common.addresses import bind, check_exposure, parse_address
from service_common.errors import DeviceError, StartupError
from service_common.gguf_reader import GGUFReader
from service_common.health import Health
from service_common.metrics import exposed, metrics_address
from service_common.security import ServerSecurity
from service_common.special_tokens import SpecialTokens
from service_common.tokenizer_file import tokenizer_file, vocab_sha256

if TYPE_CHECKING:
    from engine_service.compute.weights import Progress
    from engine_service.engine import Engine, EngineEvent
    from engine_service.scheduling.messages import ScheduledStep

_T = TypeVar("_T")

_STDERR = 2
_LOG_PROGRESS_SECONDS = 1.0
_LATE_SECONDS = 60.0  # an engine that is busy with one turn for longer is not called ready
_HEARTBEAT_SECONDS = 1.0
_COMPUTE_NICENESS = 10


async def serve(config: EngineConfig) -> int:
    """Serves until told to stop; returns the exit code. StartupError when the engine cannot start as asked."""
    address = parse_address(config.engine, "--engine")
    security = ServerSecurity.of(config)
    check_exposure(address, insecure=security.may_be_reached)
    scraped_at = metrics_address(config.metrics, "--metrics", insecure=config.insecure)
    with GGUFReader(config.model) as reader:
        process = EngineProcess(config, reader)
        server = rpc.make_server(*security.interceptors)
        add_EngineServiceServicer_to_server(process.server, server)
        process.health.add_to_server(server)
        bound = bind(server, address, security.credentials)
        with exposed(process.metrics.registry, scraped_at), security.kept_fresh():
            await server.start()
            return await process.run(server, str(bound))


class _LoadingStopped(Exception):
    """The process is to end before its model was loaded."""


class EngineProcess:
    """Ties the engine thread, the RPCs and the process's life together. Belongs to the event loop's thread."""

    def __init__(self, config: EngineConfig, reader: GGUFReader) -> None:
        self._config, self._reader = config, reader
        self._hyperparameters = read_hyperparameters(reader)
        self._plan = plan_for(config, reader, self._hyperparameters)
        self._model: ServedModel | None = None
        self._rpc_loop = asyncio.get_running_loop()
        self._loop = EngineLoop(self._load, self._deliver)
        self._shutdown = lifecycle.Shutdown()
        SpecialTokens.from_gguf(reader)  # a file that is wrong is refused before anyone is told of this engine
        data = tokenizer_file(reader)
        self.server = EngineServer(TokenizerFile(data, vocab_sha256(data)), self._loop, Loading())
        self.health = Health(SERVICE)
        vocab_size = self._hyperparameters.vocab_size
        self._grammars = GrammarCompiler(lambda: TokenBytes.from_gguf(reader, vocab_size))
        self.metrics = EngineMetrics(self._loop, lambda: self.health.ready)

    async def run(self, server: grpc.aio.Server, address: str) -> int:
        """Loads, serves, drains; returns the exit code. Raises the StartupError that kept the model from loading."""
        self._loop.start()
        watcher = asyncio.create_task(self._watch(address))
        stderr = os.dup(_STDERR)
        hushing = asyncio.create_task(self._hush_compiler())
        drain_seconds = self._config.drain_seconds
        await lifecycle.serve(server, self.health, self.server, self._shutdown, drain_seconds=drain_seconds)
        watcher.cancel()
        hushing.cancel()
        await asyncio.to_thread(self._loop.close)
        await asyncio.to_thread(self._grammars.close)
        os.dup2(stderr, _STDERR)
        if self._loop.loaded.done() and isinstance(error := self._loop.loaded.exception(), StartupError):
            raise error
        return self._shutdown.exit_code

    async def _hush_compiler(self) -> None:
        """Silences standard error when the process is to end before it has loaded.

        A signal makes LLVM delete the file that it is writing, in PoCL in this very process, and then complain of its
        absence there, without context. The log has told by then why the process ends.
        """
        await self._shutdown.requested()
        if not self._loop.loaded.done():
            _silence_stderr()

    async def _watch(self, address: str) -> None:
        """Announces the engine when it is loaded, then judges its health until its thread ends."""
        try:
            await _resolved(self._loop.loaded)
        except Exception as error:
            code = lifecycle.EXIT_STARTUP if isinstance(error, StartupError) else lifecycle.EXIT_FAILURE
            if code == lifecycle.EXIT_FAILURE:
                structlog.get_logger(__name__).critical("the model could not be loaded", exc_info=error)
            self._shutdown.request("the model could not be loaded", code)
            return
        assert self._model is not None
        self.metrics.model_loaded(self._model)
        registry = RequestRegistry(self._loop, self._model, self.metrics, self._grammars)
        self.server.serving = Serving(self._model, registry)
        self.health.set_ready(True)
        lifecycle.announce_ready(address)
        await self._keep_heartbeat(registry)

    async def _keep_heartbeat(self, registry: RequestRegistry) -> None:
        while not self._loop.stopped.done():
            self.health.set_ready(self._loop.seconds_in_turn() < _LATE_SECONDS)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(_resolved(self._loop.stopped), _HEARTBEAT_SECONDS)
        if self._loop.stopped.exception() is not None:
            registry.fail_all("the engine failed; its log tells more")
            self._shutdown.request("the engine thread failed", lifecycle.EXIT_FAILURE)

    def _load(self) -> Engine:
        """On the engine thread: makes first contact, then loads the model."""
        _give_way()
        contact = first_contact.establish(self._config.device, self._config.cache_dir, self._config.threads)
        from engine_service.loader import load_engine  # imports OpenCL, which first contact must precede

        sha256 = self.server.tokenizer_file.sha256
        try:
            loaded = load_engine(
                self._config, self._reader, self._hyperparameters, self._plan, sha256, self._progress(), self._stepped
            )
        except DeviceError as error:
            raise StartupError(str(error)) from error
        contact.has_loaded()
        self._model = loaded.model
        return loaded.engine

    def _progress(self) -> Progress:
        """Tells callers and the log how far loading is; ends it when the process is to end."""
        log, next_log = structlog.get_logger(__name__), time.monotonic()

        def progress(done_bytes: int, total_bytes: int) -> None:
            nonlocal next_log
            if self._loop.is_closing:
                raise _LoadingStopped
            self.server.loading.done_bytes, self.server.loading.total_bytes = done_bytes, total_bytes
            if time.monotonic() >= next_log:
                log.info("loading weights", done_bytes=done_bytes, total_bytes=total_bytes)
                next_log = time.monotonic() + _LOG_PROGRESS_SECONDS

        return progress

    def _deliver(self, events: Sequence[EngineEvent]) -> None:
        """On the engine thread: hands a step's events to the event loop."""
        serving = self.server.serving
        assert serving is not None, "events come of requests, and those of a served model"
        with contextlib.suppress(RuntimeError):  # the event loop has ended: nobody is left to tell
            self._rpc_loop.call_soon_threadsafe(serving.registry.deliver, events)
        self.server.load_feed.changed()

    def _stepped(self, step: ScheduledStep) -> None:
        """On the engine thread: a step has run."""
        self.metrics.step_done(step)
        self.server.load_feed.changed()


def _give_way() -> None:
    """Lets who answers callers have a CPU before this thread and those that it will start, the driver's workers.

    Compute keeps all CPUs busy. What the event loops do between two awaits is short, and among equals each such stretch
    would wait for its turn: refusals under overload took seven times as long. Only Linux has priorities per thread.
    """
    if sys.platform == "linux":
        os.nice(_COMPUTE_NICENESS)


def _silence_stderr() -> None:
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), _STDERR)


async def _resolved(future: Future[_T]) -> _T:
    """The result of a future of the engine thread. Giving up on it leaves the future alone, and asyncio silent about an
    error that nobody waited for."""
    wrapped = asyncio.wrap_future(future)
    wrapped.add_done_callback(lambda done: done.cancelled() or done.exception())
    return await asyncio.shield(wrapped)
