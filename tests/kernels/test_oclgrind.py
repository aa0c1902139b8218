"""Every portable kernel under Oclgrind, which checks each memory access, and its bits against another driver's."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.skipif(shutil.which("oclgrind") is None, reason="install Debian's oclgrind")

# Unoptimised, since optimised code has an instruction that the check for uninitialised values does not know.
_OPTIONS = ("--check-api", "--data-races", "--uninitialized", "--build-options", "-O0")

_FAULTY = """
import sys
import pyopencl as cl
device = cl.get_platforms()[0].get_devices()[0]
context = cl.Context([device])
queue = cl.CommandQueue(context)
source = "__kernel void faulty(__global int *x) { int i = get_global_id(0); " + sys.argv[1] + " }"
kernel = cl.Kernel(cl.Program(context, source).build(), "faulty")
buffer = cl.Buffer(context, cl.mem_flags.READ_WRITE, 64)
kernel.set_args(buffer)
cl.enqueue_nd_range_kernel(queue, kernel, (16,), (1,))
queue.finish()
"""


class Checked(NamedTuple):
    """What a program printed, and what Oclgrind had to say about it."""

    output: str
    reports: str


def run_under_oclgrind(log: Path, *arguments: str) -> Checked:
    """Runs Python with `arguments`. pyopencl asks devices for what only other vendors have, which is no report."""
    done = subprocess.run(
        ["oclgrind", "--log", str(log), *_OPTIONS, sys.executable, *arguments],
        env=os.environ | {"PYOPENCL_NO_CACHE": "1"},  # it does not tell build options apart
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    calls = re.findall(r"OpenCL runtime error detected\s+Function: (\w+).*\s+Error: +(\w+)", done.stderr)
    api_errors = [f"{function}: {error}\n" for function, error in calls if function != "clGetDeviceInfo"]
    return Checked(done.stdout, "".join(api_errors) + (log.read_text() if log.exists() else ""))


@pytest.mark.timeout(3600)
def test_portable_kernels_are_clean_and_give_the_same_bits(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    """Ragged shapes of every kernel and layout: no report, and the hashes that the tests' own driver gives."""
    program = "-m", "tests.kernels.oclgrind_program", pytestconfig.getoption("--oclgrind")
    checked = run_under_oclgrind(tmp_path / "log", *program)
    assert checked.reports == ""
    plain = subprocess.run([sys.executable, *program], capture_output=True, text=True, check=True)
    assert json.loads(checked.output) == json.loads(plain.stdout)


@pytest.mark.parametrize(
    ("statement", "report"),
    [
        ("x[i + 1] = i;", "Invalid write of size 4 at global memory"),
        ("x[i / 2] = i;", "Write-write data race at global memory"),
        ("if (x[i] > 0) x[i] = 0;", "Controlflow depends on uninitialized value"),
        ("x[i] = 1;", None),
    ],
)
def test_oclgrind_reports_what_is_wrong(tmp_path: Path, statement: str, report: str | None) -> None:
    """The check itself can fail: a write past the end, a race and an uninitialised value are reported, else nothing."""
    reports = run_under_oclgrind(tmp_path / "log", "-c", _FAULTY, statement).reports
    assert report in reports if report else reports == ""
