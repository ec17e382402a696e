"""CUDA streams of arrays that other libraries own: their order with CuPy's current stream, on which the kernels run.

Before a call, the kernels wait for the owner's earlier work. With DLPack the owner does that itself; with __cuda_array_interface__ our
stream waits for the stream that it names. After a call, the owner's stream waits for the kernels. Neither protocol has this, so it happens
when the borrowed array is freed, at the end of the call at the latest for an array that a call wrote. All waits are events on the GPU: the
host never waits. If both streams are one there are no waits.
"""

import sys
import weakref
from typing import Any


class StreamlessInterface:
    """The __cuda_array_interface__ of an array without its stream: with the stream, CuPy would make the host wait for it."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.__cuda_array_interface__ = {**value.__cuda_array_interface__, "stream": None}


def borrow(xp: Any, value: Any) -> Any:
    """The CuPy array over the memory of an array of another library."""
    if xp.cuda.get_current_stream().is_capturing():
        raise TypeError("a graph that is captured takes CuPy's arrays alone, as cupy.from_dlpack gives outside of it")
    return xp.from_dlpack(value) if hasattr(value, "__dlpack__") else xp.asarray(StreamlessInterface(value))


def order(xp: Any, value: Any, array: Any) -> None:
    """Make our stream wait for that of value's owner, and the owner's for ours once `array`, the one borrowed from value, is freed."""
    cuda, owner = xp.cuda, _owner_stream(value)
    current = cuda.get_current_stream()
    if owner is None or _same(owner, current.ptr):
        return
    if not hasattr(value, "__dlpack__"):
        _wait(cuda, current.ptr, owner)
    # the finalizer keeps value alive, and with it its stream
    end = weakref.finalize(array, _give_back, cuda, array.device.id, current, owner, value)
    # at the end of the process no work follows
    end.atexit = False


def _owner_stream(value: Any) -> int | None:
    """The stream of an array's owner, or None if it is not known; 0 and 1 are the default stream."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return torch.cuda.current_stream(value.device).cuda_stream
    return getattr(value, "__cuda_array_interface__", {}).get("stream")


def _give_back(cuda: Any, device: int, borrower: Any, owner: int, _: Any) -> None:
    """Make the owner's stream wait for the stream at the time of the borrowing and for the current one: both may have read the array."""
    with cuda.Device(device):
        current = cuda.get_current_stream()
        for stream in [borrower] if _same(borrower.ptr, current.ptr) else [borrower, current]:
            if not stream.is_capturing():
                _wait(cuda, owner, stream.ptr)


def _same(pointer: int, other: int) -> bool:
    return (pointer or 1) == (other or 1)


def _wait(cuda: Any, stream: int, other: int) -> None:
    """Make later work on `stream` wait for the earlier work on `other`."""
    event = cuda.Event(disable_timing=True)
    cuda.runtime.eventRecord(event.ptr, other)
    cuda.runtime.streamWaitEvent(stream, event.ptr)
