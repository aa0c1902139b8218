"""The device: exact sizes, errors by name, reads into the caller's own array."""

from __future__ import annotations

import numpy as np
import pyopencl as cl
import pytest

from engine_service.compute.device import Device, list_devices
from service_common.errors import DeviceError


def test_what_was_uploaded_is_read_back_into_the_callers_array(device: Device) -> None:
    """A read fills the given array, of its own type, and nothing else holds that memory (BACKEND-5)."""
    source = np.arange(1000, dtype=np.float32)
    buffer = device.upload(source, "source")
    source[:] = -1
    first, second = np.empty(1000, np.float32), np.empty(1000, np.float32)
    device.read(buffer, first)
    device.read(buffer, second)
    first[:] = 0
    assert (second == np.arange(1000)).all()
    assert buffer.size == source.nbytes


def test_parts_are_written_and_read_at_byte_offsets(device: Device) -> None:
    """Offsets and sizes are bytes, exactly."""
    buffer = device.zeros(16, "small")
    device.write(buffer, np.array([7], np.int32), offset=8)
    out = np.empty(4, np.int32)
    device.read(buffer, out)
    assert out.tolist() == [0, 0, 7, 0]


@pytest.mark.parametrize("nbytes", [0, -1, 1 << 41])
def test_a_buffer_of_impossible_size_is_refused_by_name(device: Device, nbytes: int) -> None:
    """Where it is made, with name and size (BACKEND-3, BACKEND-4)."""
    with pytest.raises(DeviceError, match=rf"allocate buffer.*buffer=weights.*bytes={nbytes}"):
        device.empty(nbytes, "weights")


@pytest.mark.parametrize("offset", [-4, 13, 1 << 70])
def test_a_copy_beyond_the_buffer_is_refused(device: Device, offset: int) -> None:
    """No offset wraps or saturates: operation, offset and sizes are told (BACKEND-3)."""
    buffer = device.zeros(16, "small")
    with pytest.raises(DeviceError, match=rf"write buffer.*offset={offset}.*buffer_bytes=16"):
        device.write(buffer, np.zeros(1, np.int32), offset)
    with pytest.raises(DeviceError, match="read buffer"):
        device.read(buffer, np.zeros(1, np.int32), offset)


def test_opening_a_device_that_is_not_there_tells_how_many_are() -> None:
    """The index and the number of devices are in the message."""
    count = len(list_devices())
    with pytest.raises(DeviceError, match=f"index={count}, available={count}"):
        Device.open(count)


def test_the_queue_runs_in_order(device: Device) -> None:
    """Each command sees the results of those before it; nothing has to be waited for in between (ATT-2)."""
    out_of_order = int(cl.command_queue_properties.OUT_OF_ORDER_EXEC_MODE_ENABLE)
    assert not int(device.queue.properties) & out_of_order
    kernel = cl.Kernel(
        cl.Program(device.context, "__kernel void k(__global int *x) { x[0] = x[0] * 3 + 1; }").build(), "k"
    )
    buffer = device.zeros(4, "counter")
    kernel.set_args(buffer)
    expected = 0
    for _ in range(15):
        device.run(kernel, 1)
        expected = expected * 3 + 1
    out = np.empty(1, np.int32)
    device.read(buffer, out)
    assert out[0] == expected


def test_closing_twice_is_fine() -> None:
    """`close` waits for the work and may be called again."""
    device = Device.open()
    device.close()
    device.close()
