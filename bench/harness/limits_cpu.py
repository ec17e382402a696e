"""Measured limits of the processor: float32 FMAs a second with all operands in registers, and bytes a second from memory (triad).

The FMA loop is LLVM IR, so that it holds nothing but its accumulators. They start from different values, or LLVM would merge them into
one; they are summed and returned, or LLVM would drop them.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

_FEATURES = binding.get_host_cpu_features()
LANES = 16 if _FEATURES.get("avx512f") else 8 if _FEATURES.get("avx2") else 4
# latency times ports is 8 to 16 FMAs in flight; 16 registers of AVX2 hold 12 accumulators and the two factors
ACCUMULATORS = 12 if LANES == 8 else 24


@intrinsic
def _fma_chains(typingctx, count, factor, term):
    """acc = acc * factor + term in every lane of every accumulator, `count` times; the sum of them all."""

    def codegen(context, builder, signature, args):
        count, factor, term = args
        scalar, i32, i64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
        vector = ir.VectorType(scalar, LANES)
        module = builder.module
        fma = cgutils.get_or_insert_function(module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{LANES}f32")
        total = cgutils.get_or_insert_function(
            module, ir.FunctionType(scalar, [scalar, vector]), f"llvm.vector.reduce.fadd.v{LANES}f32"
        )

        def splat(value):
            first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(i32, 0))
            return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(i32, LANES), [0] * LANES))

        factor, term = splat(factor), splat(term)
        entry, loop, end = builder.block, builder.append_basic_block("loop"), builder.append_basic_block("end")
        builder.branch(loop)
        builder.position_at_end(loop)
        i = builder.phi(i64)
        accumulators = [builder.phi(vector) for _ in range(ACCUMULATORS)]
        following = [builder.call(fma, [accumulator, factor, term]) for accumulator in accumulators]
        i_next = builder.add(i, ir.Constant(i64, 1))
        builder.cbranch(builder.icmp_signed("<", i_next, count), loop, end)
        i.add_incoming(ir.Constant(i64, 0), entry)
        i.add_incoming(i_next, loop)
        for start, (accumulator, value) in enumerate(zip(accumulators, following, strict=True)):
            accumulator.add_incoming(ir.Constant(vector, [float(start)] * LANES), entry)
            accumulator.add_incoming(value, loop)
        builder.position_at_end(end)
        result = ir.Constant(scalar, 0.0)
        for value in following:
            result = builder.call(total, [result, value])
        return result

    return types.float32(types.int64, types.float32, types.float32), codegen


@njit(nogil=True)
def fma_chains(count, factor, term):
    return _fma_chains(count, factor, term)


@njit(nogil=True, error_model="numpy")
def triad(a, b, c, scale):
    for i in range(a.size):
        a[i] = b[i] + scale * c[i]


def _l3_bytes():
    path = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
    return int(path.read_text().strip().removesuffix("K")) * 1024 if path.exists() else 32 << 20


class Limits:
    """FMA rate and memory bandwidth of `threads` threads at once."""

    def __init__(self, threads):
        self.threads = threads
        self.pool = ThreadPoolExecutor(threads)
        self.arrays = None
        fma_chains(1, np.float32(0.5), np.float32(1))

    def _seconds(self, function, arguments):
        start = time.perf_counter()
        list(self.pool.map(lambda args: function(*args), arguments))
        return time.perf_counter() - start

    def fma(self, count=25_000_000):
        """Floating-point operations a second, two to an FMA; 25 M rounds of the loop take 50 to 80 ms."""
        arguments = [(count, np.float32(0.5), np.float32(1))] * self.threads
        return 2 * LANES * ACCUMULATORS * count * self.threads / self._seconds(fma_chains, arguments)

    def triad(self):
        """Bytes a second of a = b + scale * c, counted as 12 an element (write-allocate traffic left out)."""
        if self.arrays is None:
            share = max(64 << 20, 2 * _l3_bytes()) // 4 // self.threads
            self.arrays = [[np.ones(share, np.float32) for _ in "abc"] for _ in range(self.threads)]
            self.triad()
        arguments = [(*arrays, np.float32(3)) for arrays in self.arrays]
        return 12 * sum(a.size for a, _, _ in self.arrays) / self._seconds(triad, arguments)
