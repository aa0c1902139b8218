"""llama.cpp, built natively on this machine through llama-cpp-python: the peer that figures are compared with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

VARIABLE = "LLAMA_CPP_PYTHON"
_VENV = Path(__file__).parent.parent / "build" / "llama.cpp"
_DESCRIBE = """
import json, llama_cpp
print(json.dumps([llama_cpp.__version__, llama_cpp.llama_print_system_info().decode()]))
"""


def peer_python() -> Path:
    """A Python that can import llama_cpp: the one that LLAMA_CPP_PYTHON names, or one made here once (ten minutes)."""
    if VARIABLE in os.environ:
        return Path(os.environ[VARIABLE])
    python = _VENV / "bin" / "python"
    if not (_VENV / ".installed").exists():
        print(f"building llama.cpp in {_VENV} (once; about ten minutes)", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(_VENV)], check=True, stdout=sys.stderr)
        packages = ["numpy", "gguf", "llama-cpp-python"]
        command = [str(python), "-m", "pip", "install", "--no-binary=llama-cpp-python", *packages]
        subprocess.run(command, check=True, stdout=sys.stderr)
        (_VENV / ".installed").touch()
    return python


def peer_version() -> dict[str, str]:
    """Its version, and the instruction sets it was built for."""
    done = subprocess.run([str(peer_python()), "-c", _DESCRIBE], check=True, capture_output=True, text=True)
    version, system_info = json.loads(done.stdout.splitlines()[-1])
    return {"version": f"llama-cpp-python {version}", "system_info": system_info}
