"""Matrix products on a stream that a CUDA graph records: CuPy does not call cuBLAS on such a stream (its issue 6290).

cuBLAS is called by ctypes, with CuPy's own handle. It takes matrices in column order, so y = a @ b is requested as y^T = b^T a^T, and an
operand in row order is "not transposed" for cuBLAS.
"""

import ctypes

import numpy as np

POINTER, SIZE, LONG = ctypes.c_void_p, ctypes.c_int, ctypes.c_longlong
SCALARS = {"f": ctypes.c_float, "d": ctypes.c_double}
# bytes of scratch memory that cuBLAS wants, from this major compute capability on
WORKSPACES = {9: 32 << 20, 0: 4 << 20}
ROWS, COLUMNS = 0, 1


def library():
    """cuBLAS, as CuPy loads it."""
    from cuda import pathfinder

    return ctypes.CDLL(pathfinder.load_nvidia_dynamic_lib("cublas").abs_path)


class Products:
    """matmul(a, b, out=None) of matrices, or of as many in each operand, on a stream; all else is CuPy's, xp."""

    def __init__(self, xp, stream, library):
        self.xp, self.stream, self.library = xp, stream, library
        device = xp.cuda.Device()
        self.handle = device.cublas_handle
        capability = int(device.compute_capability[:-1])
        size = next(size for least, size in WORKSPACES.items() if capability >= least)
        # what cuBLAS has itself may be at work elsewhere when a graph runs
        self.workspace = xp.empty(size, np.uint8)

    def __getattr__(self, name):
        return getattr(self.xp, name)

    def matmul(self, a, b, out=None):
        if out is None:
            out = self.xp.empty((*a.shape[:-1], b.shape[-1]), a.dtype)
        y = out if _order(out)[0] == ROWS else self.xp.empty(out.shape, out.dtype)
        if not a.shape[-1]:
            y[...] = 0
        elif y.size:
            self._gemm(_readable(a), _readable(b), y)
        if y is not out:
            out[...] = y
        return out

    def _gemm(self, a, b, y):
        char, (m, n), k = y.dtype.char, y.shape[-2:], a.shape[-1]
        scalar = SCALARS[char]
        (order_a, ld_a), (order_b, ld_b), (_, ld_y) = map(_order, (a, b, y))
        self._call("cublasSetStream_v2", [POINTER], self.stream.ptr)
        self._call("cublasSetWorkspace_v2", [POINTER, ctypes.c_size_t], self.workspace.data.ptr, self.workspace.nbytes)
        one, zero = (ctypes.byref(scalar(value)) for value in (1, 0))
        sizes = order_b, order_a, n, m, k, one
        if y.ndim == 2:
            types = [SIZE] * 5 + [POINTER] + [POINTER, SIZE] * 2 + [POINTER] + [POINTER, SIZE]
            operands = b.data.ptr, ld_b, a.data.ptr, ld_a, zero, y.data.ptr, ld_y
            self._call(f"cublas{char.replace('f', 's').upper()}gemm_v2", types, *sizes, *operands)
        else:
            types = [SIZE] * 5 + [POINTER] + [POINTER, SIZE, LONG] * 2 + [POINTER] + [POINTER, SIZE, LONG, SIZE]
            step_a, step_b, step_y = (array.strides[0] // array.itemsize for array in (a, b, y))
            operands = b.data.ptr, ld_b, step_b, a.data.ptr, ld_a, step_a, zero, y.data.ptr, ld_y, step_y, len(y)
            self._call(f"cublas{char.replace('f', 's').upper()}gemmStridedBatched", types, *sizes, *operands)

    def _call(self, name, types, *arguments):
        function = getattr(self.library, name)
        function.argtypes = [POINTER, *types]
        if status := function(self.handle, *arguments):
            raise RuntimeError(f"{name} failed with cuBLAS status {status}")


def _order(x):
    """(ROWS or COLUMNS, the leading dimension) of a matrix's values in memory, or (None, 0) where neither lies together."""
    (n, m), (row_step, column_step) = x.shape[-2:], (s // x.itemsize for s in x.strides[-2:])
    if (column_step == 1 or m == 1) and (n == 1 or row_step >= m):
        return ROWS, row_step if n > 1 else m
    if (row_step == 1 or n == 1) and (m == 1 or column_step >= n):
        return COLUMNS, column_step if m > 1 else n
    return None, 0


def _readable(x):
    return x if _order(x)[0] is not None else x.copy(order="C")
