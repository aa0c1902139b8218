"""The built wheel, installed in another folder and used from there: what users get, and not the tree."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.gguf_builder import tiny_llama

_ROOT = Path(__file__).parent.parent.parent
_PROGRAM = """
import sys, clforge, engine_service, tokenizer_service, service_common
folder = sys.argv.pop(1)
for package in (clforge, engine_service, tokenizer_service, service_common):
    assert package.__file__.startswith(folder), package.__file__
from clforge.cli import main
main()
"""


def test_the_wheel_generates_from_another_folder(tmp_path: Path) -> None:
    """Built, installed without the tree on the path, it serves a model: stubs and kernels are all inside."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    wheels, target, model = tmp_path / "wheels", tmp_path / "target", tmp_path / "tiny.gguf"
    subprocess.run([*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(wheels), str(_ROOT)], check=True)
    [wheel] = wheels.iterdir()
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)], check=True)
    tiny_llama(model, seed=1)
    arguments = ["generate", "--model", str(model), "-p", "the rain", "--max-tokens", "5", "--temperature", "0"]
    done = subprocess.run(
        [sys.executable, "-P", "-c", _PROGRAM, str(target), *arguments],
        env=os.environ | {"PYTHONPATH": str(target)},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
