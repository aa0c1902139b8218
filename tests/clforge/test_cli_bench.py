"""`clforge bench`: results where they belong, and users' mistakes in one line. No claim about speed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gguf_builder import tiny_llama

_PROGRAM = "from clforge.cli import main; main()"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, trained for less than the workloads need."""
    path = tmp_path_factory.mktemp("bench") / "tiny.gguf"
    tiny_llama(path, seed=3, layers=1, context_length=256)
    return path


def bench(*arguments: str, peer_python: str = "/nowhere/python") -> subprocess.CompletedProcess[str]:
    """Runs the command."""
    command = [sys.executable, "-P", "-c", _PROGRAM, "bench", *arguments]
    environment = {**os.environ, "LLAMA_CPP_PYTHON": peer_python}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


def test_one_file_is_measured_with_progress(model: Path, tmp_path: Path) -> None:
    """Tables go to standard output, progress to standard error, and the JSON has the agreed names."""
    output = tmp_path / "bench.json"
    done = bench(str(model), "--pairs", "1", "--profile", "--json", str(output))
    assert done.returncode == 0, done.stderr
    results = json.loads(output.read_text(encoding="utf-8"))
    rates = {"prefill_512", "decode_1", "decode_8", "decode_32"}
    assert results.keys() == rates | {"bandwidth", "profile", "machine", "engine", "peer", "commit"}
    assert all(results[name]["ours"] > 0 and results[name]["peer"] is None for name in rates)
    assert results["peer"] is None
    assert results["profile"].keys() == {"prefill_512", "decode_1", "decode_8"}
    assert "decode_32: pair 1 of 1" in done.stderr
    assert all(word in done.stdout for word in ("decode_32", "of copy", "matmul"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.gguf"], "missing.gguf"),
        (["--against", "llama.cpp"], "LLAMA_CPP_PYTHON"),
        (["--against", "vllm"], "llama.cpp"),
        (["--json", "/nowhere/bench.json"], "/nowhere"),
        (["--pairs", "0"], "--pairs"),
    ],
)
def test_users_mistakes_end_it_at_once(arguments: list[str], words: str) -> None:
    """Exit code 2 and a message with the remedy; no traceback, nothing on standard output."""
    done = bench(*arguments)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout
