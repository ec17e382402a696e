"""Measured limits of the GPU: float32 operations a second of a cuBLAS product, and bytes a second of a copy in its memory."""

import time

import numpy as np

from fastgrad.core import device as gpu

SIDE = 4096  # of the matrices
COPIED = 1 << 28  # values


class Limits:
    """Product rate and memory bandwidth. They take no threads."""

    def __init__(self, threads):
        self.xp = gpu.cuda_device().xp
        self.arrays = {}

    def _seconds(self, name, shape, function):
        """Of a call over three arrays, which stay; a first one is not counted."""
        if name not in self.arrays:
            self.arrays[name] = [self.xp.zeros(shape, np.float32) for _ in "abc"]
            function(*self.arrays[name])
        device = self.xp.cuda.Device()
        device.synchronize()
        start = time.perf_counter()
        function(*self.arrays[name])
        device.synchronize()
        return time.perf_counter() - start

    def fma(self):
        return 2 * SIDE**3 / self._seconds("fma", (SIDE, SIDE), lambda a, b, c: self.xp.matmul(a, b, out=c))

    def triad(self):
        """Each value is read and written."""

        def copy(a, b, _):
            b[...] = a

        return 8 * COPIED / self._seconds("triad", COPIED, copy)

    def name(self):
        runtime = self.xp.cuda.runtime
        return runtime.getDeviceProperties(runtime.getDevice())["name"].decode()
