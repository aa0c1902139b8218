"""Whether a device computes what it should: `python -P -m engine_service.compute.check_device DEVICE`, for the doctor.

A process of its own, since a driver may abort. Ends with 0 and `native` or `portable` on standard output, or with 1 and
one line on standard error.
"""

from __future__ import annotations

import sys

import structlog
from gguf import GGMLQuantizationType

from engine_service.compute.device import Device
from engine_service.compute.model_kernels import small_model_kernels
from engine_service.compute.quant_layouts import layout_for
from engine_service.compute.self_test import choose_program
from service_common.errors import DeviceError

# The layouts of most files; a model's own are tested when it is loaded.
_TYPES = (GGMLQuantizationType.Q4_K, GGMLQuantizationType.Q6_K, GGMLQuantizationType.Q8_0, GGMLQuantizationType.F16)
_ROLES = ("token_embd", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "output")


def main(index: int) -> int:
    """Runs the self-test; returns the exit code."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    layouts = tuple(layout_for(tensor_type) for tensor_type in _TYPES)
    kernels = small_model_kernels(dict.fromkeys(_ROLES, layouts))
    try:
        program = choose_program(Device.open(index), kernels, portable=False)
    except DeviceError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write("portable\n" if program.library.portable else "native\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
