"""Arrays of other libraries on a GPU: the order between their owner's stream and CuPy's current one, on which kernels run.

Before: DLPack tells the owner which stream will read, and the owner makes it wait for its own; __cuda_array_interface__ names the stream
to wait for. After: neither has a word for it, so here the owner's stream waits, once nothing holds the array any more, which at the end
of a call that wrote it nothing does. Waits are events on the GPU, the host never waits; of one stream with itself there are none.
"""

import sys
import weakref
from typing import Any


class Described:
    """What says by __cuda_array_interface__ where it lies, without its stream: for that the host would wait."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.__cuda_array_interface__ = {**value.__cuda_array_interface__, "stream": None}


def borrowed(xp: Any, value: Any) -> Any:
    """The device's array over the memory of what lies there."""
    if xp.cuda.get_current_stream().is_capturing():
        raise TypeError("a graph that is captured takes CuPy's arrays alone, as cupy.from_dlpack gives outside of it")
    return xp.from_dlpack(value) if hasattr(value, "__dlpack__") else xp.asarray(Described(value))


def order(xp: Any, value: Any, array: Any) -> None:
    """What comes next here after what value's owner has given its stream, and what it gives it after `array`, borrowed from it, is gone."""
    cuda, owners = xp.cuda, _owners(value)
    current = cuda.get_current_stream()
    if owners is None or _same(owners, current.ptr):
        return
    if not hasattr(value, "__dlpack__"):
        _wait(cuda, current.ptr, owners)
    # value, and with it its stream, lives until that has been told
    end = weakref.finalize(array, _give_back, cuda, array.device.id, current, owners, value)
    # at a process's end there is nobody to wait
    end.atexit = False


def _owners(value: Any) -> int | None:
    """The stream that the owner of an array works on, as far as it says so: 1 and 0 are the default one."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return torch.cuda.current_stream(value.device).cuda_stream
    return getattr(value, "__cuda_array_interface__", {}).get("stream")


def _give_back(cuda: Any, device: int, taken: Any, owners: int, _: Any) -> None:
    """Both streams may have read the array: that which was current when it was borrowed, and that which is."""
    with cuda.Device(device):
        current = cuda.get_current_stream()
        for stream in [taken] if _same(taken.ptr, current.ptr) else [taken, current]:
            if not stream.is_capturing():
                _wait(cuda, owners, stream.ptr)


def _same(pointer: int, other: int) -> bool:
    return (pointer or 1) == (other or 1)


def _wait(cuda: Any, stream: int, other: int) -> None:
    """What the stream is given from now on comes after what the other one was given."""
    event = cuda.Event(disable_timing=True)
    cuda.runtime.eventRecord(event.ptr, other)
    cuda.runtime.streamWaitEvent(stream, event.ptr)
