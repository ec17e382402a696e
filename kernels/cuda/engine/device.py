"""The device: the array module `xp`, kernels compiled once a dtype, and `launch`.

How an op is written:

    @device_function                                 a function of kernels, float32 or float64 as its arguments are
    def relu(z):
        return z if z > real(0, z) else real(0, z)

    @kernel                                          annotations are the types of the parameters
    def relu_values(dtype: Real, n: Integer, z: Values, y: Values):
        i = cuda.blockIdx.x * BLOCK + cuda.threadIdx.x
        if i < n:
            y[i] = relu(z[i])

    def relu_forward(z, y):                          a launcher: computes a grid, launches, and nothing else
        launch(relu_values, y.dtype, blocks(y.size), y.size, z, y)

Arrays reach a kernel as pointers to values in C order, without a shape: `flat` returns such an array. None becomes a null pointer, which
the kernel must not read; a flag tells it so. A launch has blocks of BLOCK threads, in one dimension or two, on the caller's current stream.

`dtype` is float32 or float64 inside a kernel: `dtype(0)`, `cuda.shared.array(BLOCK, dtype)`; in functions `real(0, z)` is a number of z's
type. A literal such as 0.5 alone would be float64 and make a float32 kernel slow; a test looks for that. The exception is `@wide_kernel`,
for sums that are float64 in every dtype: losses and norms.

Sums have one fixed order (reductions.py), so every run has the same bits; atomics only count integers. Only `xp` allocates arrays. Neither
it nor a launch waits for the device.

Numba compiles a kernel to PTX, on any machine, and a file keeps it for later processes (kernels/disk_cache.py). CuPy loads and launches
it, in a few microseconds; Numba's own launch takes tens for each array. Tests without a GPU run the same PTX with the same
arguments: `use` puts an executor of theirs in the place of the GPU.
"""

import contextlib
import inspect
import os
import platform
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numba
import numpy as np
from numba import cuda

from fastgrad.kernels import disk_cache

from . import cublas as blas

# threads in a block; Numba's simulator has a thread of Python for each
BLOCK = 32 if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1" else 256
# blocks of a grid that covers values of any number, each thread taking several
MOST_BLOCKS = 1024
# threads of a block, and blocks that a multiprocessor is to have at once
BOUNDS = BLOCK, 4
# lists of arrays whose addresses stay on the device
MOST_LISTS = 64


class Real:
    """Annotation: the kernel's float type itself."""


class Integer:
    """Annotation: an int64."""


class Number:
    """Annotation: a number of the kernel's float type."""


class WideNumber:
    """Annotation: a float64."""


class Values:
    """Annotation: a pointer to values of the kernel's float type."""


class Wide:
    """Annotation: a pointer to float64, whatever the kernel's type."""


class Integers:
    """Annotation: a pointer to int64."""


class Bits:
    """Annotation: a uint64."""


class Flags:
    """Annotation: a pointer to bytes, 0 or 1."""


class Arrays:
    """Annotation: pointers to values of each of a list of arrays, x[a][i]."""


class BitArrays:
    """Annotation: as Arrays, but pointers to integers with the values' bits."""


def _numba_types(annotation, scalar):
    return {
        Real: numba.types.NumberClass(scalar),
        Integer: numba.types.int64,
        Number: scalar,
        WideNumber: numba.types.float64,
        Values: numba.types.CPointer(scalar),
        Wide: numba.types.CPointer(numba.types.float64),
        Integers: numba.types.CPointer(numba.types.int64),
        Bits: numba.types.uint64,
        Flags: numba.types.CPointer(numba.types.uint8),
        Arrays: numba.types.CPointer(numba.types.CPointer(scalar)),
        BitArrays: numba.types.CPointer(numba.types.CPointer(getattr(numba.types, f"int{scalar.bitwidth}"))),
    }[annotation]


KERNELS: list["Kernel"] = []


class Kernel:
    """A kernel's source, and its PTX by dtype and compute capability. wide: its float32 version may use float64."""

    def __init__(self, function, wide=False):
        self.function, self.wide = function, wide
        self.name = function.__name__
        self.bounds = None
        self.parameters = [p.annotation for p in inspect.signature(function).parameters.values()]
        self._ptx = {}
        KERNELS.append(self)

    def ptx(self, dtype, cc):
        """The kernel's PTX: of this process, of a file, or compiled and then kept in both."""
        ptx = self._ptx.get((dtype.char, cc))
        if ptx is None:
            name, key = disk_cache.named(self.name, self.function.__module__, dtype.char, cc, self.bounds)
            payload = disk_cache.read(_version(), name, key)
            if payload is None:
                payload = self._compile(dtype, cc).encode()
                # without the file the next process compiles again
                with contextlib.suppress(OSError):
                    disk_cache.write(_version(), name, key, payload)
            ptx = self._ptx[dtype.char, cc] = payload.decode()
        return ptx

    def _compile(self, dtype, cc):
        scalar = numba.from_dtype(dtype)
        signature = tuple(_numba_types(annotation, scalar) for annotation in self.parameters)
        with offline(cc):
            return cuda.compile_ptx(self.function, signature, cc=cc, device=False, launch_bounds=self.bounds)[0]

    def arguments(self, dtype, values):
        """The arguments of a launch: numbers in the kernel's types, arrays, lists of arrays, and 0 for the dtype parameter and for None."""
        arguments = []
        for annotation, value in zip(self.parameters, (0, *values), strict=True):
            if annotation is Number:
                value = dtype.type(value)
            elif annotation is Integer:
                value = int(value)
            elif annotation is Bits:
                value = np.uint64(value)
            arguments.append(0 if value is None else value)
        return arguments


@lru_cache
def _version():
    """Name of the folder of this version's PTX."""
    from numba.cuda.cudadrv.nvvm import NVVM  # the simulator has none

    root = Path(__file__).parents[2]
    sources = *root.glob("*.py"), *(root / "cuda").rglob("*.py")
    versions = numba.__version__, version("numba-cuda"), NVVM().get_version(), NVVM().get_ir_version()
    return disk_cache.version(root, sources, versions, platform.python_version())


def kernel(function):
    """Decorator: a kernel, compiled at its first launch with a dtype."""
    return Kernel(function)


def wide_kernel(function):
    """Decorator: a kernel that adds up in float64 whatever its dtype."""
    return Kernel(function, wide=True)


def bounded(kernel):
    """Decorator: limit a kernel's registers to what BOUNDS allow; for kernels that would use a few more, and do not need them."""
    kernel.bounds = BOUNDS
    return kernel


def device_function(function):
    """Decorator: a function that kernels call."""
    return cuda.jit(device=True)(function)


@device_function
def real(value, like):
    """A number of the type of `like`."""
    return type(like)(value)


@contextlib.contextmanager
def offline(cc):
    """Let Numba compile device functions for this compute capability, without a GPU driver to ask for it."""
    from numba.cuda import dispatcher  # the simulator has none

    before = dispatcher.get_current_device
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=cc)
    try:
        yield
    finally:
        dispatcher.get_current_device = before


class GPU:
    """The current CUDA device, by CuPy."""

    # while a graph is recorded: see update_count
    counts = None

    def __init__(self):
        import cupy

        self.xp = cupy
        self._functions, self._lists = {}, {}

    def address(self, array):
        return array.data.ptr

    def device_number(self):
        return self.xp.cuda.Device().id

    def queue(self):
        return self.device_number(), self.xp.cuda.get_current_stream().ptr

    def _addresses(self, arrays):
        """The addresses of a list's arrays, as an array on the device; a training loop's lists are copied there once."""
        key = self.queue(), tuple(a.data.ptr for a in arrays)
        addresses = self._lists.pop(key, None)
        if addresses is None:
            addresses = self.xp.asarray(np.array(key[1], np.uint64))
        # the last one used stays longest
        self._lists[key] = addresses
        if len(self._lists) > MOST_LISTS:
            del self._lists[next(iter(self._lists))]
        return addresses

    def launch(self, kernel, dtype, grid, arguments):
        device = self.xp.cuda.Device()
        key = kernel, dtype.char, device.id
        function = self._functions.get(key)
        if function is None:
            capability = device.compute_capability
            ptx = kernel.ptx(dtype, (int(capability[:-1]), int(capability[-1])))
            module = self.xp.cuda.function.Module()
            module.load(ptx.encode())
            # the module lives as long as its function
            function = self._functions[key] = module.get_function(kernel_name(ptx))
        function(grid, (BLOCK, 1, 1), [self._addresses(a) if isinstance(a, list) else a for a in arguments])

    def cublas(self):
        return blas.library()

    def record(self, function):
        """(what function() returns, a function that runs its launches again): see graph.py."""
        cuda = self.xp.cuda
        pool, stream, before = cuda.MemoryPool(), cuda.Stream(non_blocking=True), cuda.get_current_stream()
        # the graph has addresses of its own: those on other streams may be deleted while it is used
        caller_lists, self._lists = self._lists, {}
        stream.wait_event(before.record())
        xp, self.counts = self.xp, {}
        try:
            with cuda.using_allocator(pool.malloc), stream:
                self.xp = blas.Products(xp, stream, self.cublas())
                function()
                stream.synchronize()
                stream.begin_capture()
                try:
                    result = function()
                finally:
                    graph = stream.end_capture()
        finally:
            products, self.xp = self.xp, xp
            addresses, self._lists = self._lists, caller_lists
            counts, self.counts = self.counts, None

        def replay():
            graph.launch()
            # these live as long as the graph
            return pool, addresses, products.workspace, counts

        return result, replay


def kernel_name(ptx):
    """The name of the kernel in its PTX."""
    return ptx.split(".entry ", 1)[1].split("(", 1)[0].strip()


_executor = None


def use(executor):
    """Launch on this executor from now on (None: on the GPU), and return the one before.

    An executor has the attributes xp, counts, address, device_number, queue and launch of GPU.
    """
    global _executor
    before, _executor = _executor, executor
    return before


def _current():
    global _executor
    if _executor is None:
        _executor = GPU()
    return _executor


def record(function):
    """See graph.py."""
    return _current().record(function)


def __getattr__(name):
    # device.xp: the array module, which without a GPU is NumPy
    if name == "xp":
        return _current().xp
    raise AttributeError(name)


def launch(kernel, dtype, grid, *arguments):
    """Run a kernel over (columns, rows) of blocks, or a number of them; no block, no launch."""
    columns, rows = grid if isinstance(grid, tuple) else (grid, 1)
    if columns and rows:
        _current().launch(kernel, dtype, (columns, rows, 1), kernel.arguments(dtype, arguments))


def blocks(n):
    """Blocks for n values: one for each BLOCK of them, up to MOST_BLOCKS, where threads take several."""
    return min(-(-n // BLOCK), MOST_BLOCKS)


def flat(array):
    """The array itself if it is C-contiguous and aligned, else a copy that is. None stays None."""
    return array if array is None or usable(array) else array.copy(order="C")


@lru_cache(maxsize=64)
def _device_copy(values, shape, dtype, xp, queue):
    return xp.asarray(np.frombuffer(values, dtype).reshape(shape))


def constant(array):
    """A small array on the device; a NumPy array is copied once for all calls with the same values."""
    if not isinstance(array, np.ndarray):
        return array
    return _device_copy(array.tobytes(), array.shape, array.dtype, _current().xp, queue())


def device_number():
    """The current device's number."""
    return _current().device_number()


def is_recording():
    """Whether a graph is being recorded."""
    return _current().counts is not None


def update_count(state, step):
    """While a graph is recorded: the number of the first recorded update of this state, and a device array that counts updates since.

    None if nothing is recorded: then `step` is the number of the update.
    """
    if not is_recording():
        return None
    counts = _current().counts
    key = _current().address(state)
    if key not in counts:
        counts[key] = step, _current().xp.zeros(1, np.int64)
    return counts[key]


def queue():
    """The current device and stream, as a key for cached device arrays: on another stream a copy may not have finished."""
    return _current().queue()


def usable(array):
    """Whether kernels can take the array as it is: C-contiguous and aligned."""
    return array.flags.c_contiguous and _current().address(array) % array.itemsize == 0


def fetch(values, array):
    """Copy values of the device to the caller's array; waits for them if that is a NumPy array."""
    array[...] = values if type(values) is type(array) else values.get()


@contextlib.contextmanager
def written(array):
    """An array to write: the array itself if it is C-contiguous and aligned, else a scratch array that is copied to it at the end."""
    if usable(array):
        yield array
        return
    scratch = _current().xp.empty(array.shape, array.dtype)
    yield scratch
    array[...] = scratch


@device_function
def grid_start():
    """This thread's first value of a grid of `blocks`; the next is `grid_stride` further."""
    return cuda.blockIdx.x * np.int64(BLOCK) + cuda.threadIdx.x


@device_function
def grid_stride():
    return cuda.gridDim.x * np.int64(BLOCK)
