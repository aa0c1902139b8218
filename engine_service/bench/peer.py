"""llama.cpp, through llama-cpp-python: the peer that figures are compared with."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from engine_service.bench.config import PEER_VARIABLE
from engine_service.bench.machine import ROOT
from engine_service.bench.protocol import BenchError

PACKAGE = "llama-cpp-python"
_DESCRIBE = """
import json, llama_cpp
print(json.dumps([llama_cpp.__version__, llama_cpp.llama_print_system_info().decode()]))
"""

# The peer's Python finds our module behind its own packages, which ours must not replace.
_RUN = """
import runpy, sys
sys.path.append(sys.argv.pop(1))
runpy.run_module("engine_service.bench.peer_speed", run_name="__main__", alter_sys=True)
"""
_REMEDY = (
    f"install it natively built by `pip install --no-binary={PACKAGE} {PACKAGE}`, in this environment or "
    f"in that of a Python which {PEER_VARIABLE} names"
)


def peer_build(python: Path) -> dict[str, str]:
    """Version and instruction sets of the llama.cpp of `python`. BenchError, with the remedy, where it has none."""
    try:
        done = subprocess.run([str(python), "-c", _DESCRIBE], check=True, capture_output=True, text=True)
    except (subprocess.CalledProcessError, OSError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        raise BenchError(f"{python} has no llama.cpp ({said[-1] if said else error}): {_REMEDY}") from error
    version, system_info = json.loads(done.stdout.splitlines()[-1])
    return {"version": f"{PACKAGE} {version}" if version else "", "system_info": system_info.strip()}


def check_peer(peer: dict[str, Any], instructions: list[str]) -> None:
    """BenchError where what a ratio stands on is not known, or the build lacks what this machine has.

    `peer` has `version`, `system_info` and `command`; `instructions` are the machine's.
    """
    missing = [name for name in ("version", "system_info", "command") if not peer.get(name)]
    if missing:
        raise BenchError(f"llama.cpp tells no {' and no '.join(missing)}, without which a ratio says nothing: {peer}")
    wanted = ["REPACK", *(["AVX2"] if "avx2" in instructions else [])]
    lacking = [flag for flag in wanted if f"{flag} = 1" not in peer["system_info"]]
    if lacking:
        raise BenchError(
            f"llama.cpp was built without {' and '.join(lacking)} ({peer['system_info']}), so that a ratio would "
            f"flatter us: {_REMEDY}"
        )


def peer_command(python: Path, model: Path, threads: int) -> list[str]:
    """What starts llama.cpp as a side of the bench."""
    return [str(python), "-c", _RUN, str(ROOT), str(model), str(threads)]


def shown_command(model: Path, threads: int) -> str:
    """`peer_command` as reports show it, without this machine's folders."""
    return f"python -m engine_service.bench.peer_speed {model.name} {threads}"
