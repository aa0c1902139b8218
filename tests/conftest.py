"""Fixtures shared by all tests: outside data, and one device per test process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

if TYPE_CHECKING:
    from engine_service.compute.device import Device
    from engine_service.compute.kernel_library import KernelLibrary

_VARIABLE = "CLFORGE_TEST_DATA"
_DEFAULT = Path(__file__).parent.parent.parent / "shared"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of single test modules."""
    parser.addoption(
        "--oclgrind", choices=("short", "full"), default="short", help="how much of test_oclgrind.py to run"
    )


def find_shared_data() -> Path:
    """Where outside test data is, or would be."""
    return Path(os.environ.get(_VARIABLE, _DEFAULT)).absolute()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of outside test data (models/, vocab/); skips where it is absent and was not asked for."""
    folder = find_shared_data()
    if not (folder / "models").is_dir():
        if _VARIABLE in os.environ:
            pytest.fail(f"{_VARIABLE} is {folder}, which holds no models/ folder")
        pytest.skip(f"no outside test data at {folder}; set {_VARIABLE} to its folder")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _grpc_stays_up() -> None:
    """Keeps grpc.aio's thread to the end: the garbage collector may find the last call of a test when its event loop is
    closed, and would wait for that thread's end for ever."""
    grpc.aio.init_grpc_aio()


@pytest.fixture(scope="session")
def device() -> Device:
    """The device that all kernel tests of this process share."""
    from engine_service.compute.device import Device

    return Device.open()


@pytest.fixture(scope="session", params=["native", "portable"])
def library(request: pytest.FixtureRequest, device: Device) -> KernelLibrary:
    """A kernel library, once with the host's instruction set and once portable."""
    from engine_service.compute.kernel_library import KernelLibrary

    return KernelLibrary(device, portable=request.param == "portable")
