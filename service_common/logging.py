"""Logs: one event a line on standard error, as JSON or, on a terminal, for the eye. Standard output belongs to results.

No log line holds a prompt or an output: events name requests by id and count tokens. Tracebacks come without local
variables, since those hold text.
"""

from __future__ import annotations

import logging
import sys
from enum import StrEnum

import structlog
from structlog.typing import Processor

_GRPC_LOGGER = "grpc._cython.cygrpc"


class LogFormat(StrEnum):
    """How a log line looks."""

    AUTO = "auto"
    CONSOLE = "console"
    JSON = "json"


class LogLevel(StrEnum):
    """The least severe events that are logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def configure_logging(log_format: LogFormat = LogFormat.AUTO, level: LogLevel = LogLevel.INFO) -> None:
    """Sends structlog's and the standard library's events to standard error. Called once per process, on start.

    `AUTO` is console on a terminal and JSON elsewhere.
    """
    as_json = log_format is LogFormat.JSON or (log_format is LogFormat.AUTO and not sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    logging.getLogger(_GRPC_LOGGER).addFilter(_is_not_about_a_client_that_left)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=_renderers(as_json)))
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)


def _is_not_about_a_client_that_left(record: logging.LogRecord) -> bool:
    """False for the error with a traceback that grpcio logs when a client is gone before its RPC's status was sent."""
    return not record.getMessage().startswith("ExecuteBatchError raised in core by servicer method")


def _renderers(as_json: bool) -> list[Processor]:
    remove_meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    if as_json:
        return [remove_meta, structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    return [remove_meta, structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
