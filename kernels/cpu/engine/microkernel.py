"""The GEMM microkernel, which computes one tile of C = start + A @ B in registers, and the transpose of a block, both as LLVM vector code.

The microkernel keeps a tile of C in registers while it runs over K. For each k it broadcasts a value of A and does one fused multiply-add
an accumulator. Every element of C is one chain of fused multiply-adds in the order of k, whatever the shape of the tile or the width of
the vectors. So neither blocking, nor threads, nor the number of rows, nor the machine changes a bit of the result.

One source serves float32 and float64 and vectors of 512, 256 and 128 bits. All shapes of a tile are one function, compiled once a dtype
and called by its linker symbol.
"""

from functools import lru_cache

import llvmlite.binding
from llvmlite import ir
from numba import from_dtype, types
from numba.core import cgutils
from numba.extending import intrinsic

from .compile import c_function
from .intrinsics import _I32, _I64, Emitter, hide_value, many_registers

# a tile fills the registers: 6 x 2 accumulators, 2 vectors of B and a broadcast are 15 of 16; 8 x 2 of 32 measure no slower than
# 14 x 2, whose row offsets no longer fit the integer registers
ROWS = 8 if many_registers() else 6
VECTORS = 2
# with few rows in all, a wider tile hides the latency of the fused multiply-add: vectors by rows
WIDE = (0, 8, 6, 4) if many_registers() else (0, 8, 4, 3)


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
    a_k, sums = [hide_value(builder, at) for at in rest[: len(a)]], dict(zip(acc, rest[len(a) :], strict=True))
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
    """Compile or load the microkernel of a dtype, and register its symbol with the linker: the function's own, not numba's wrapper's.

    Returns the object that keeps the machine code alive; lru_cache holds it.
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
