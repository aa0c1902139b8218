"""The models that parity is measured on, how each comes about, and how far from E it may be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import gguf
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import quantize

FIXTURE = Path(__file__).parent / "fixture"
TOKEN_IDS = [1, 403, 407, 261, 378, 432, 383, 286, 261, 376, 298, 315, 421, 395, 317, 426, 338, 401, 396, 267, 337, 410]

# Relative distance ‖ours − E‖ / ‖E‖; a quantised format is held to 1.1 × llama.cpp's own distance instead.
FLOAT_LIMITS = {"F32": 1e-4, "F16": 1e-3, "BF16": 5e-3}
QUANTISED_FACTOR = 1.1

_BY_MAKE_MODEL = ("F32", "F16", "Q8_0", "Q4_0")
_REQUANTISED = ("BF16", "Q4_1", "Q5_0", "Q5_1")
_BY_LLAMA_CPP = ("Q4_K_M", "Q5_K_M", "Q6_K")


class Case(NamedTuple):
    """One model file. `outliers`: a few channels 100 times the others, and large biases."""

    architecture: str
    file_format: str
    outliers: bool = False

    @property
    def name(self) -> str:
        """Names the case, and its file."""
        return f"{self.architecture}-{self.file_format}" + ("-outliers" if self.outliers else "")

    @property
    def kv_cache_type(self) -> str:
        """f32 where rounding keys and values to f16 alone costs more than the limit.

        That is 1.7e-4 for F32 weights (llama.cpp's 3.7e-4), and up to 8e-3 where large biases make keys large.
        """
        return "f32" if self.file_format == "F32" or (self.outliers and self.file_format in FLOAT_LIMITS) else "f16"

    @property
    def is_kept(self) -> bool:
        """Whether the file needs llama.cpp's quantiser and is kept with the fixture; the others are made anew."""
        return self.file_format in _BY_LLAMA_CPP


CASES = tuple(
    Case(architecture, file_format, outliers)
    for architecture in ("mini-llama", "mini-qwen2")
    for outliers in (False, True)
    for file_format in (*_BY_MAKE_MODEL, *_REQUANTISED, *_BY_LLAMA_CPP)
    if not (outliers and file_format in ("Q5_K_M", "Q6_K"))  # Q4_K_M holds Q4_K and Q6_K both; the files are large
)


def make_model(case: Case, shared_data: Path, folder: Path, python: str = sys.executable) -> Path:
    """The file of a case: the one kept with the fixture, or one made from seeds in `folder`.

    `python` is one that has llama.cpp, for the cases that are kept; they are made anew where it is given.
    """
    if case.is_kept and python == sys.executable:
        return FIXTURE / f"{case.name}.gguf"
    path = folder / f"{case.name}.gguf"
    if not path.exists():
        source = "F32" if case.file_format in _REQUANTISED else case.file_format
        base = path if source == case.file_format else path.with_suffix(".f32")
        _run_make_model(case, source, base, shared_data, python)
        if base != path:
            _requantise(base, path, GGMLQuantizationType[case.file_format])
            base.unlink()
    return path


def _run_make_model(case: Case, file_format: str, path: Path, shared_data: Path, python: str) -> None:
    arguments = [case.architecture, file_format, path, "--vocab", shared_data / "models/stories260K.gguf"]
    options = ["--outliers"] if case.outliers else []
    command = [python, shared_data / "tools/make_model.py", *arguments, *options]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)


def _requantise(source: Path, target: Path, tensor_type: GGMLQuantizationType) -> None:
    """Copies a model with every matrix in `tensor_type`."""
    reader = GGUFReader(source)
    writer = GGUFWriter(target, str(reader.fields["general.architecture"].contents()))
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name not in ("general.architecture", "general.file_type"):
            kind = field.types[0]
            element = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, element)
    for tensor in reader.tensors:
        if tensor.data.ndim == 1:
            writer.add_tensor(tensor.name, tensor.data)
        else:
            writer.add_tensor(tensor.name, quantize(tensor.data, tensor_type), raw_dtype=tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
