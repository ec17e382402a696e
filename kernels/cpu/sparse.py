"""Products with a sparse matrix of types.Nonzeros (CSR), for the first layer of a chain, and the conversion of a dense matrix to Nonzeros.

    z[i] = b + sum over k of x[i, k] w[k]        dw[k] = sum over i of x[i, k] dz[i]        over the x[i, k] that are not 0

Sums run in the order of the dense product, one fused multiply-add a term. So where weights and gradients are finite, and 0 times them adds
nothing, the bits are those of the dense product.

Forward: the sums of a row of z stay in registers while rows of w stream past. Backward: a row of dz stays in registers and is added to
rows of dw in scratch, which is in the second-level cache; each of these rows begins on a cache line. Only rows shorter than a vector are
masked. In longer ones the last vector ends where the row ends, and overlaps the vector before it.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .. import types as names
from .engine.compile import device_function, kernel
from .engine.intrinsics import Emitter, advance, carray, lanes, many_registers, pointer, void_pointer
from .engine.object_memory import address_of
from .engine.thread_pool import launch, thread_range
from .gemm import LONG

_I64 = ir.IntType(64)
# vectors of a row that a loop keeps in registers
MOST = 16 if many_registers() else 8
# values begin on lines of the cache
LINE = 64

# addresses of the arrays of Nonzeros, and of the row numbers of the batch
NONZEROS = np.dtype([(name, "i8") for name in "starts columns values order".split()])
# forward: rows lo..hi of z (out) from w (of) and b, or 0; backward: rows lo..hi of dw (out) from dz (of), over `rows` rows of x. of and
# out are contiguous; scratch: SCRATCH values of gemm.py
SPARSE = np.dtype([(name, "i8") for name in "nonzeros rows lo hi n_out of b out scratch".split()])
COMPRESS = np.dtype([(name, "i8") for name in "x rows row starts columns values".split()])


class _Row:
    """Vectors of a row of so many columns, as it lies and as it lies in scratch, where every vector has its own place."""

    def __init__(self, emit, vectors, columns):
        self.emit, self.columns = emit, columns
        self.mask = emit.first(columns) if vectors == 1 else None
        last = emit.builder.sub(columns, _I64(emit.width)) if vectors > 1 else _I64(0)
        self.places = [*(_I64(j * emit.width) for j in range(vectors - 1)), last]
        self.wide = [_I64(j * emit.width) for j in range(vectors)]

    def load(self, row):
        return [self.emit.load(self.emit.at(row, at), self.mask) for at in self.places]

    def store(self, values, row):
        if self.mask:
            self.emit.store_first(self.columns, values, [row])
            return
        for value, at in zip(values, self.places, strict=True):
            self.emit.store(value, self.emit.at(row, at))

    def load_wide(self, row):
        return [self.emit.load(self.emit.at(row, at)) for at in self.wide]

    def store_wide(self, values, row):
        for value, at in zip(values, self.wide, strict=True):
            self.emit.store(value, self.emit.at(row, at))


def _over(emit, count, body, sums=()):
    """A loop of body(k, sums), which returns new sums, for every k below count; returns the last sums."""
    builder = emit.builder
    before, loop, after = builder.block, builder.append_basic_block("k"), builder.append_basic_block("k.done")
    builder.cbranch(builder.icmp_signed("<", _I64(0), count), loop, after)
    builder.position_at_end(loop)
    first = [_I64(0), *sums]
    phis = [builder.phi(value.type) for value in first]
    again, last = [builder.add(phis[0], _I64(1)), *body(phis[0], phis[1:])], builder.block
    builder.cbranch(builder.icmp_signed("<", again[0], count), loop, after)
    builder.position_at_end(after)
    found = [builder.phi(value.type) for value in first]
    for ins, outs, start, end in zip(phis, found, first, again, strict=True):
        ins.add_incoming(start, before)
        ins.add_incoming(end, last)
        outs.add_incoming(start, before)
        outs.add_incoming(end, last)
    return found[1:]


def _by_vectors(emit, columns, body):
    """body(_Row) for a row of at most MOST vectors."""
    builder, end = emit.builder, emit.builder.append_basic_block("end")
    case = builder.sdiv(builder.add(columns, _I64(emit.width - 1)), _I64(emit.width))
    switch = builder.switch(case, end)
    for vectors in range(1, MOST + 1):
        block = builder.append_basic_block(f"row{vectors}")
        switch.add_case(_I64(vectors), block)
        builder.position_at_end(block)
        body(_Row(emit, vectors, columns))
        builder.branch(end)
    builder.position_at_end(end)


@intrinsic
def add_products(typingctx, columns, count, which, values, w, w_row, start, z):
    """z = start + sum of values[k] w[which[k]], rows of so many columns; a null start is zero."""

    def codegen(context, builder, signature, args):
        columns, count, which, values, w, w_row, start, z = args
        emit = Emitter(context, builder, signature.args[3].dtype)
        given = builder.icmp_unsigned("!=", builder.ptrtoint(start, _I64), _I64(0))

        def body(row):
            entry, zero = builder.block, ir.Constant(emit.vector, [0.0] * emit.width)
            with builder.if_then(given):
                loaded, block = row.load(start), builder.block
            sums = [builder.phi(emit.vector) for _ in loaded]
            for phi, value in zip(sums, loaded, strict=True):
                phi.add_incoming(zero, entry)
                phi.add_incoming(value, block)

            def add(k, sums):
                place = builder.sext(builder.load(emit.at(which, k)), _I64)
                x, of = emit.splat(builder.load(emit.at(values, k))), row.load(emit.at(w, builder.mul(place, w_row)))
                return [emit.fma(x, v, total) for v, total in zip(of, sums, strict=True)]

            row.store(_over(emit, count, add, sums), z)

        _by_vectors(emit, columns, body)
        return context.get_dummy_value()

    i8 = types.int64
    return types.void(i8, i8, which, values, w, i8, start, z), codegen


@intrinsic
def add_to_rows(typingctx, columns, count, which, first, values, dz, scratch):
    """Row which[k] - first of scratch += values[k] dz. Rows of scratch have whole vectors."""

    def codegen(context, builder, signature, args):
        columns, count, which, first, values, dz, scratch = args
        emit = Emitter(context, builder, signature.args[4].dtype)

        def body(row):
            of, width = row.load(dz), _I64(len(row.wide) * emit.width)

            def add(k, _):
                place = builder.sub(builder.sext(builder.load(emit.at(which, k)), _I64), first)
                x, to = emit.splat(builder.load(emit.at(values, k))), emit.at(scratch, builder.mul(place, width))
                row.store_wide([emit.fma(x, d, v) for d, v in zip(of, row.load_wide(to), strict=True)], to)
                return []

            _over(emit, count, add)

        _by_vectors(emit, columns, body)
        return context.get_dummy_value()

    i8 = types.int64
    return types.void(i8, i8, which, i8, values, dz, scratch), codegen


def _out(adds, scratch, to):
    def codegen(context, builder, signature, args):
        columns, count, scratch, to, to_row = args
        emit = Emitter(context, builder, signature.args[2].dtype)

        def body(row):
            def move(k, _):
                of = emit.at(scratch, builder.mul(k, _I64(len(row.wide) * emit.width)))
                place, values = emit.at(to, builder.mul(k, to_row)), row.load_wide(of)
                if adds:
                    # all are read before any is written, so that what two vectors have is added once
                    values = [
                        builder.fadd(before, value) for before, value in zip(row.load(place), values, strict=True)
                    ]
                row.store(values, place)
                return []

            _over(emit, count, move)

        _by_vectors(emit, columns, body)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, scratch, to, types.int64), codegen


@intrinsic
def copy_out(typingctx, columns, count, scratch, to, to_row):
    """Copy `count` rows of so many columns from scratch, where they have whole vectors, to rows at `to`."""
    return _out(False, scratch, to)


@intrinsic
def add_out(typingctx, columns, count, scratch, to, to_row):
    """The same, added to the rows at `to`."""
    return _out(True, scratch, to)


@intrinsic
def integers(typingctx, address):
    """An address as a pointer to int32."""

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.int32)(types.int64), codegen


@device_function
def search(columns, lo, hi, column):
    """The first index from lo on whose column is at least this one; hi if there is none."""
    if lo == hi or carray(advance(columns, lo), 1)[0] >= column:
        return lo
    n = hi - lo
    while n > 1:
        half = n // 2
        lo = lo + half if carray(advance(columns, lo + half), 1)[0] < column else lo
        n -= half
    return lo + 1


@device_function
def forward_rows(product, first, last, like):
    """Rows first..last of z = b + x w."""
    x = carray(void_pointer(product.nonzeros), 1, NONZEROS)[0]
    starts, order = carray(void_pointer(x.starts), 1, np.int64), carray(void_pointer(x.order), last, np.int64)
    for j in range(0, product.n_out, MOST * lanes(like)):
        columns, w = min(MOST * lanes(like), product.n_out - j), advance(pointer(product.of, like), j)
        start = advance(pointer(product.b, like), j) if product.b else like
        for i in range(first, last):
            lo, hi = starts[order[i]], starts[order[i] + 1]
            which, values = advance(integers(x.columns), lo), advance(pointer(x.values, like), lo)
            add_products(
                columns,
                hi - lo,
                which,
                values,
                w,
                product.n_out,
                start,
                advance(pointer(product.out, like), i * product.n_out + j),
            )


@kernel(SPARSE)
def sparse_forward_part(thread_index, thread_count, record, like):
    """Rows lo..hi of z = b + x w."""
    product = carray(record, 1)[0]
    forward_rows(product, product.lo, product.hi, like)


@kernel(SPARSE)
def product_part(thread_index, thread_count, record, like):
    """The thread's rows of z = b + x w."""
    product = carray(record, 1)[0]
    lo, hi = thread_range(thread_index, thread_count, product.rows, 1)
    forward_rows(product, lo, hi, like)


@kernel(SPARSE)
def sparse_gradient_part(thread_index, thread_count, record, like):
    """Rows lo..hi of dw = x^T dz."""
    product = carray(record, 1)[0]
    x = carray(void_pointer(product.nonzeros), 1, NONZEROS)[0]
    starts, order = carray(void_pointer(x.starts), 1, np.int64), carray(void_pointer(x.order), product.rows, np.int64)
    which = integers(x.columns)
    scratch = pointer((product.scratch + LINE - 1) // LINE * LINE, like)
    n = lanes(like)
    for j in range(0, product.n_out, MOST * n):
        columns = min(MOST * n, product.n_out - j)
        clear, out = (
            carray(scratch, (product.hi - product.lo) * ((columns + n - 1) // n * n)),
            pointer(product.out, like),
        )
        # blocks of rows as of the dense product
        for first in range(0, max(product.rows, 1), LONG):
            clear[:] = 0
            for i in range(first, min(first + LONG, product.rows)):
                lo, hi = starts[order[i]], starts[order[i] + 1]
                lo = search(which, lo, hi, product.lo)
                hi = search(which, lo, hi, product.hi)
                dz, values = (
                    advance(pointer(product.of, like), i * product.n_out + j),
                    advance(pointer(x.values, like), lo),
                )
                add_to_rows(columns, hi - lo, advance(which, lo), product.lo, values, dz, scratch)
            if first == 0:
                copy_out(
                    columns,
                    product.hi - product.lo,
                    scratch,
                    advance(out, product.lo * product.n_out + j),
                    product.n_out,
                )
            else:
                add_out(
                    columns,
                    product.hi - product.lo,
                    scratch,
                    advance(out, product.lo * product.n_out + j),
                    product.n_out,
                )


@kernel(COMPRESS)
def count_part(thread_index, thread_count, record, like):
    """starts[i + 1] = how many values of the thread's rows are not 0."""
    matrix = carray(record, 1)[0]
    starts = carray(void_pointer(matrix.starts), matrix.rows + 1, np.int64)
    lo, hi = thread_range(thread_index, thread_count, matrix.rows, 1)
    for i in range(lo, hi):
        row, n = carray(advance(pointer(matrix.x, like), i * matrix.row), matrix.row), 0
        for k in range(matrix.row):
            n += row[k] != 0
        starts[i + 1] = n


@kernel(COMPRESS)
def compress_part(thread_index, thread_count, record, like):
    """The values of the thread's rows that are not 0, and their columns."""
    matrix = carray(record, 1)[0]
    starts = carray(void_pointer(matrix.starts), matrix.rows + 1, np.int64)
    columns = carray(void_pointer(matrix.columns), starts[matrix.rows], np.int32)
    values = carray(pointer(matrix.values, like), starts[matrix.rows])
    lo, hi = thread_range(thread_index, thread_count, matrix.rows, 1)
    for i in range(lo, hi):
        row, at, k = carray(advance(pointer(matrix.x, like), i * matrix.row), matrix.row), starts[i], 0
        # what is 0 is written over; where the row's last has been found, nothing more is written
        while at < starts[i + 1]:
            columns[at], values[at] = k, row[k]
            at += row[k] != 0
            k += 1


def compressed(x, most):
    """x (N, C), C-contiguous, as Nonzeros; None where more than this share of its values are not 0."""
    rows, row = x.shape
    starts = np.zeros(rows + 1, np.int64)
    launch(count_part, x.dtype, np.array([address_of(x), rows, row, address_of(starts), 0, 0]), x.size)
    np.cumsum(starts, out=starts)
    if starts[-1] > most * x.size:
        return None
    columns, values = np.empty(starts[-1], np.int32), np.empty(starts[-1], x.dtype)
    record = np.array([address_of(x), rows, row, *map(address_of, (starts, columns, values))])
    launch(compress_part, x.dtype, record, 4 * x.size)
    return names.Nonzeros(starts, columns, values, row)


def product(x, w, b, z):
    """z (N, K) = b + x w, of x Nonzeros (N, C), w (C, K) and b (K,); all C-contiguous and of one dtype."""
    order = np.arange(len(x))
    nonzeros = np.array([*map(address_of, (x.starts, x.columns, x.values, order))])
    record = np.array(
        [address_of(nonzeros), len(x), 0, len(x), w.shape[1], address_of(w), address_of(b), address_of(z), 0]
    )
    launch(product_part, x.dtype, record, 2 * len(x.values) * w.shape[1])
