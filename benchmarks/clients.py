"""What each SDK makes of many requests on one stream, from an engine that has its tokens ready.

The tokenizer service, between both, works beside the client: where the two have too few CPUs, processor time per token
tells more than the rate.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from benchmarks.server import Server
from engine_service.bench.machine import ROOT
from engine_service.bench.protocol import BenchError
from service_common.options import child_environment

_GO = ROOT / "clients" / "go"
_SECONDS = 300.0


class ClientLoad(NamedTuple):
    """How many requests run at once, and how long each answer is."""

    num_requests: int = 256
    max_tokens: int = 512


_LOAD = ClientLoad()


def measure(model: Path, load: ClientLoad = _LOAD) -> dict[str, float]:
    """Tokens/s and the client's processor time per token, by SDK; Go's where go is installed."""
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        commands = {"python": [sys.executable, "-m", "benchmarks.throughput"]}
        if shutil.which("go"):
            commands["go"] = _build_go(Path(folder))
        engine_address = f"unix:{folder}/engine"
        for sdk, command in commands.items():
            with (
                Server.stub_engine(engine_address, model),
                Server.tokenizer(f"unix:{folder}/door", engine_address) as tokenizer,
            ):
                busy = tokenizer.cpu_seconds()
                result = _run([*command, tokenizer.address, str(load.num_requests), str(load.max_tokens)])
                served = tokenizer.cpu_seconds() - busy
            figures |= {
                f"{sdk}_tokens_per_s": result["tokens"] / result["seconds"],
                f"{sdk}_cpu_us_per_token": result["cpu_seconds"] / result["tokens"] * 1e6,
                f"{sdk}_tokenizer_cpu_us_per_token": served / result["tokens"] * 1e6,
            }
    return figures


def _build_go(folder: Path) -> list[str]:
    program = folder / "throughput"
    subprocess.run(["go", "build", "-o", str(program), "./throughput"], cwd=_GO, check=True, timeout=_SECONDS)
    return [str(program)]


def _run(command: list[str]) -> dict[str, float]:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=child_environment(), timeout=_SECONDS, check=False
    )
    if done.returncode:
        raise BenchError(f"{command[0]} ended with exit code {done.returncode}; what it said stands above")
    result: dict[str, float] = json.loads(done.stdout)
    return result
