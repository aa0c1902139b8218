"""llama.cpp, built natively on this machine: as a library for Python, and as the server of the same sources."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from engine_service.bench.config import named_peer_python
from engine_service.bench.machine import ROOT
from engine_service.bench.peer import PACKAGE
from engine_service.bench.protocol import BenchError

SERVER_VARIABLE = "LLAMA_SERVER"
_VENV = ROOT / "build" / "llama.cpp"
_SERVER = ROOT / "build" / "llama-server"
_SERVER_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DGGML_NATIVE=ON",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
)


def peer_python() -> Path:
    """A Python that can import llama_cpp: the one that LLAMA_CPP_PYTHON names, or one made here once (ten minutes).

    BenchError where it cannot be made.
    """
    if (named := named_peer_python()) is not None:
        return named
    python = _VENV / "bin" / "python"
    if not (_VENV / ".installed").exists():
        print(f"building llama.cpp in {_VENV} (once; about ten minutes)", file=sys.stderr)
        _run([sys.executable, "-m", "venv", str(_VENV)])
        _run([str(python), "-m", "pip", "install", f"--no-binary={PACKAGE}", "numpy", "gguf", PACKAGE])
        (_VENV / ".installed").touch()
    return python


def llama_server(version: str) -> Path:
    """llama-server: the one that LLAMA_SERVER names, or one built here once from the sources of llama-cpp-python.

    `version` is the package's. BenchError where it cannot be built.
    """
    if (named := os.environ.get(SERVER_VARIABLE)) is not None:
        return Path(named)
    binary = _SERVER / "build" / "bin" / "llama-server"
    if not binary.exists():
        print(f"building llama-server {version} in {_SERVER} (once; about ten minutes)", file=sys.stderr)
        _build_server(_sources(version))
    return binary


def _sources(version: str) -> Path:
    """llama.cpp's tree, unpacked from the package's source archive."""
    folder = _SERVER / "source"
    requirement = f"{PACKAGE}=={version}"
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", f"--no-binary={PACKAGE}", "--dest", str(folder)]
    tree = folder / f"llama_cpp_python-{version}"
    if not tree.exists():
        _run([*pip, requirement])
        with tarfile.open(folder / f"{tree.name}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
    sources = tree / "vendor" / "llama.cpp"
    if not (sources / "tools" / "server").is_dir():
        raise BenchError(f"{requirement} comes without the sources of llama-server: name one by {SERVER_VARIABLE}")
    return sources


def _build_server(sources: Path) -> None:
    venv, folder = _SERVER / "venv", _SERVER / "build"
    if not (venv / "bin" / "ninja").exists():
        _run([sys.executable, "-m", "venv", str(venv)])
        _run([str(venv / "bin" / "python"), "-m", "pip", "install", "cmake", "ninja"])
    environment = {**os.environ, "PATH": f"{venv / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"}
    cmake = str(venv / "bin" / "cmake")
    _run([cmake, "-G", "Ninja", "-S", str(sources), "-B", str(folder), *_SERVER_OPTIONS], environment)
    _run([cmake, "--build", str(folder), "--target", "llama-server"], environment)


def _run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
    try:
        subprocess.run(command, check=True, stdout=sys.stderr, env=environment)
    except (subprocess.CalledProcessError, OSError) as error:
        raise BenchError(f"llama.cpp could not be built; what it said stands above ({error})") from error
