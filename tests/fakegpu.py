"""A GPU without a GPU: arrays as strict as CuPy's over NumPy's memory, a module of them, and an executor that runs kernels over them.

A FakeArray is no NumPy array and does not become one: NumPy's functions take it only together with others of its kind, as CuPy's
arrays have it, so that code which would move an array to the host unasked, or mix the two, fails here as it would there. Waiting for the
device and making memory are counted.
"""

import contextlib
import operator
from types import SimpleNamespace

import numpy as np
from emulation import Emulator
from numpy.lib.mixins import NDArrayOperatorsMixin


class OutOfMemoryError(MemoryError):
    """As CuPy's."""


class FakeArray(NDArrayOperatorsMixin):
    """An array on a fake GPU."""

    def __init__(self, host, gpu, device=None):
        self.host, self.gpu = host, gpu
        self.device = SimpleNamespace(id=gpu.current if device is None else device)

    shape, dtype, ndim, size, itemsize, nbytes, strides = (
        property(lambda self, name=name: getattr(self.host, name))
        for name in "shape dtype ndim size itemsize nbytes strides".split()
    )

    @property
    def flags(self):
        # of these CuPy's have no more
        return SimpleNamespace(c_contiguous=self.host.flags.c_contiguous, f_contiguous=self.host.flags.f_contiguous)

    @property
    def data(self):
        return SimpleNamespace(ptr=self.host.ctypes.data)

    @property
    def T(self):
        return self._view(self.host.T)

    @property
    def __cuda_array_interface__(self):
        return {"shape": self.shape, "typestr": self.dtype.str, "data": (self.data.ptr, False), "version": 3}

    def __dlpack_device__(self):
        return 2, self.device.id

    def __dlpack__(self, **options):
        return self

    def __array__(self, *arguments, **options):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        if any(isinstance(a, np.ndarray) for a in inputs):
            raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        return self.gpu.xp._call(getattr(ufunc, method), *inputs, **options)

    def __array_function__(self, function, types, arguments, options):
        return self.gpu.xp._call(function, *arguments, **options)

    def __deepcopy__(self, memo):
        return self._view(self.host.copy())

    def get(self):
        """The values, once the device has them."""
        self.gpu.waits += 1
        return self.host.copy()

    def item(self, *at):
        return self.get().item(*at)

    def tolist(self):
        return self.get().tolist()

    def __float__(self):
        return float(self.get())

    def __int__(self):
        return int(self.get())

    def __bool__(self):
        return bool(self.get())

    def __len__(self):
        return len(self.host)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __getitem__(self, key):
        return self._view(self.host[self.gpu.inside(key)])

    def __setitem__(self, key, value):
        if isinstance(value, np.ndarray):
            # CuPy copies from the host into a whole array of the same type alone
            assert key in (..., slice(None)), "part of an array cannot be set from the host"
            assert value.dtype == self.dtype, "an array of another type cannot be set from the host"
            self.gpu.copies += 1
        self.host[self.gpu.inside(key)] = self.gpu.inside(value)

    def _view(self, host):
        return FakeArray(np.asarray(host), self.gpu, self.device.id)

    def __getattr__(self, name):
        if name.startswith("__") or not callable(getattr(np.ndarray, name, None)):
            raise AttributeError(f"'ndarray' object has no attribute {name!r}")
        return lambda *arguments, **options: self.gpu.xp._call(
            operator.methodcaller(name, *self.gpu.inside(arguments), **self.gpu.inside(options)), self
        )


class FakeModule:
    """cupy, as far as it is used."""

    float32, float64, int64, uint8, bool_ = np.float32, np.float64, np.int64, np.uint8, np.bool_

    def __init__(self, gpu):
        self._gpu = gpu
        self.ndarray, self.products = FakeArray, 0
        self.cuda = SimpleNamespace(memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError))

    def __getattr__(self, name):
        function = getattr(np, name)
        return lambda *arguments, **options: self._call(function, *arguments, **options)

    def _call(self, function, *arguments, **options):
        for a in [*arguments, *options.values()]:
            if isinstance(a, np.ndarray):
                raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        with np.errstate(all="ignore"):
            found = function(*self._gpu.inside(arguments), **self._gpu.inside(options))
        return self._gpu.outside(found)

    def asarray(self, value, dtype=None):
        if isinstance(value, FakeArray):
            return value if dtype is None else value.astype(dtype)
        if hasattr(value, "__cuda_array_interface__"):
            return value.array
        self._gpu.copies += 1
        return self._gpu.made(np.array(value, dtype))

    array = asarray

    def from_dlpack(self, value):
        return value.__dlpack__(stream=None)

    def empty(self, shape, dtype=np.float64):
        return self._gpu.made(np.empty(shape, dtype), filled=np.nan)

    def zeros(self, shape, dtype=np.float64):
        return self._gpu.made(np.zeros(shape, dtype))

    def matmul(self, a, b, out=None):
        self.products += 1
        return self._call(np.matmul, a, b, out=out)


class FakeGPU(Emulator):
    """An executor: kernels run as emulated, over FakeArrays alone."""

    def __init__(self):
        super().__init__()
        self.xp, self.current = FakeModule(self), 0
        # bytes that can be made, times memory was made, values were waited for, and were copied there
        self.room, self.allocations, self.waits, self.copies = None, 0, 0, 0

    def address(self, array):
        return array.data.ptr

    def where(self):
        return self.current

    def launch(self, kernel, dtype, grid, arguments):
        for a in arguments:
            assert not isinstance(a, np.ndarray), f"{kernel.name} was given an array of the host"
        super().launch(kernel, dtype, grid, self.inside(arguments))

    def made(self, host, filled=None):
        if self.room is not None and host.nbytes > self.room:
            raise OutOfMemoryError(f"Out of memory allocating {host.nbytes:,} bytes (allocated so far: 0 bytes).")
        if filled is not None and host.dtype.kind == "f":
            host[...] = filled
        self.allocations += 1
        return FakeArray(host, self)

    def inside(self, value):
        """The NumPy arrays of FakeArrays, wherever these are in lists and tuples."""
        if isinstance(value, FakeArray):
            return value.host
        if isinstance(value, dict):
            return {key: self.inside(v) for key, v in value.items()}
        if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
            return type(value)(self.inside(v) for v in value)
        return value

    def outside(self, value):
        if isinstance(value, tuple | list):
            return type(value)(self.outside(v) for v in value)
        if isinstance(value, np.generic | np.ndarray):
            self.allocations += isinstance(value, np.generic) or value.base is None
            return FakeArray(np.asarray(value), self)
        return value

    def array(self, values, device=None):
        """An array there, for a test."""
        return FakeArray(np.array(values), self, device)

    @contextlib.contextmanager
    def counted(self):
        """What happens in the block: {allocations, waits, copies, launches, products}."""
        before, found = self._counts(), {}
        yield found
        found.update({name: n - before[name] for name, n in self._counts().items()})

    def _counts(self):
        counters = {name: getattr(self, name) for name in ("allocations", "waits", "copies")}
        return {**counters, "launches": len(self.launches), "products": self.xp.products}
