"""Vector code that LLVM does not find by itself: the GEMM microkernel and a block transpose, as Numba intrinsics.

The microkernel keeps a tile of C in registers while it runs over K, one broadcast of A and one fused multiply-add an
accumulator. Every element of C is one chain of fused multiply-adds in the order of k, whatever the tile's shape or the vectors'
width, so neither blocking, nor threads, nor the number of rows, nor the machine changes a bit of the result.
One source serves float32 and float64 and vectors of 512, 256 and 128 bits.
"""

import os
import platform
from functools import lru_cache

import llvmlite.binding
from llvmlite import ir
from numba import from_dtype, types
from numba.core import cgutils
from numba.extending import intrinsic

from .jit import c_function, compiled

_I1, _I32, _I64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)


@lru_cache
def vector_bits() -> int:
    """Width of the vectors in use: FASTGRAD_VECTOR_BITS, or what the processor has."""
    forced = os.environ.get("FASTGRAD_VECTOR_BITS")
    if forced:
        if forced not in ("128", "256", "512"):
            raise ValueError(f"FASTGRAD_VECTOR_BITS must be 128, 256 or 512, got {forced!r}")
        return int(forced)
    features = llvmlite.binding.get_host_cpu_features()
    return 512 if features.get("avx512f") else 256 if features.get("avx2") else 128


def many_registers() -> bool:
    return vector_bits() == 512 or platform.machine() in ("aarch64", "arm64")


# a tile fills the registers: 6 x 2 accumulators, 2 vectors of B and a broadcast are 15 of 16; 8 x 2 of 32 measure no slower than
# 14 x 2, whose row offsets no longer fit the integer registers
ROWS = 8 if many_registers() else 6
VECTORS = 2
# with few rows in all, a wider tile hides the latency of the fused multiply-add: vectors by rows
WIDE = (0, 8, 6, 4) if many_registers() else (0, 8, 4, 3)


def _lanes(dtype) -> int:
    return vector_bits() // dtype.bitwidth


def _vector(context, dtype):
    return ir.VectorType(context.get_value_type(dtype), _lanes(dtype))


@intrinsic
def lanes(typingctx, pointer):
    """Values in one vector, a constant."""

    def codegen(context, builder, signature, args):
        return ir.Constant(_I64, _lanes(signature.args[0].dtype))

    return types.int64(pointer), codegen


@intrinsic
def pointer(typingctx, address, like):
    """An address as a pointer of `like`'s kind."""

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return like(types.int64, like), codegen


@intrinsic
def address(typingctx, array):
    """Address of an array's first value."""

    def codegen(context, builder, signature, args):
        return builder.ptrtoint(context.make_array(signature.args[0])(context, builder, args[0]).data, _I64)

    return types.int64(array), codegen


@compiled
def address_or_null(array):
    """Address of an array, null for an empty one, as which None comes to drivers: see jit's given."""
    return address(array) if array.size else 0


@intrinsic
def address_at(typingctx, pointer):
    """A pointer as an address."""

    def codegen(context, builder, signature, args):
        return builder.ptrtoint(args[0], _I64)

    return types.int64(pointer), codegen


@intrinsic
def data(typingctx, array):
    """Pointer to an array's first value."""

    def codegen(context, builder, signature, args):
        return context.make_array(signature.args[0])(context, builder, args[0]).data

    return types.CPointer(array.dtype)(array), codegen


@intrinsic
def advance(typingctx, pointer, count):
    """pointer + count values."""

    def codegen(context, builder, signature, args):
        return builder.gep(args[0], [args[1]])

    return pointer(pointer, types.int64), codegen


@intrinsic
def copy(typingctx, count, source, target):
    """Copy values; a constant count becomes vector moves, another one a call of memcpy."""

    def codegen(context, builder, signature, args):
        count, source, target = args
        cgutils.raw_memcpy(builder, target, source, count, signature.args[1].dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(types.int64, source, source), codegen


@intrinsic
def unseen(typingctx, pointer):
    """The pointer, without LLVM's knowing that it is the same.

    Where a loop leaves some values as they are, in place, it would make masked stores, which AMD's cores take 14 cycles for.
    """

    def codegen(context, builder, signature, args):
        return opaque(builder, args[0])

    return pointer(pointer), codegen


@intrinsic
def prefetch(typingctx, pointer):
    """Have the cache fetch what lies there."""

    def codegen(context, builder, signature, args):
        place = builder.bitcast(args[0], ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [place.type, _I32, _I32, _I32])
        fetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(fetch, [place, _I32(0), _I32(3), _I32(1)])
        return context.get_dummy_value()

    return types.void(pointer), codegen


@intrinsic
def is_null(typingctx, pointer):
    def codegen(context, builder, signature, args):
        return builder.icmp_unsigned("==", builder.ptrtoint(args[0], _I64), ir.Constant(_I64, 0))

    return types.boolean(pointer), codegen


@intrinsic
def real(typingctx, value, like):
    """A number in the dtype of the scalar `like`, so that a float32 formula stays float32."""

    def codegen(context, builder, signature, args):
        return context.cast(builder, args[0], signature.args[0], signature.return_type)

    return like(value, like), codegen


@intrinsic
def magnitude(typingctx, value):
    """The bits of |value| as an integer: of values that are no NaN they have the order."""

    def codegen(context, builder, signature, args):
        width = signature.args[0].bitwidth
        bits = builder.bitcast(args[0], ir.IntType(width))
        bits = builder.and_(bits, ir.Constant(bits.type, (1 << (width - 1)) - 1))
        return bits if width == 64 else builder.zext(bits, _I64)

    return types.int64(value), codegen


@intrinsic
def void_pointer(typingctx, address):
    """An address as numba.carray takes it."""

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), codegen


@intrinsic
def call(typingctx, function, a, b, job):
    """Call the C function at an address with two integers and a job, an array of one record or its address.

    A kernel takes its fourth argument, a null, for its type only. A driver launches with run_kernel instead.
    """

    def codegen(context, builder, signature, args):
        _emit_call(context, builder, signature.args[3], *args)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, job), codegen


@intrinsic
def run_kernel(typingctx, launcher, function, parts, job, keep):
    """Run the kernel at `function` over its parts by the launcher. keep: a tuple of the arrays whose addresses the job has.

    Numba frees an array after its last use, and an address is no use. So each array that a driver has made itself, and that a kernel
    reads or writes, is an argument of the launch. What the driver was given is held by whoever gave it.
    """

    def codegen(context, builder, signature, args):
        launcher, function, parts, job, _ = args
        _emit_call(context, builder, signature.args[3], launcher, function, parts, job)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, job, keep), codegen


def _emit_call(context, builder, job_type, function, a, b, job):
    if isinstance(job_type, types.Array):
        job = builder.ptrtoint(context.make_array(job_type)(context, builder, job).data, _I64)
    kind = ir.FunctionType(ir.VoidType(), [_I64] * 4)
    builder.call(builder.inttoptr(function, kind.as_pointer()), [a, b, job, ir.Constant(_I64, 0)])


def _stack_array(n, kind, zeroed):
    result = types.Array(kind.dtype, 1, "C")

    def codegen(context, builder, signature, args):
        data_type = context.get_data_type(result.dtype)
        size = context.get_abi_sizeof(data_type)
        words = (n.literal_value * size + 7) // 8
        # in the entry block: in a loop each turn would take more of the stack
        with builder.goto_entry_block():
            place = builder.alloca(ir.ArrayType(_I64, words))
        if zeroed:
            cgutils.memset(builder, builder.bitcast(place, ir.IntType(8).as_pointer()), _I64(8 * words), 0)
        array = context.make_array(result)(context, builder)
        place = builder.bitcast(place, data_type.as_pointer())
        sizes = {"shape": [_I64(n.literal_value)], "strides": [_I64(size)], "itemsize": _I64(size)}
        context.populate_array(array, data=place, meminfo=None, **sizes)
        return array._getvalue()

    return result(n, kind), codegen


@intrinsic(prefer_literal=True)
def local(typingctx, n, kind):
    """An array of n values, a small literal number, of a dtype or of a pointer's; uninitialised.

    It lies on the stack: it lives until the compiled function that asks for it returns, whatever is done with its address, and there
    is nothing that could fail to be allocated, which a kernel could tell nobody.
    """
    return _stack_array(n, kind, False)


@intrinsic(prefer_literal=True)
def local_zeros(typingctx, n, kind):
    """The same, of zeros."""
    return _stack_array(n, kind, True)


def opaque(builder, value):
    """The value itself, of which LLVM knows nothing."""
    return builder.asm(ir.FunctionType(value.type, [value.type]), "", "=r,0", [value], side_effect=False)


class Emitter:
    """Short names for the instructions that the microkernel and the transpose are made of."""

    def __init__(self, context, builder, dtype):
        self.builder, self.width = builder, _lanes(dtype)
        self.scalar, self.vector = context.get_value_type(dtype), _vector(context, dtype)
        self.suffix = f"v{self.width}f{dtype.bitwidth}"
        self.bytes = dtype.bitwidth // 8

    def call(self, name, result, *args):
        kind = ir.FunctionType(result, [a.type for a in args])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), args)

    def at(self, pointer, offset):
        return self.builder.gep(pointer, [offset if isinstance(offset, ir.Value) else ir.Constant(_I64, offset)])

    def load(self, pointer, mask=None):
        where = self.builder.bitcast(pointer, self.vector.as_pointer())
        if mask is None:
            value = self.builder.load(where)
            value.align = self.bytes
            return value
        zero = ir.Constant(self.vector, [0.0] * self.width)
        name = f"llvm.masked.load.{self.suffix}.p0"
        return self.call(name, self.vector, where, ir.Constant(_I32, self.bytes), mask, zero)

    def store(self, value, pointer):
        where = self.builder.bitcast(pointer, value.type.as_pointer())
        self.builder.store(value, where).align = self.bytes

    def store_first(self, count, values, pointers):
        """The first `count` lanes of each vector, a half, a quarter and so on at a time: a masked store takes AMD's cores 14 cycles."""
        builder, undefined = self.builder, ir.Constant(self.vector, ir.Undefined)
        piece = self.width
        while piece:
            before, store, after = (
                builder.block,
                builder.append_basic_block("store"),
                builder.append_basic_block("stored"),
            )
            builder.cbranch(builder.trunc(builder.lshr(count, _I64(piece.bit_length() - 1)), _I1), store, after)
            builder.position_at_end(store)
            # the piece's own lanes, and those that move into their place
            lanes = list(range(piece)), [min(lane + piece, self.width - 1) for lane in range(self.width)]
            low, rest = (ir.Constant(ir.VectorType(_I32, len(of)), of) for of in lanes)
            moved = []
            for value, pointer in zip(values, pointers, strict=True):
                self.store(builder.shuffle_vector(value, undefined, low), pointer)
                moved.append((builder.shuffle_vector(value, undefined, rest), self.at(pointer, piece)))
            builder.branch(after)
            builder.position_at_end(after)
            merged = []
            for old, new in zip([*values, *pointers], [*(v for v, _ in moved), *(p for _, p in moved)], strict=True):
                merged.append(builder.phi(old.type))
                merged[-1].add_incoming(old, before)
                merged[-1].add_incoming(new, store)
            values, pointers = merged[: len(values)], merged[len(values) :]
            piece //= 2

    def splat(self, value):
        one = ir.VectorType(value.type, self.width)
        lane0 = self.builder.insert_element(ir.Constant(one, ir.Undefined), value, ir.Constant(_I32, 0))
        zeros = ir.Constant(ir.VectorType(_I32, self.width), [0] * self.width)
        return self.builder.shuffle_vector(lane0, ir.Constant(one, ir.Undefined), zeros)

    def first(self, count):
        """Mask of the first `count` lanes."""
        index = ir.Constant(ir.VectorType(_I32, self.width), list(range(self.width)))
        return self.builder.icmp_signed("<", index, self.splat(self.builder.trunc(count, _I32)))

    def fma(self, a, b, c):
        return self.call(f"llvm.fma.{self.suffix}", self.vector, a, b, c)


def _emit_products(emit, masks, unroll, count, a, a_rows, a_step, b, b_step, acc):
    """acc += A @ B over `count` blocks of `unroll` k. a: a pointer for every three rows, so that the address of each row is a pointer and
    at most two strides; steps may be constants. Returns a, b and acc behind the last block; ends in the block after the loop.
    """
    builder = emit.builder
    zero, one = ir.Constant(_I64, 0), ir.Constant(_I64, 1)
    before, loop, after = builder.block, builder.append_basic_block("k"), builder.append_basic_block("k.done")
    builder.cbranch(builder.icmp_signed("<", zero, count), loop, after)

    builder.position_at_end(loop)
    first = [zero, b, *a, *acc.values()]
    phis = [builder.phi(value.type) for value in first]
    k, b_k, *rest = phis
    # LLVM would make one chain of additions of all addresses in a loop
    a_k, sums = [opaque(builder, at) for at in rest[: len(a)]], dict(zip(acc, rest[len(a) :], strict=True))
    for _ in range(unroll):
        b_vectors = [emit.load(emit.at(b_k, j * emit.width), mask) for j, mask in enumerate(masks)]
        for i in range(len(acc) // len(masks)):
            broadcast = emit.splat(builder.load(emit.at(a_k[i // 3], a_rows[i % 3])))
            for j in range(len(masks)):
                sums[i, j] = emit.fma(broadcast, b_vectors[j], sums[i, j])
        a_k, b_k = [emit.at(at, a_step) for at in a_k], emit.at(b_k, b_step)
    k_next = builder.add(k, one)
    builder.cbranch(builder.icmp_signed("<", k_next, count), loop, after)
    last = [k_next, b_k, *a_k, *sums.values()]
    for phi, value, again in zip(phis, first, last, strict=True):
        phi.add_incoming(value, before)
        phi.add_incoming(again, loop)

    builder.position_at_end(after)
    results = [builder.phi(value.type) for value in first]
    for phi, value, again in zip(results, first, last, strict=True):
        phi.add_incoming(value, before)
        phi.add_incoming(again, loop)
    _, b, *rest = results
    return rest[: len(a)], b, dict(zip(acc, rest[len(a) :], strict=True))


def _emit_tile(emit, rows, vectors, masked, arguments):
    """C[rows, columns] = start + A @ B in registers; branches to nowhere: ends in the block after its stores."""
    columns, K, a, a_row, a_col, b, b_row, start, start_row, c, c_row = arguments
    builder, width = emit.builder, emit.width
    tile = [(i, j) for i in range(rows) for j in range(vectors)]
    beyond = builder.sub(columns, ir.Constant(_I64, (vectors - 1) * width))
    mask = emit.first(beyond) if masked else None
    masks = [None] * (vectors - 1) + [mask]
    a_rows = [builder.mul(a_row, ir.Constant(_I64, i)) for i in range(3)]

    entry = builder.block
    preload, begin = builder.append_basic_block("preload"), builder.append_basic_block("begin")
    zero = ir.Constant(emit.vector, [0.0] * width)
    builder.cbranch(builder.icmp_unsigned("==", builder.ptrtoint(start, _I64), ir.Constant(_I64, 0)), begin, preload)

    builder.position_at_end(preload)
    start_at = [emit.at(start, builder.mul(start_row, ir.Constant(_I64, i))) for i in range(rows)]
    loaded = {(i, j): emit.load(emit.at(start_at[i], j * width), masks[j]) for i, j in tile}
    builder.branch(begin)

    builder.position_at_end(begin)
    acc = {}
    for ij in tile:
        acc[ij] = builder.phi(emit.vector)
        acc[ij].add_incoming(zero, entry)
        acc[ij].add_incoming(loaded[ij], preload)
    a_k, b_k = [emit.at(a, builder.mul(a_row, ir.Constant(_I64, i))) for i in range(0, rows, 3)], b
    # four k at a time where A lies in rows or in columns, with constants for its strides there: a sixth fewer instructions
    for unit, strides, step in ((a_col, a_rows, 1), (a_row, range(3), a_col)) if not masked else ():
        usual = builder.icmp_signed("==", unit, ir.Constant(_I64, 1))
        blocks = builder.select(usual, builder.ashr(K, ir.Constant(_I64, 2)), ir.Constant(_I64, 0))
        a_k, b_k, acc = _emit_products(emit, masks, 4, blocks, a_k, strides, step, b_k, b_row, acc)
        K = builder.sub(K, builder.shl(blocks, ir.Constant(_I64, 2)))
    _, _, acc = _emit_products(emit, masks, 1, K, a_k, a_rows, a_col, b_k, b_row, acc)
    at = {
        (i, j): emit.at(c, builder.add(builder.mul(c_row, ir.Constant(_I64, i)), ir.Constant(_I64, j * width)))
        for i, j in tile
    }
    partial = [ij for ij in tile if masks[ij[1]]]
    for ij in tile:
        if ij not in partial:
            emit.store(acc[ij], at[ij])
    if partial:
        emit.store_first(beyond, [acc[ij] for ij in partial], [at[ij] for ij in partial])


def _tile_arguments(pointer):
    i8 = types.int64
    return i8, i8, i8, pointer, i8, i8, pointer, i8, pointer, i8, pointer, i8


@intrinsic
def _all_tiles(typingctx, rows, columns, K, a, a_row, a_col, b, b_row, start, start_row, c, c_row):
    """The microkernel, a switch over all shapes of a tile, as a function under its symbol; and a call of it."""

    def codegen(context, builder, signature, args):
        dtype = signature.args[3].dtype
        function = ir.Function(builder.module, ir.FunctionType(ir.VoidType(), [a.type for a in args]), _symbol(dtype))
        builder.call(function, args)
        builder = ir.IRBuilder(function.append_basic_block("entry"))
        emit = Emitter(context, builder, dtype)
        rows, *arguments = function.args
        columns, width = arguments[0], emit.width
        shapes = [(r, v, masked) for r in range(1, ROWS + 1) for v, masked in ((2, False), (2, True), (1, True))]
        shapes += [(r, v, False) for r, v in enumerate(WIDE) if v]
        # case number: 4 * rows + (0: one masked vector, 1: two, the last masked, 2: two full, 3: wide)
        case = builder.shl(rows, ir.Constant(_I64, 2))
        for least in (width + 1, 2 * width, 2 * width + 1):
            beyond = builder.icmp_signed(">=", columns, ir.Constant(_I64, least))
            case = builder.add(case, builder.zext(beyond, _I64))
        end = builder.append_basic_block("end")
        switch = builder.switch(case, end)
        for r, v, masked in shapes:
            block = builder.append_basic_block(f"tile{r}x{v}{'m' if masked else ''}")
            switch.add_case(ir.Constant(_I64, 4 * r + (3 if v > 2 else v - 1 if masked else 2)), block)
            builder.position_at_end(block)
            _emit_tile(emit, r, v, masked, arguments)
            builder.branch(end)
        builder.position_at_end(end)
        builder.ret_void()
        return context.get_dummy_value()

    return types.void(*_tile_arguments(a)), codegen


def _tile(rows, columns, K, a, a_row, a_col, b, b_row, start, start_row, c, c_row):
    _all_tiles(rows, columns, K, a, a_row, a_col, b, b_row, start, start_row, c, c_row)


def _symbol(dtype):
    return f"fastgrad_tile_f{dtype.bitwidth}"


@lru_cache
def provide_microkernel(dtype):
    """Compile or load the microkernel of a dtype, and make it known to the linker: the function itself, not numba's way into it.

    Returns what must be kept as long as it may be called, which the cache of this function does.
    """
    scalar = from_dtype(dtype)
    tile = c_function(_tile, _tile_arguments(types.CPointer(scalar)))
    llvmlite.binding.add_symbol(_symbol(scalar), tile._library.get_pointer_to_function(_symbol(scalar)))
    return tile


@intrinsic
def microkernel(typingctx, rows, columns, K, a, a_row, a_col, b, b_row, start, start_row, c, c_row):
    """C[rows, columns] = start + A @ B, with A[i, k] at a[i * a_row + k * a_col], B[k, j] at b[k * b_row + j], C[i, j] at
    c[i * c_row + j] and start likewise; a null start is zero, start_row = 0 repeats one row (a bias), start may be c.
    rows <= ROWS; columns <= VECTORS * lanes, or exactly WIDE[rows] * lanes.

    It is compiled by itself, once, and called by name: see provide_microkernel.
    """

    def codegen(context, builder, signature, args):
        kind = ir.FunctionType(ir.VoidType(), [a.type for a in args])
        name = _symbol(signature.args[3].dtype)
        builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)
        return context.get_dummy_value()

    return types.void(*_tile_arguments(a)), codegen


@intrinsic
def transpose(typingctx, source, source_row, target, target_row):
    """target[j * target_row + i] = source[i * source_row + j] for a lanes x lanes block, in registers."""
    signature = types.void(source, types.int64, target, types.int64)

    def codegen(context, builder, signature, args):
        source, source_row, target, target_row = args
        emit = Emitter(context, builder, signature.args[0].dtype)
        n = emit.width
        rows = [emit.load(emit.at(source, builder.mul(source_row, ir.Constant(_I64, i)))) for i in range(n)]
        distance = 1
        while distance < n:
            # swap the off-diagonal quarters of every 2 distance x 2 distance block
            low = [lane if not lane & distance else n + lane - distance for lane in range(n)]
            high = [lane + distance if not lane & distance else n + lane for lane in range(n)]
            masks = [ir.Constant(ir.VectorType(_I32, n), lanes) for lanes in (low, high)]
            for i in (i for i in range(n) if not i & distance):
                pair = rows[i], rows[i + distance]
                rows[i], rows[i + distance] = (builder.shuffle_vector(*pair, mask) for mask in masks)
            distance *= 2
        for j in range(n):
            emit.store(rows[j], emit.at(target, builder.mul(target_row, ir.Constant(_I64, j))))
        return context.get_dummy_value()

    return signature, codegen
