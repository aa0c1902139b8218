"""Logs: what others write into them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from service_common.logging import LogFormat, configure_logging


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Puts the process's logging back as it was."""
    root, grpc = logging.getLogger(), logging.getLogger("grpc._cython.cygrpc")
    handlers, level, filters = root.handlers[:], root.level, grpc.filters[:]
    yield
    root.handlers, root.level, grpc.filters = handlers, level, filters
    structlog.reset_defaults()


def test_a_client_that_left_early_is_no_error_in_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    """grpcio's traceback for a status that nobody waits for is left out; its other errors are logged."""
    configure_logging(LogFormat.JSON)
    logger = logging.getLogger("grpc._cython.cygrpc")
    logger.error("ExecuteBatchError raised in core by servicer method [%s]", "/clforge.v1.TokenizerService/Generate")
    logger.error("Unexpected exception in servicer method [%s]", "/x")
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["event"] == "Unexpected exception in servicer method [/x]"
