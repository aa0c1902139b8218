"""The built wheel, installed in another folder and used from there: what users get, and not the tree."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.integration.served import address_of, environment

_ROOT = Path(__file__).parent.parent.parent
_PROGRAM = """
import sys, clforge, engine_service, tokenizer_service, service_common
folder = sys.argv.pop(1)
for package in (clforge, engine_service, tokenizer_service, service_common):
    assert package.__file__.startswith(folder), package.__file__
from clforge.cli import main
main()
"""
_PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the tree."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([*_PIP, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(_ROOT)], check=True)
    [wheel] = folder.iterdir()
    return wheel


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """A command of the wheel that is installed in `folder`."""
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _PROGRAM, str(folder), *arguments],
        env=environment() | {"PYTHONPATH": str(folder)},
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_wheel_serves_and_answers_without_a_model_being_named(wheel: Path, tmp_path: Path) -> None:
    """Installed without the tree on the path, it serves the model in the box: stubs, kernels, weights are inside."""
    subprocess.run([*_PIP, "install", "--quiet", "--no-deps", "--target", str(tmp_path), str(wheel)], check=True)
    question = ["--chat", "-p", "Sort these numbers: 9, 4, 22, 17.", "--temperature", "0"]
    with start(tmp_path, "serve", "--grpc", "127.0.0.1:0", "--log-level", "warning") as server:
        try:
            with start(tmp_path, "generate", "--target", address_of(server), *question) as asking:
                answer, error = asking.communicate(timeout=120)
        finally:
            server.terminate()
        assert server.wait(60) == 0
    assert (answer, error) == ("4, 9, 17, 22.", "")


def test_the_wheel_measures_its_model(wheel: Path, tmp_path: Path) -> None:
    """Kernels and processes of the bench are inside too; no tree, no commit."""
    subprocess.run([*_PIP, "install", "--quiet", "--no-deps", "--target", str(tmp_path), str(wheel)], check=True)
    output = tmp_path / "bench.json"
    with start(tmp_path, "bench", "--pairs", "1", "--json", str(output)) as measuring:
        _, error = measuring.communicate(timeout=240)
    assert measuring.returncode == 0, error
    results = json.loads(output.read_text(encoding="utf-8"))
    assert results["decode_32"]["ours"] > 0
    assert results["commit"] is None


def test_the_wheel_holds_the_model_and_nothing_of_its_making(wheel: Path) -> None:
    """One GGUF file, of at most 8 MB, and neither training code nor pictures."""
    with ZipFile(wheel) as archive:
        files = {info.filename: info.file_size for info in archive.infolist()}
    [model] = [name for name in files if name.endswith(".gguf")]
    assert model == "engine_service/bundled/clforge-tiny.gguf"
    assert 1_000_000 < files[model] <= 8_000_000
    assert not [name for name in files if name.startswith("models/") or "/train/" in name or name.endswith(".png")]
