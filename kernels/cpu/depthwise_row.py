"""Rows of a depthwise convolution of images (N, H, W, C), as LLVM vector code for depthwise.py. Vectors run along the channels.

convolve_row and row_products are for square kernels of a known size and stride. They go along a row with one vector of channels: all
taps of that vector, and the sums of the pixels that a column of x reaches, stay in registers, so that each value of x is loaded once
for the taps of its row. Their code is written once for each number of the kernel's rows that lie inside the image.

pixel and pixel_products are for any other kernel, and for fewer channels than a vector has.

A tap outside the image adds nothing.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .engine.intrinsics import Emitter, many_registers

_I64 = ir.IntType(64)
# vectors of channels that pixel and pixel_products compute side by side
SIDE_BY_SIDE = 4
REGISTERS = 32 if many_registers() else 16


def kernel_rows(size):
    """Rows of a kernel that row_products takes at a time: their sums leave registers for dz and x."""
    return min(size, (REGISTERS - 4) // size)


def _constant(n):
    return ir.Constant(_I64, n)


def _zeros(emit):
    return ir.Constant(emit.vector, [0.0] * emit.width)


def _smaller(builder, a, b):
    return builder.select(builder.icmp_signed("<", a, b), a, b)


def _larger(builder, a, b):
    return builder.select(builder.icmp_signed(">", a, b), a, b)


def _ceiling(builder, a, b):
    """a / b rounded up, of positive results right, of others not positive."""
    return builder.sdiv(builder.add(a, _constant(b - 1)), _constant(b))


def _most_rows(size, stride, transposed):
    """Rows of x that a row of the output is computed from, at most."""
    return -(-size // stride) if transposed else size


def _prefetch(builder, place, write, level):
    """Prefetch a cache line to be read or written; level: 3 for all caches, 2 from the second on."""
    place, i32 = builder.bitcast(place, ir.IntType(8).as_pointer()), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [place.type, i32, i32, i32])
    fetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(fetch, [place, i32(write), i32(level), i32(1)])


def _when(builder, condition, body):
    """body() where the condition holds, always where it is None."""
    if condition is None:
        body()
    else:
        with builder.if_then(condition):
            body()


def _loops(builder, lo, hi, end, whole, body):
    """body(index, checked) for 0..end, if `whole` not checked from lo to hi; the bounds may be in any order."""
    bounds = [(_constant(0), end, True)]
    if whole:
        lo = _larger(builder, _constant(0), _smaller(builder, lo, end))
        hi = _larger(builder, lo, _smaller(builder, hi, end))
        bounds = (_constant(0), lo, True), (lo, hi, False), (hi, end, True)
    for first, last, checked in bounds:
        with cgutils.for_range_slice(builder, first, last, _constant(1), _I64) as (index, _):
            body(index, checked)


def _by_count(builder, count, most, ahead, body):
    """body(n, far) for n = count, a number from 0 to most; far: whether `ahead` is not 0, of the most rows only."""
    after = builder.append_basic_block("after")
    far = builder.icmp_signed("!=", ahead, _constant(0))
    far = builder.and_(far, builder.icmp_signed("==", count, _constant(most)))
    blocks = [builder.append_basic_block(f"rows{n}") for n in range(most + 2)]
    choice = builder.switch(builder.select(far, _constant(most + 1), count), blocks[0])
    for n, block in enumerate(blocks):
        if n:
            choice.add_case(_constant(n), block)
        builder.position_at_end(block)
        body(min(n, most), n > most)
        builder.branch(after)
    builder.position_at_end(after)


@intrinsic(prefer_literal=True)
def pack_taps(typingctx, size, channels, w, reverse, b, target):
    """target (size size + 1, width): one vector of channels of w (size size, channels), the last tap first if reverse; then of b (width,).

    A null b is zeros.
    """
    taps = size.literal_value**2

    def codegen(context, builder, signature, args):
        _, channels, w, reverse, b, target = args
        emit = Emitter(context, builder, signature.args[2].dtype)
        step = builder.select(reverse, builder.neg(channels), channels)
        first = emit.at(w, builder.select(reverse, builder.mul(channels, _constant(taps - 1)), _constant(0)))
        for t in range(taps):
            emit.store(emit.load(emit.at(first, builder.mul(step, _constant(t)))), emit.at(target, t * emit.width))
        start = emit.at(target, taps * emit.width)
        emit.store(_zeros(emit), start)
        with builder.if_then(builder.icmp_unsigned("!=", builder.ptrtoint(b, _I64), _constant(0))):
            emit.store(emit.load(b), start)
        return context.get_dummy_value()

    return types.void(size, types.int64, w, types.boolean, b, target), codegen


def _convolve_row(
    emit, size, stride, transposed, rows, far, x, x_row, W, C, left, columns, taps, start, z, x_ahead, z_ahead
):
    builder, most = emit.builder, _most_rows(size, stride, transposed)
    x_rows = [emit.at(x, builder.mul(x_row, _constant(r))) for r in range(rows)]
    first = emit.load(start)
    # sums of pixels that are not complete: of the next ones, or of those that the last columns of x reach
    sums = [cgutils.alloca_once(builder, emit.vector) for _ in range(size if transposed else -(-size // stride))]
    for total in sums:
        builder.store(first, total)

    def tap(r, b):
        return emit.load(emit.at(taps, ((r * stride if transposed else r) * size + b) * emit.width))

    # taps that find no room are operands in memory
    kept = {}
    if rows * size + len(sums) + 2 <= REGISTERS:
        kept = {(r, b): tap(r, b) for r in range(rows) for b in range(size)}

    # rows that the line before has not read
    new_rows = range(1) if transposed else range(rows - stride, rows)

    def column(at, pairs):
        """Add the products of a column of x: pairs (pixel, column of the kernel)."""
        offset = builder.mul(at, C)
        for r in range(rows):
            value = emit.load(emit.at(x_rows[r], offset))
            if far and r in new_rows:
                _prefetch(builder, emit.at(emit.at(x_rows[r], offset), x_ahead), 0, 2)
            for p, b in pairs:
                builder.store(emit.fma(value, kept.get((r, b)) or tap(r, b), builder.load(sums[p])), sums[p])

    def place(step, e):
        return builder.sub(builder.add(builder.mul(step, _constant(stride)), _constant(e)), left)

    def store(p, at):
        target = emit.at(z, builder.mul(at, C))
        emit.store(builder.load(sums[p]), target)
        if far:
            _prefetch(builder, emit.at(target, z_ahead), 1, 3)

    def scatter(step, checked):
        """A column of x reaches `size` pixels, of which `stride` are complete."""
        inside = builder.icmp_signed("<", step, W) if checked else None
        _when(builder, inside, lambda: column(step, [(b, b) for b in range(size)]))
        for e in range(stride):
            at = place(step, e)
            inside = builder.icmp_unsigned("<", at, columns) if checked else None
            _when(builder, inside, lambda e=e, at=at: store(e, at))
        for b in range(size):
            builder.store(builder.load(sums[b + stride]) if b + stride < size else first, sums[b])

    def gather(step, checked):
        """`stride` columns of x, after which one pixel is complete."""
        for e in range(stride):
            at, pairs = place(step, e), [(p, e + stride * p) for p in range(len(sums)) if e + stride * p < size]
            inside = builder.icmp_unsigned("<", at, W) if checked else None
            _when(builder, inside, lambda at=at, pairs=pairs: column(at, pairs))
        at = builder.sub(step, _constant(len(sums) - 1))
        inside = builder.icmp_signed(">=", at, _constant(0)) if checked else None
        _when(builder, inside, lambda: store(len(sums) - 1, at))
        for p in reversed(range(1, len(sums))):
            builder.store(builder.load(sums[p - 1]), sums[p])
        builder.store(first, sums[0])

    lo, whole = _ceiling(builder, left, stride), rows == most and not far
    if transposed:
        hi = _smaller(builder, W, builder.sdiv(builder.add(columns, left), _constant(stride)))
        _loops(builder, lo, hi, _ceiling(builder, builder.add(columns, left), stride), whole, scatter)
    else:
        lo, hi = _larger(builder, lo, _constant(len(sums) - 1)), builder.sdiv(builder.add(W, left), _constant(stride))
        _loops(builder, lo, hi, builder.add(columns, _constant(len(sums) - 1)), whole, gather)


@intrinsic(prefer_literal=True)
def convolve_row(
    typingctx, size, stride, transposed, count, x, x_row, W, C, left, columns, taps, start, z, x_ahead, z_ahead
):
    """A row z (columns, C) of the output from `count` rows of x (W, C), x_row apart, for one vector of channels:

        z[j] = start + sum over rows r and b of x[r, j stride + b - left] taps[r, b]
        transposed: z[j stride + b - left] += x[r, j] taps[r stride, b]

    taps (size, size, width) from the first row that is inside the image on, and start (width,): see pack_taps.
    """
    k, s, t = size.literal_value, stride.literal_value, bool(transposed.literal_value)

    def codegen(context, builder, signature, args):
        emit = Emitter(context, builder, signature.args[4].dtype)
        most = _most_rows(k, s, t)
        _by_count(builder, args[3], most, args[-1], lambda n, far: _convolve_row(emit, k, s, t, n, far, *args[4:]))
        return context.get_dummy_value()

    i8 = types.int64
    return types.void(size, stride, transposed, i8, x, i8, i8, i8, i8, i8, x, x, x, i8, i8), codegen


def _row_products(emit, size, stride, rows, far, lines, x, x_line, W, C, left, dz, columns, totals, ahead):
    builder = emit.builder
    sums = {(r, b): cgutils.alloca_once(builder, emit.vector) for r in range(rows) for b in range(size)}
    for total in sums.values():
        builder.store(_zeros(emit), total)
    step = builder.mul(C, _constant(stride))
    with cgutils.for_range(builder, lines) as line:
        # one line of the output further, `stride` rows of x
        first = emit.at(x, builder.mul(line.index, builder.mul(x_line, _constant(stride))))
        x_rows = [emit.at(first, builder.mul(x_line, _constant(r))) for r in range(rows)]
        upstream = emit.at(dz, builder.mul(line.index, builder.mul(columns, C)))

        def pixel(j, checked):
            place = emit.at(upstream, builder.mul(j, C))
            factor = emit.load(place)
            if far:
                _prefetch(builder, emit.at(place, ahead), 0, 3)
            left_column = builder.sub(builder.mul(j, _constant(stride)), left)
            offset = builder.sub(builder.mul(j, step), builder.mul(left, C))
            for b in range(size):
                at = builder.add(offset, builder.mul(C, _constant(b)))

                def column(at=at, b=b):
                    for r in range(rows):
                        place = emit.at(x_rows[r], at)
                        value = emit.load(place)
                        # pixels that neither the line nor the pixel before has read
                        if far and r >= rows - stride and b >= size - stride:
                            _prefetch(builder, emit.at(place, ahead), 0, 3)
                        builder.store(emit.fma(value, factor, builder.load(sums[r, b])), sums[r, b])

                inside = builder.icmp_unsigned("<", builder.add(left_column, _constant(b)), W) if checked else None
                _when(builder, inside, column)

        hi = builder.sdiv(builder.sub(builder.add(W, left), _constant(size - stride)), _constant(stride))
        _loops(builder, _ceiling(builder, left, stride), hi, columns, rows == kernel_rows(size) and not far, pixel)
    for (r, b), total in sums.items():
        place = emit.at(totals, (r * size + b) * emit.width)
        emit.store(builder.fadd(emit.load(place), builder.load(total)), place)


@intrinsic(prefer_literal=True)
def row_products(typingctx, size, stride, count, lines, x, x_line, W, C, left, dz, columns, totals, ahead):
    """totals[r, b] += sum over lines i and j of x[i stride + r, j stride + b - left] dz[i, j], for `count` rows r of the kernel.

    One vector of channels of x (rows, W, C), x_line from row to row, and of dz (lines, columns, C); totals (size, size, width).
    """
    k, s = size.literal_value, stride.literal_value

    def codegen(context, builder, signature, args):
        emit = Emitter(context, builder, signature.args[4].dtype)

        def rows(n, far):
            if n:
                _row_products(emit, k, s, n, far, *args[3:])

        _by_count(builder, args[2], kernel_rows(k), args[-1], rows)
        return context.get_dummy_value()

    i8 = types.int64
    return types.void(size, stride, i8, i8, x, i8, i8, i8, i8, x, i8, x, i8), codegen


@intrinsic
def add_slices(typingctx, taps, slices, apart, sums, C, dw):
    """dw[t] = sum over slices of sums[slice, t], in their order: one vector of channels of dw (taps, C); sums (taps, width), apart."""

    def codegen(context, builder, signature, args):
        taps, slices, apart, sums, C, dw = args
        emit = Emitter(context, builder, signature.args[3].dtype)
        total = cgutils.alloca_once(builder, emit.vector)
        with cgutils.for_range(builder, taps) as tap:
            first = emit.at(sums, builder.mul(tap.index, _constant(emit.width)))
            builder.store(emit.load(first), total)
            with cgutils.for_range_slice(builder, _constant(1), slices, _constant(1), _I64) as (s, _):
                value = emit.load(emit.at(first, builder.mul(s, apart)))
                builder.store(builder.fadd(builder.load(total), value), total)
            emit.store(builder.load(total), emit.at(dw, builder.mul(tap.index, C)))
        return context.get_dummy_value()

    i8 = types.int64
    return types.void(i8, i8, i8, sums, i8, dw), codegen


def _over_channels(builder, emit, channels, body):
    """body(first channel, vectors, mask) for all channels: some whole vectors, then one at a time, of which the last may be masked."""
    width = _constant(emit.width)
    block = _constant(SIDE_BY_SIDE * emit.width)
    whole = builder.mul(builder.sdiv(channels, block), block)
    with cgutils.for_range_slice(builder, _constant(0), whole, block, _I64) as (at, _):
        body(at, SIDE_BY_SIDE, None)
    with cgutils.for_range_slice(builder, whole, channels, width, _I64) as (at, _):
        left = _smaller(builder, builder.sub(channels, at), width)
        body(at, 1, (emit.first(left), left))


def _store(emit, value, place, tail):
    if tail is None:
        emit.store(value, place)
    else:
        emit.store_first(tail[1], [value], [place])


@intrinsic
def pixel(typingctx, channels, rows, columns, x, x_row, x_column, w, w_row, w_column, start, target):
    """target[c] = start[c] + sum over rows r and columns s of x[r x_row + s x_column + c] w[r w_row + s w_column + c]; null: 0."""

    def codegen(context, builder, signature, args):
        channels, rows, columns, x, x_row, x_column, w, w_row, w_column, start, target = args
        emit = Emitter(context, builder, signature.args[3].dtype)
        biased = builder.icmp_unsigned("!=", builder.ptrtoint(start, _I64), _constant(0))

        def block(at, vectors, tail):
            mask = tail and tail[0]
            sums = [cgutils.alloca_once(builder, emit.vector) for _ in range(vectors)]
            for total in sums:
                builder.store(_zeros(emit), total)
            with builder.if_then(biased):
                for v, total in enumerate(sums):
                    builder.store(emit.load(emit.at(emit.at(start, at), v * emit.width), mask), total)
            with cgutils.for_range(builder, rows) as r, cgutils.for_range(builder, columns) as s:
                x_at = builder.add(builder.mul(r.index, x_row), builder.mul(s.index, x_column))
                w_at = builder.add(builder.mul(r.index, w_row), builder.mul(s.index, w_column))
                source, factor = emit.at(emit.at(x, x_at), at), emit.at(emit.at(w, w_at), at)
                for v, total in enumerate(sums):
                    pair = (emit.load(emit.at(place, v * emit.width), mask) for place in (source, factor))
                    builder.store(emit.fma(*pair, builder.load(total)), total)
            for v, total in enumerate(sums):
                _store(emit, builder.load(total), emit.at(emit.at(target, at), v * emit.width), tail)

        _over_channels(builder, emit, channels, block)
        return context.get_dummy_value()

    i8 = types.int64
    return types.void(i8, i8, i8, x, i8, i8, x, i8, i8, x, x), codegen


@intrinsic
def pixel_products(typingctx, channels, pixels, x, x_pixel, dz, dz_pixel, dw):
    """dw[c] += sum over pixels p of x[p x_pixel + c] dz[p dz_pixel + c], for all channels c."""

    def codegen(context, builder, signature, args):
        channels, pixels, x, x_pixel, dz, dz_pixel, dw = args
        emit = Emitter(context, builder, signature.args[2].dtype)

        def block(at, vectors, tail):
            mask = tail and tail[0]
            sums = [cgutils.alloca_once(builder, emit.vector) for _ in range(vectors)]
            for total in sums:
                builder.store(_zeros(emit), total)
            with cgutils.for_range(builder, pixels) as p:
                source = emit.at(emit.at(x, builder.mul(p.index, x_pixel)), at)
                factor = emit.at(emit.at(dz, builder.mul(p.index, dz_pixel)), at)
                for v, total in enumerate(sums):
                    pair = (emit.load(emit.at(place, v * emit.width), mask) for place in (source, factor))
                    builder.store(emit.fma(*pair, builder.load(total)), total)
            for v, total in enumerate(sums):
                place = emit.at(emit.at(dw, at), v * emit.width)
                _store(emit, builder.fadd(emit.load(place, mask), builder.load(total)), place, tail)

        _over_channels(builder, emit, channels, block)
        return context.get_dummy_value()

    i8 = types.int64
    return types.void(i8, i8, x, i8, x, i8, x), codegen
