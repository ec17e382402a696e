"""The CUDA backend without a GPU: executors for device.use that run launches over NumPy arrays, and one backend of NumPy
arrays on a GPU, so that the tests of all backends run there as they are.
"""

import contextlib
from types import ModuleType

import numpy as np

from fastgrad.core.host_transfer import HostArrayAdapter

# what kernels are compiled for where they are executed; .approx instructions are off by their documented worst
CAPABILITY, APPROXIMATE = (9, 0), True


def emulated(backend):
    """Whether this backend's kernels are emulated, a hundred thousand values in seconds."""
    return isinstance(backend, ModuleType) and backend.__name__ == "fastgrad.kernels.cuda"


class Arrays:
    """NumPy as the array module: products of NaN and infinity say nothing, as on a GPU, and are counted."""

    def __init__(self):
        self.products = 0

    def __getattr__(self, name):
        return getattr(np, name)

    def matmul(self, a, b, out=None):
        self.products += 1
        with np.errstate(over="ignore", invalid="ignore"):
            return np.matmul(a, b, out=out)


class Emulator:
    """Compiled PTX, executed by ptxsim with all its checks: data races, which cost as much as all else, at the first launch of a kernel
    with the same sizes. `launches`: the kernels' names, and bytes read and written by argument.
    """

    counts = None

    def __init__(self):
        self.xp = Arrays()
        self.launches = []
        self._modules = {}
        self._checked = set()

    def address(self, array):
        return array.ctypes.data

    def device_number(self):
        return "emulated"

    queue = device_number

    def launch(self, kernel, dtype, grid, arguments):
        from ptxsim import Module, launch

        from fastgrad.kernels.cuda.engine.device import BLOCK

        module = self._modules.get((kernel, dtype.char))
        if module is None:
            module = self._modules[kernel, dtype.char] = Module(kernel.ptx(dtype, CAPABILITY))
        sizes = kernel, dtype.char, grid, *(a for a in arguments if isinstance(a, int | np.integer))
        statistics = launch(
            module, grid, BLOCK, arguments, pointers=True, approximate=APPROXIMATE, check_races=sizes not in self._checked
        )  # fmt: skip
        self._checked.add(sizes)
        self.launches.append((kernel.name, statistics.traffic))


class Simulator:
    """Numba's CUDA simulator, which runs a kernel's Python. It needs NUMBA_ENABLE_CUDASIM=1 and so a process of its own."""

    counts = None

    def __init__(self):
        self.xp = Arrays()
        self.launches = []

    def address(self, array):
        return array.ctypes.data

    def device_number(self):
        return "simulated"

    queue = device_number

    def launch(self, kernel, dtype, grid, arguments):
        from numba import cuda

        from fastgrad.kernels.cuda.engine.device import BLOCK

        # pointers know no shape
        given = [self._flat(a) for a in arguments[1:]]
        cuda.jit(kernel.function)[grid, BLOCK](dtype.type, *given)
        self.launches.append((kernel.name, None))

    def _flat(self, value):
        if isinstance(value, list):
            return tuple(a.reshape(-1) for a in value)
        if not isinstance(value, np.ndarray):
            return value
        if not value.flags.writeable:
            # it writes all arrays back
            value = value.copy()
        if value.flags.c_contiguous:
            return value.reshape(-1)
        # rows that lie apart, with what is between them
        last = sum((n - 1) * stride for n, stride in zip(value.shape, value.strides, strict=True)) // value.itemsize
        return np.lib.stride_tricks.as_strided(value, (last + 1,), (value.itemsize,))


class OnDevice:
    """The CUDA backend's functions over NumPy arrays on a GPU, `gpu`, whatever executor other tests use.

    It has no `direct` functions, for which a Trainer would move its model: the models of tests are NumPy's.
    """

    def __init__(self, module):
        from fastgrad.kernels.cuda.engine import device

        self._ferry, self.gpu = HostArrayAdapter(module), device.GPU()
        self.are_uniform = self._ferry.are_uniform
        self.__all__, self.__name__ = self._ferry.__all__, self._ferry.__name__

    def __getattr__(self, name):
        function = getattr(self._ferry, name)

        def call(*arguments, **named):
            with on(self.gpu):
                return function(*arguments, **named)

        call.__wrapped__, call.__module__ = function, function.__module__
        return call


@contextlib.contextmanager
def on(executor):
    """A block in which kernels run on this executor."""
    from fastgrad.kernels.cuda.engine import device

    before = device.use(executor)
    try:
        yield
    finally:
        device.use(before)
