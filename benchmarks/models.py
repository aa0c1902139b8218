"""The models that are measured: real shapes with random weights, made once.

How fast a model runs does not depend on what its weights are, so none has to be fetched.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from engine_service.bench.machine import ROOT
from engine_service.bench.protocol import BenchError

FOLDER = ROOT / "build" / "models"
VARIABLE = "CLFORGE_TEST_DATA"
_VOCABULARIES = {"tinyllama-1.1b": "ggml-vocab-llama-spm.gguf", "qwen2.5-0.5b": "ggml-vocab-qwen2.gguf"}
_K_QUANTS = {"Q4_K_M"}
_QUANTS = ("Q8_0", "Q4_0", "Q4_K_M")


class BenchModel(NamedTuple):
    """A shape, and the format of its weights."""

    shape: str
    quant: str

    @property
    def file_name(self) -> str:
        """Name of its file."""
        return f"{self.shape}-{self.quant}.gguf"

    @property
    def needs_peer(self) -> bool:
        """Whether only llama.cpp's quantiser can make it."""
        return self.quant in _K_QUANTS


class BenchVocabulary(NamedTuple):
    """A vocabulary without a model, from the outside test data."""

    name: str

    @property
    def file_name(self) -> str:
        """Where it is in the folder of that data."""
        return f"vocab/ggml-vocab-{self.name}.gguf"


MODELS = tuple(BenchModel(shape, quant) for shape in _VOCABULARIES for quant in _QUANTS)


def find_shared_data() -> Path:
    """The folder of outside test data. BenchError, with the remedy, where it has no tool to make models."""
    folder = Path(os.environ.get(VARIABLE, ROOT.parent / "shared")).absolute()
    if not (folder / "tools" / "make_model.py").is_file():
        raise BenchError(f"no outside test data at {folder}: set {VARIABLE} to its folder, or name a file by --model")
    return folder


def make_model(model: BenchModel, shared_data: Path, peer_python: Callable[[], Path], folder: Path = FOLDER) -> Path:
    """The model's file in `folder`, made there if it is missing; `peer_python` is asked only where it is needed.

    BenchError, with what the tool said, where that fails; then no file is left that could be taken for the model.
    """
    path = folder / model.file_name
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    python = str(peer_python()) if model.needs_peer else sys.executable
    vocabulary = shared_data / "vocab" / _VOCABULARIES[model.shape]
    partial = path.with_suffix(".part")
    tool = [python, str(shared_data / "tools" / "make_model.py")]
    command = [*tool, model.shape, model.quant, str(partial), "--vocab", str(vocabulary)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        partial.unlink(missing_ok=True)
        words = done.stdout.strip().splitlines() or ["it said nothing"]
        raise BenchError(f"{model.file_name} could not be made (exit code {done.returncode}): {words[-1]}")
    return partial.rename(path)
