"""`clforge inspect`: what a model file holds, whether it can be served, and what its weights cost on the device."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import TypeVar

from engine_service.compute.quant_layouts import SUPPORTED_TYPES, layout_for, packed_bytes
from engine_service.models.hyperparameters import Hyperparameters, RopeScaling
from engine_service.models.tensor_table import read_hyperparameters
from service_common.errors import ModelFileError
from service_common.gguf_reader import GGUFReader
from service_common.gguf_tensors import TensorInfo
from service_common.special_tokens import SpecialTokens
from service_common.terminal import printable

T = TypeVar("T")
_CHAT_TEMPLATE_KEY = "tokenizer.chat_template"


@dataclass(frozen=True, slots=True)
class TensorTypeReport:
    """All tensors of one type. Bytes are exact, without the file's padding; `device_bytes` is None where the type
    has no device layout."""

    type: str
    num_tensors: int
    file_bytes: int
    device_bytes: int | None

    @property
    def ratio(self) -> float | None:
        """Device bytes per byte of the file."""
        return None if self.device_bytes is None else self.device_bytes / self.file_bytes


@dataclass(frozen=True, slots=True)
class ModelReport:
    """What a file says about its model; None where it says nothing.

    `has_chat_template`: a conversation is rendered by the file's own template, else as plain dialogue.
    `hyperparameters` is None exactly where the model cannot be served, and `problem` then says why.
    `vocabulary_kind` is the tokenizer's model and, after a slash, its pre-tokenizer.
    """

    path: str
    architecture: str | None
    name: str | None
    num_parameters: int
    context_length: int | None
    vocabulary_size: int | None
    vocabulary_kind: str | None
    has_chat_template: bool
    hyperparameters: Hyperparameters | None
    problem: str | None
    tensor_types: tuple[TensorTypeReport, ...]

    def as_json(self) -> str:
        """The report as a JSON object with the names of its fields."""
        return json.dumps(asdict(self), indent=2)


def inspect_model(path: str | os.PathLike[str]) -> ModelReport:
    """Read `path`. A model that cannot be served gives a report that says why; a file that is no sound GGUF raises
    ModelFileError."""
    with GGUFReader(path) as reader:
        hyperparameters, problem = _hyperparameters(reader)
        architecture = _optional(reader.get_str, "general.architecture")
        tokens = _optional(lambda key: reader.get_array(key, str), "tokenizer.ggml.tokens")
        return ModelReport(
            path=reader.name,
            architecture=architecture,
            name=_optional(reader.get_str, "general.name"),
            num_parameters=sum(info.num_elements for info in reader.tensors.values()),
            context_length=_optional(reader.get_int, f"{architecture}.context_length"),
            vocabulary_size=None if tokens is None else len(tokens),
            vocabulary_kind=_vocabulary_kind(reader),
            has_chat_template=_CHAT_TEMPLATE_KEY in reader,
            hyperparameters=hyperparameters,
            problem=problem,
            tensor_types=tuple(_tensor_types(reader.tensors.values())),
        )


def _hyperparameters(reader: GGUFReader) -> tuple[Hyperparameters | None, str | None]:
    try:
        hyperparameters = read_hyperparameters(reader)
        SpecialTokens.from_gguf(reader)
        return hyperparameters, None
    except ModelFileError as error:
        return None, str(error)


def _optional(getter: Callable[[str], T], key: str) -> T | None:
    """The key's value, or None where it is absent or unusable (which `problem` tells where it matters)."""
    try:
        return getter(key)
    except ModelFileError:
        return None


def _vocabulary_kind(reader: GGUFReader) -> str | None:
    parts = [_optional(reader.get_str, "tokenizer.ggml.model"), _optional(reader.get_str, "tokenizer.ggml.pre")]
    return "/".join(part for part in parts if part) or None


def _tensor_types(tensors: Iterable[TensorInfo]) -> Iterator[TensorTypeReport]:
    by_type: dict[str, list[TensorInfo]] = {}
    for info in tensors:
        by_type.setdefault(info.type.name, []).append(info)
    for name, group in by_type.items():
        yield TensorTypeReport(
            type=name,
            num_tensors=len(group),
            file_bytes=sum(info.nbytes for info in group),
            device_bytes=_sum_if_all_known(_device_bytes(info) for info in group),
        )


def _device_bytes(info: TensorInfo) -> int | None:
    if len(info.shape) == 1:
        return 4 * info.num_elements  # vectors are f32 on the device
    if info.type not in SUPPORTED_TYPES:
        return None
    return packed_bytes(layout_for(info.type), info.rows, info.shape[-1])


def render(report: ModelReport) -> str:
    """The report as text for a terminal, one fact a line."""
    vocabulary = f"{report.vocabulary_size} tokens, {report.vocabulary_kind}" if report.vocabulary_size else None
    facts: list[tuple[str, object]] = [
        ("file", report.path),
        ("architecture", report.architecture),
        ("name", report.name),
        ("parameters", f"{report.num_parameters:,}"),
        ("context length", report.context_length),
        ("vocabulary", vocabulary),
        ("chat template", "the model's" if report.has_chat_template else "none: plain dialogue"),
    ]
    if report.hyperparameters is not None:
        shown_above = {"architecture", "context_length", "vocab_size"}
        names = [field.name for field in fields(Hyperparameters) if field.name not in shown_above]
        facts += [(name.replace("_", " "), getattr(report.hyperparameters, name)) for name in names]
    facts.append(("served", "yes" if report.problem is None else f"no: {report.problem}"))
    return "\n".join([f"{name:<18}{_printable(value)}" for name, value in facts] + _type_table(report.tensor_types))


def _printable(value: object) -> str:
    """A value of the file, without characters that a terminal would act upon."""
    if value is None:
        return "not in the file"
    if isinstance(value, RopeScaling):
        return f"{value.kind} × {value.factor:g}" if value.kind != "none" else "none"
    if isinstance(value, float):
        return f"{value:g}"
    return printable(str(value))


def _type_table(types: tuple[TensorTypeReport, ...]) -> list[str]:
    if not types:
        return []
    rows = [f"{'type':<10}{'tensors':>8}{'file MiB':>12}{'device MiB':>12}{'ratio':>8}"]
    for report in (*types, _total(types)):
        device = "no layout" if report.device_bytes is None else f"{report.device_bytes / 2**20:.2f}"
        ratio = "" if report.ratio is None else f"{report.ratio:.3f}"
        file = f"{report.file_bytes / 2**20:.2f}"
        rows.append(f"{report.type:<10}{report.num_tensors:>8}{file:>12}{device:>12}{ratio:>8}")
    return rows


def _total(types: tuple[TensorTypeReport, ...]) -> TensorTypeReport:
    return TensorTypeReport(
        type="total",
        num_tensors=sum(report.num_tensors for report in types),
        file_bytes=sum(report.file_bytes for report in types),
        device_bytes=_sum_if_all_known(report.device_bytes for report in types),
    )


def _sum_if_all_known(values: Iterable[int | None]) -> int | None:
    total = 0
    for value in values:
        if value is None:
            return None
        total += value
    return total
