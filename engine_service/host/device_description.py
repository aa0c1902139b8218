"""What an OpenCL driver says of its devices, made safe to use (BACKEND-2). Imports no OpenCL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_LEAST_MAX_ALLOCATION_BYTES = 128 << 20  # guaranteed by OpenCL 1.2, table 4.3
_KINDS = {2: "CPU", 4: "GPU", 8: "accelerator"}  # CL_DEVICE_TYPE_*


@dataclass(frozen=True)
class DeviceDescription:
    """One device. Answers that cannot be are replaced by safe values and named in `odd_answers`.

    `reported_memory_bytes` is the driver's own figure: good on a GPU, nonsense on a CPU with PoCL.
    """

    index: int
    platform: str
    name: str
    driver_version: str
    opencl_version: str
    kind: str
    compute_units: int
    max_work_group_size: int
    max_allocation_bytes: int
    reported_memory_bytes: int
    extensions: tuple[str, ...]
    odd_answers: tuple[str, ...]

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> DeviceDescription:
        """The inverse of `dataclasses.asdict` and a trip through JSON, which turns tuples into lists."""
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in entry.items()}
        return cls(**values)


def describe(index: int, handle: Any) -> DeviceDescription:
    """Describes the pyopencl device `handle`, the index-th of the machine. Never raises for what the driver answers."""
    answers = _Answers(handle)
    device_type = answers.number("type", 0)
    return DeviceDescription(
        index=index,
        platform=answers.text("platform.name", "unnamed platform"),
        name=answers.text("name", "unnamed device"),
        driver_version=answers.text("driver_version", "unknown"),
        opencl_version=answers.text("version", "unknown"),
        kind=next((kind for bit, kind in _KINDS.items() if device_type & bit), "other"),
        compute_units=answers.number("max_compute_units", 1),
        max_work_group_size=answers.number("max_work_group_size", 1),
        max_allocation_bytes=answers.number("max_mem_alloc_size", _LEAST_MAX_ALLOCATION_BYTES),
        reported_memory_bytes=answers.number("global_mem_size", _LEAST_MAX_ALLOCATION_BYTES),
        extensions=tuple(answers.text("extensions", "").split()),
        odd_answers=tuple(dict.fromkeys(answers.odd)),
    )


class _Answers:
    """A device's answers, with safe values where a driver fails to answer or says nothing; `odd` names those."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self.odd: list[str] = []

    def text(self, name: str, otherwise: str) -> str:
        """A text without zero bytes and outer spaces; an empty one is odd."""
        answer = str(self._ask(name) or "").replace("\0", "").strip()
        if not answer:
            self.odd.append(name)
        return answer or otherwise

    def number(self, name: str, otherwise: int) -> int:
        """A positive number; anything else is odd."""
        answer = self._ask(name)
        if isinstance(answer, int) and answer > 0:
            return answer
        self.odd.append(name)
        return otherwise

    def _ask(self, name: str) -> Any:
        answer = self._handle
        try:
            for part in name.split("."):
                answer = getattr(answer, part)
        except Exception:  # pyopencl raises its own errors, decoding errors and AttributeError
            return None
        return answer
