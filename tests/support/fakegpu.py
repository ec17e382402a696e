"""A GPU without a GPU: arrays as strict as CuPy's over NumPy's memory, a module of them, and an executor that runs kernels over them.

A FakeArray is no NumPy array and does not become one: NumPy's functions take it only together with others of its kind, as CuPy's
arrays have it, so that code which would move an array to the host unasked, or mix the two, fails here as it would there. Waiting for the
device and making memory are counted.
"""

import contextlib
import ctypes
import operator
import weakref
from collections import Counter
from types import SimpleNamespace

import numpy as np
from emulation import Emulator
from numpy.lib.mixins import NDArrayOperatorsMixin

from fastgrad.kernels.cuda.engine.device import GPU
from fastgrad.kernels.types import Watch


class OutOfMemoryError(MemoryError):
    """As CuPy's."""


class FakeArray(NDArrayOperatorsMixin):
    """An array on a fake GPU."""

    def __init__(self, host, gpu, device=None, base=None):
        # a view holds what it is a view of
        self.host, self.gpu, self.base = host, gpu, base
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
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.data.ptr, False),
            "strides": self.strides,
            "version": 3,
        }

    def __dlpack_device__(self):
        return 2, self.device.id

    def __dlpack__(self, **options):
        return self

    def __array__(self, *arguments, **options):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        if any(isinstance(a, np.ndarray) for a in inputs):
            raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        return self.gpu.module._call(getattr(ufunc, method), *inputs, **options)

    def __array_function__(self, function, types, arguments, options):
        return self.gpu.module._call(function, *arguments, **options)

    def __deepcopy__(self, memo):
        return self._view(self.host.copy())

    def get(self):
        """The values, once the device has them."""
        self.gpu.waited()
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
        if any(isinstance(k, FakeArray) for k in (key if isinstance(key, tuple) else (key,))):
            return self.gpu.module._call(operator.getitem, self, key)
        found = self.host[key]
        # an element is a view too
        return self._view(
            self.host[(*key, ...) if isinstance(key, tuple) else (key, ...)] if found.ndim == 0 else found
        )

    def __setitem__(self, key, value):
        if isinstance(value, np.ndarray):
            # CuPy copies from the host into a whole array of the same type alone
            assert key in (..., slice(None)), "part of an array cannot be set from the host"
            assert value.dtype == self.dtype, "an array of another type cannot be set from the host"
            self.gpu.copied()
        to, key, value = self.host, self.gpu.inside(key), self.gpu.inside(value)
        self.gpu.done(lambda: operator.setitem(to, key, value))

    def _view(self, host):
        return FakeArray(np.asarray(host), self.gpu, self.device.id, self)

    def __getattr__(self, name):
        if name.startswith("__") or not callable(getattr(np.ndarray, name, None)):
            raise AttributeError(f"'ndarray' object has no attribute {name!r}")
        return lambda *arguments, **options: self.gpu.module._call(
            operator.methodcaller(name, *self.gpu.inside(arguments), **self.gpu.inside(options)), self
        )


def _outputs(options):
    out = options.get("out")
    return out if isinstance(out, tuple) else () if out is None else (out,)


class _Memory:
    """What lies where an interface says, for NumPy."""

    def __init__(self, said, owner):
        self.__array_interface__, self.owner = said, owner


class FakeEvent:
    """What a stream had done and waited for when it was recorded: {stream: how many steps of it}."""

    def __init__(self, disable_timing=False):
        self.seen = {}

    @property
    def ptr(self):
        return self


class FakeStream:
    """A stream; what it was given is known by numbers, those of its own steps and of others' that it has waited for."""

    def __init__(self, gpu, ptr):
        self.gpu, self.ptr, self.seen = gpu, ptr, Counter()

    def is_capturing(self):
        return self.gpu.capturing and self is self.gpu.stream

    def work(self):
        """Give it a step; {stream: how many steps of it} come before and with this one."""
        self.seen[self.ptr] += 1
        return dict(self.seen)

    def record(self, event=None):
        event = event or FakeEvent()
        self.gpu.events += 1
        event.seen = dict(self.seen)
        return event

    def wait_event(self, event):
        # the most of each
        self.seen |= Counter(event.seen)

    def __enter__(self):
        self._before, self.gpu.stream = self.gpu.stream, self
        return self

    def __exit__(self, *error):
        self.gpu.stream = self._before

    def synchronize(self):
        self.gpu.waited()

    def begin_capture(self):
        self.gpu.capturing, self.gpu.captured, self.gpu.kept = True, [], []

    def end_capture(self):
        self.gpu.capturing, steps, kept = False, self.gpu.captured, self.gpu.kept

        def launch():
            # products know addresses alone
            assert kept is not None
            with np.errstate(all="ignore"):
                for step in steps:
                    step()

        return SimpleNamespace(launch=launch)


class FakeDevice(contextlib.nullcontext):
    compute_capability, cublas_handle = "90", 17

    def __init__(self, gpu):
        super().__init__()
        self.id, self.synchronize = gpu.current, gpu.waited


class FakeCublas:
    """The routines of the C library that are called by address, with its types. `products`: what they were asked for."""

    def __init__(self, done):
        self.done, self.products, self.set = done, 0, []
        address, integer, step, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_longlong, ctypes.c_size_t
        self.cublasSetStream_v2 = ctypes.CFUNCTYPE(integer, address, address)(self._set)
        self.cublasSetWorkspace_v2 = ctypes.CFUNCTYPE(integer, address, address, size)(self._set)
        for char, scalar in (("S", ctypes.c_float), ("D", ctypes.c_double)):
            number, matrix = ctypes.POINTER(scalar), (address, integer)
            begin, batch = (integer, address, *[integer] * 5, number), (*matrix, step)
            one, many = (
                lambda *given, scalar=scalar, wide=wide: self._gemm(scalar, wide, *given) for wide in (False, True)
            )
            gemm = ctypes.CFUNCTYPE(*begin, *matrix, *matrix, number, *matrix)(one)
            gemms = ctypes.CFUNCTYPE(*begin, *batch, *batch, number, *batch, integer)(many)
            setattr(self, f"cublas{char}gemm_v2", gemm)
            setattr(self, f"cublas{char}gemmStridedBatched", gemms)

    def _set(self, handle, *given):
        self.set.append((handle, *given))
        return 0

    def _gemm(self, scalar, wide, handle, turn_a, turn_b, m, n, k, alpha, *rest):
        assert (handle, alpha[0], rest[6 if wide else 4][0]) == (FakeDevice.cublas_handle, 1, 0)
        parts = 3 if wide else 2
        count = rest[-1] if wide else 1
        given = rest[:parts], rest[parts : 2 * parts], rest[2 * parts + 1 : 3 * parts + 1]
        shapes = ((k, m) if turn_a else (m, k)), ((n, k) if turn_b else (k, n)), (m, n)
        a, b, c = (self._columns(scalar, count, shape, *g) for shape, g in zip(shapes, given, strict=True))
        self.products += 1
        self.done(lambda: np.matmul(a.swapaxes(1, 2) if turn_a else a, b.swapaxes(1, 2) if turn_b else b, out=c))
        return 0

    @staticmethod
    def _columns(scalar, count, shape, address, leading, step=0):
        """(count, *shape) with columns that lie together, as BLAS has them."""
        assert leading >= max(1, shape[0])
        size = (count - 1) * step + (shape[1] - 1) * leading + shape[0]
        values, itemsize = np.ctypeslib.as_array((scalar * size).from_address(address)), ctypes.sizeof(scalar)
        strides = step * itemsize, itemsize, leading * itemsize
        return np.lib.stride_tricks.as_strided(values, (count, *shape), strides)


class FakeModule:
    """cupy, as far as it is used."""

    float32, float64, int64, uint8, bool_ = np.float32, np.float64, np.int64, np.uint8, np.bool_

    def __init__(self, gpu):
        self._gpu = gpu
        self.ndarray, self.products = FakeArray, 0
        self.cuda = SimpleNamespace(
            memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            get_current_stream=lambda: gpu.stream,
            Event=FakeEvent,
            runtime=SimpleNamespace(
                eventRecord=lambda event, ptr: gpu.stream_at(ptr).record(event),
                streamWaitEvent=lambda ptr, event: gpu.stream_at(ptr).wait_event(event),
                getDevice=lambda: gpu.current,
                getDeviceProperties=lambda number: {"name": b"fake GPU"},
            ),
            Device=lambda number=None: FakeDevice(gpu),
            set_allocator=lambda allocator: None,
            MemoryPool=lambda: SimpleNamespace(malloc=gpu.new_pool),
            using_allocator=lambda malloc: contextlib.nullcontext(malloc()),
            Stream=lambda non_blocking: gpu.new_stream(),
        )

    def __getattr__(self, name):
        function = getattr(np, name)
        return lambda *arguments, **options: self._call(function, *arguments, **options)

    def _call(self, function, *arguments, **options):
        for a in [*arguments, *options.values()]:
            if isinstance(a, np.ndarray):
                raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        bases = [a for a in [*arguments, *_outputs(options)] if isinstance(a, FakeArray)]
        arguments, options = self._gpu.inside(arguments), self._gpu.inside(options)
        with np.errstate(all="ignore"):
            found = function(*arguments, **options)
        given = [*arguments, *options.values(), *_outputs(options)]
        # written in place, or as it was
        same = any(found is a for a in given)
        result = FakeArray(found, self._gpu) if same else self._gpu.outside(found)
        for part in result if isinstance(result, list | tuple) else [result]:
            if isinstance(part, FakeArray):
                part.base = [a for a in bases if np.may_share_memory(a.host, part.host)]
        if isinstance(result, FakeArray):
            self._gpu.done(lambda: np.copyto(result.host, function(*arguments, **options)), run=False)
        return result

    def asarray(self, value, dtype=None):
        if isinstance(value, FakeArray):
            return value if dtype is None else value.astype(dtype)
        if hasattr(value, "__cuda_array_interface__"):
            said = value.__cuda_array_interface__
            if said.get("stream") is not None:
                self._gpu.waits += 1
            memory = _Memory({**said, "data": (said["data"][0], False)}, value)
            return FakeArray(np.asarray(memory), self._gpu)
        self._gpu.copied()
        return self._gpu.made(np.array(value, dtype))

    array = asarray

    def from_dlpack(self, value):
        found = value.__dlpack__(stream=self._gpu.stream.ptr or 1)
        return FakeArray(found.host, self._gpu, found.device.id, found)

    def empty(self, shape, dtype=np.float64):
        return self._gpu.made(np.empty(shape, dtype), filled=np.nan)

    def zeros(self, shape, dtype=np.float64):
        found = self._gpu.made(np.zeros(shape, dtype))
        self._gpu.done(lambda: found.host.fill(0), run=False)
        return found

    def matmul(self, a, b, out=None):
        if self._gpu.capturing:
            raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")
        self.products += 1
        return self._call(np.matmul, a, b, out=out)


class FakeGPU(Emulator):
    """An executor: kernels run as emulated, over FakeArrays alone."""

    def __init__(self):
        super().__init__()
        # by their pointers, of which 0 and 1 are the default one's; `steps`: what each step that was given to one came after
        self._streams, self.steps, self.events = {}, [], 0
        self.stream = self.stream_at(0)
        self.xp = self.module = FakeModule(self)
        self.current = 0
        # bytes that can be made, times memory was made, values were waited for, and were copied there
        self.room, self.allocations, self.waits, self.copies = None, 0, 0, 0
        # while a graph is captured what it does, and the sizes of what the pool has
        self.capturing, self.captured, self.kept, self._pool = False, [], [], Counter()
        self._lists = {}

    def address(self, array):
        return array.data.ptr

    def device_number(self):
        return self.current

    def queue(self):
        return self.current, self.stream.ptr

    def stream_at(self, ptr):
        return self._streams.setdefault(ptr or 1, FakeStream(self, ptr))

    def new_stream(self):
        return self.stream_at(100 + len(self._streams))

    def launch(self, kernel, dtype, grid, arguments):
        for a in arguments:
            assert not isinstance(a, np.ndarray), f"{kernel.name} was given an array of the host"
        given = self.inside(arguments)
        self.done(lambda: Emulator.launch(self, kernel, dtype, grid, given))

    # the real one, over all that it needs of CuPy
    record = GPU.record

    def cublas(self):
        return FakeCublas(self.done)

    def new_pool(self):
        self._pool.clear()

    def done(self, step, run=True):
        """Run a step of the device's; where a graph is captured it is kept instead."""
        self.steps.append((self.stream, self.stream.work()))
        if self.capturing:
            self.captured.append(step)
        elif run:
            step()

    def waited(self):
        assert not self.capturing, "a graph cannot wait"
        self.waits += 1

    def copied(self):
        assert not self.capturing, "a graph cannot copy from the host"
        self.copies += 1

    def made(self, host, filled=None):
        if self.room is not None and host.nbytes > self.room:
            raise OutOfMemoryError(f"Out of memory allocating {host.nbytes:,} bytes (allocated so far: 0 bytes).")
        if filled is not None and host.dtype.kind == "f":
            host[...] = filled
        self._allocated(host)
        return FakeArray(host, self)

    def _allocated(self, host):
        if self.capturing:
            assert self._pool[host.nbytes] > 0, f"a graph cannot make memory: {host.nbytes} bytes that the pool has not"
            self._pool[host.nbytes] -= 1
            self.kept.append(host)
        self.allocations += 1
        # a view holds its base
        weakref.finalize(host, self._freed, host.nbytes)

    def _freed(self, size):
        self._pool[size] += 1

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
            whole = np.asarray(value)
            if isinstance(value, np.generic) or value.base is None:
                self._allocated(whole)
            return FakeArray(whole, self)
        return value

    def array(self, values, device=None):
        """An array there, for a test."""
        return FakeArray(np.array(values), self, device)

    def over(self, host):
        """An array there over this one's memory, as it lies."""
        return FakeArray(host, self)

    @contextlib.contextmanager
    def counted(self):
        """What happens in the block: {allocations, waits, copies, launches, products}."""
        before, found = self._counts(), {}
        yield found
        found.update({name: n - before[name] for name, n in self._counts().items()})

    def _counts(self):
        counters = {name: getattr(self, name) for name in ("allocations", "waits", "copies")}
        return {**counters, "launches": len(self.launches), "products": self.module.products}


class HostKernels:
    """The CUDA backend with the compiled kernels of the host in the place of its own: for what trains too long to be emulated.

    Arrays come from the GPU and stay there, and a step's status and the sums of a loss are its arrays, as in kernels/cuda.
    """

    def __init__(self, gpu):
        from fastgrad.kernels import cpu, cuda

        self._gpu, self._kernels = gpu, cpu
        self.are_uniform, self.__all__, self.__name__ = cuda.are_uniform, cuda.__all__, cuda.__name__
        self.calls = 0

    def __getattr__(self, name):
        function = getattr(self._kernels, name)

        def call(*arguments, **named):
            self.calls += 1
            found = function(*map(self._inside, arguments), **{key: self._inside(a) for key, a in named.items()})
            on_gpu = "dense_chain_gradients", "dense_chain_step", "loss_gradient", "update_arrays"
            return self._gpu.array(found) if name in on_gpu else found

        return call

    def _inside(self, value):
        if isinstance(value, Watch):
            return Watch(value.bands, self._inside(value.rows), value.every)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(self._inside, value))
        return self._gpu.inside(value)
