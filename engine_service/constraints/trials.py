"""The process that tries grammars, as the engine sees it: started when first used, replaced when it has died."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import asdict
from typing import Any

import structlog

from engine_service.constraints.limits import TrialLimits
from engine_service.constraints.spec import ConstraintSpec
from engine_service.constraints.token_bytes import TokenBytes
from engine_service.constraints.trial_process import encoded
from service_common.errors import InvalidArgumentError, UnavailableError

_MODULE = "engine_service.constraints.trial_process"
_ENDING_SECONDS = 5.0


class Trials:
    """Tries one grammar after the other. Belongs to one thread, which it blocks."""

    def __init__(self, tokens: TokenBytes, limits: TrialLimits) -> None:
        self._tokens, self._limits = tokens, limits
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, spec: ConstraintSpec) -> str:
        """The constraint's grammar, which compiles within the limits.

        InvalidArgumentError tells what is wrong with it or which limit it broke, UnavailableError that there can be no
        process.
        """
        request = json.dumps({"kind": spec.kind, "text": spec.text}).encode() + b"\n"
        try:
            answer = self._exchange(request)
        except (OSError, EOFError):
            structlog.get_logger(__name__).warning("the process that tries grammars is replaced")
            answer = self._exchange_anew(request)
        if "lark" in answer:
            lark: str = answer["lark"]
            return lark
        limit = answer["error"] if "error" in answer else self._broken_limit(answer["signal"])
        raise InvalidArgumentError(spec.field, spec.text, limit)

    def close(self) -> None:
        """Ends the process."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.communicate(timeout=_ENDING_SECONDS)

    def _exchange_anew(self, request: bytes) -> dict[str, Any]:
        self.close()
        try:
            return self._exchange(request)
        except (OSError, EOFError) as error:
            self.close()
            raise UnavailableError(
                f"the process that tries grammars does not start ({error}); the server's log tells more",
                reason="NO_TRIALS",
                retry_after_seconds=1.0,
            ) from error

    def _exchange(self, request: bytes) -> dict[str, Any]:
        process = self._process or self._start()
        answer: dict[str, Any] = json.loads(_exchanged(process, request))
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        process = self._process = subprocess.Popen(
            (sys.executable, "-P", "-m", _MODULE, json.dumps(asdict(self._limits))),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,  # so that Ctrl-C on a terminal reaches only us
        )
        _exchanged(process, encoded(self._tokens))
        return process

    def _broken_limit(self, number: int) -> str:
        if number == signal.SIGPROF:
            return f"it takes more than {self._limits.cpu_seconds:g} s of processor time to compile"
        if number == signal.SIGSEGV:
            return f"it is nested too deeply: compiling takes more than {self._limits.stack_bytes >> 20} MiB of stack"
        return f"it takes more than {self._limits.memory_bytes >> 20} MiB of memory to compile"


def _exchanged(process: subprocess.Popen[bytes], line: bytes) -> bytes:
    """The line that answers `line`. OSError or EOFError where the process has ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line)
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer.endswith(b"\n"):
        raise EOFError("it ended")
    return answer
