"""Depthwise convolution of images (N, H, W, C): one kernel per channel, groups = C = K. Formulas: kernels/reference/conv.py.

    z[n, i, j, c] = sum over taps (a, b) of x[n, i sh + a dh - top, j sw + b dw - left, c] w[a, b, c] + b[c]

Layout: vectors run along the channels. A tap reads the image in place; a tap outside the image reads a row of zeros.

Forward: four neighbouring pixels of the output at a time, two vectors of channels each; their sums stay in registers over all taps.
dx: the same kernel on dz, once for each phase of the stride, with the taps that reach that phase.
dw: three taps at a time; registers hold the sums over a row of the output, which are then added to dw in memory, row after row. So no
float32 sum is one long chain.

A thread has rows of the output, or channels of dw.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .activation import activate, forward_address
from .engine.compile import Addresses, device_function, driver, driver_function, kernel, or_empty
from .engine.intrinsics import (
    Emitter,
    address,
    address_or_null,
    advance,
    carray,
    lanes,
    local_zeros,
    pointer,
    run_kernel,
    void_pointer,
)
from .engine.thread_pool import run, thread_range
from .engine.vector_loops import add, map_arrays
from .gemm import clear

# a convolution of x (N, H, W, C) to rows x columns pixels of each image; x is dz where dx is made. Its fields: step_h, step_w: pixels of x
# from one of the output to the next; taps (n_taps, 3), int64: row and column of the image, seen from the pixel's own, and which of w's;
# first, last: columns of the output from the one to before the other have all their taps' columns in the image; sources (threads,
# n_taps, 2), int64: addresses of the taps of a pixel and of their weights; zeros: a row of the image, of zeros; out_image, out_row,
# out_pixel: values between those of the output; w, b, residual, z, y, dz, dw and parameter: as in conv2d_forward and
# conv2d_backward, null for None
DEPTHWISE = np.dtype(
    [
        (name, "i8")
        for name in "N H W C rows columns step_h step_w n_taps taps first last sources zeros itemsize".split()
    ]
    + [(name, "i8") for name in "x w b residual z y activate dz dw out_image out_row out_pixel".split()]
    + [("parameter", "f8")]
)
PIXELS_PART, WEIGHTS_PART = range(2)
# pixels made at a time, and taps of the weights' gradient; vectors of channels side by side
PIXELS, TAPS, SIDE_BY_SIDE = 4, 3, 2


def _tap_pointers(builder, table, count, shift, scalar):
    """Load the pointers (source, weights) of `count` taps from a row of the table on; sources are moved by `shift` values."""
    zero, one = ir.Constant(ir.IntType(64), 0), ir.Constant(ir.IntType(64), 1)
    pairs = []
    for t in range(count):
        row = builder.gep(table, [ir.Constant(ir.IntType(64), 2 * t)])
        source, weights = (
            builder.inttoptr(builder.load(builder.gep(row, [at])), scalar.as_pointer()) for at in (zero, one)
        )
        pairs.append((builder.gep(source, [shift]), weights))
    return pairs


def _over_channels(builder, emit, channels, body):
    """body(first channel, vectors, mask) for all channels: two whole vectors, then one at a time, of which the last may be masked."""
    i64 = ir.IntType(64)
    block = ir.Constant(i64, SIDE_BY_SIDE * emit.width)
    whole = builder.mul(builder.sdiv(channels, block), block)
    with cgutils.for_range_slice(builder, ir.Constant(i64, 0), whole, block, i64) as (at, _):
        body(at, SIDE_BY_SIDE, None)
    with cgutils.for_range_slice(builder, whole, channels, ir.Constant(i64, emit.width), i64) as (at, _):
        left = builder.sub(channels, at)
        full = builder.icmp_signed(">", left, ir.Constant(i64, emit.width))
        left = builder.select(full, ir.Constant(i64, emit.width), left)
        body(at, 1, (emit.first(left), left))


def _store(emit, value, place, tail):
    if tail is None:
        emit.store(value, place)
    else:
        emit.store_first(tail[1], [value], [place])


def _pixels(count):
    @intrinsic
    def pixels(typingctx, channels, n_taps, sources, shift, step, start, target, target_step):
        def codegen(context, builder, signature, args):
            channels, n_taps, sources, shift, step, start, target, target_step = args
            emit = Emitter(context, builder, signature.args[5].dtype)
            i64 = ir.IntType(64)
            table = builder.inttoptr(sources, i64.as_pointer())
            steps = [builder.mul(step, ir.Constant(i64, p)) for p in range(count)]
            zero = ir.Constant(emit.vector, [0.0] * emit.width)
            biased = builder.icmp_unsigned("!=", builder.ptrtoint(start, i64), ir.Constant(i64, 0))

            def block(at, vectors, tail):
                mask = tail and tail[0]
                sums = {}
                for v in range(vectors):
                    first = cgutils.alloca_once_value(builder, zero)
                    with builder.if_then(biased):
                        builder.store(emit.load(emit.at(emit.at(start, at), v * emit.width), mask), first)
                    for p in range(count):
                        sums[p, v] = cgutils.alloca_once(builder, emit.vector)
                        builder.store(builder.load(first), sums[p, v])
                with cgutils.for_range(builder, n_taps) as tap:
                    row = builder.gep(table, [builder.shl(tap.index, ir.Constant(i64, 1))])
                    ((x, w),) = _tap_pointers(builder, row, 1, builder.add(shift, at), emit.scalar)
                    w = emit.at(w, at)
                    for v in range(vectors):
                        weight = emit.load(emit.at(w, v * emit.width), mask)
                        for p in range(count):
                            value = emit.load(emit.at(emit.at(x, steps[p]), v * emit.width), mask)
                            builder.store(emit.fma(value, weight, builder.load(sums[p, v])), sums[p, v])
                for p in range(count):
                    pixel = emit.at(emit.at(target, builder.mul(target_step, ir.Constant(i64, p))), at)
                    for v in range(vectors):
                        _store(emit, builder.load(sums[p, v]), emit.at(pixel, v * emit.width), tail)

            _over_channels(builder, emit, channels, block)
            return context.get_dummy_value()

        i8 = types.int64
        return types.void(i8, i8, i8, i8, i8, start, start, i8), codegen

    pixels.__doc__ = f"""target[p * target_step + c] = start[c] + sum over taps t of source_t[shift + p * step + c] * w_t[c],

        for {count} pixels p and all channels c; sources (n_taps, 2) has the addresses of source_t and w_t; a null start is 0."""
    return pixels


def _weights(count):
    @intrinsic
    def weights(typingctx, channels, n_pixels, sources, step, dz, dz_step):
        def codegen(context, builder, signature, args):
            channels, n_pixels, sources, step, dz, dz_step = args
            emit = Emitter(context, builder, signature.args[4].dtype)
            i64 = ir.IntType(64)
            table = builder.inttoptr(sources, i64.as_pointer())
            zero = ir.Constant(emit.vector, [0.0] * emit.width)

            def block(at, vectors, tail):
                mask = tail and tail[0]
                pairs = _tap_pointers(builder, table, count, at, emit.scalar)
                sums = {(t, v): cgutils.alloca_once_value(builder, zero) for t in range(count) for v in range(vectors)}
                for total in sums.values():
                    builder.store(zero, total)
                with cgutils.for_range(builder, n_pixels) as pixel:
                    upstream = emit.at(emit.at(dz, builder.mul(pixel.index, dz_step)), at)
                    offset = builder.mul(pixel.index, step)
                    for v in range(vectors):
                        factor = emit.load(emit.at(upstream, v * emit.width), mask)
                        for t, (x, _) in enumerate(pairs):
                            value = emit.load(emit.at(emit.at(x, offset), v * emit.width), mask)
                            builder.store(emit.fma(value, factor, builder.load(sums[t, v])), sums[t, v])
                for t, (_, dw) in enumerate(pairs):
                    for v in range(vectors):
                        place = emit.at(emit.at(dw, at), v * emit.width)
                        total = builder.fadd(emit.load(place, mask), builder.load(sums[t, v]))
                        _store(emit, total, place, tail)

            _over_channels(builder, emit, channels, block)
            return context.get_dummy_value()

        i8 = types.int64
        return types.void(i8, i8, i8, i8, dz, i8), codegen

    weights.__doc__ = f"""dw_t[c] += sum over pixels p of source_t[p * step + c] * dz[p * dz_step + c],

        for {count} taps t and all channels c; sources ({count}, 2) has the addresses of source_t and dw_t."""
    return weights


four_pixels, one_pixel = _pixels(PIXELS), _pixels(1)
three_taps, one_tap = _weights(TAPS), _weights(1)


@device_function
def place_taps(conv, sources, image, i, j, weights):
    """Write to sources (n_taps, 2) the addresses of the taps of the output's pixel (i, j), and of their rows of the weights."""
    taps = carray(void_pointer(conv.taps), (conv.n_taps, 3), np.int64)
    for t in range(conv.n_taps):
        h, w = i * conv.step_h + taps[t, 0], j * conv.step_w + taps[t, 1]
        inside = 0 <= h < conv.H and 0 <= w < conv.W
        sources[t, 0] = conv.x + ((image * conv.H + h) * conv.W + w) * conv.C * conv.itemsize if inside else conv.zeros
        sources[t, 1] = weights + taps[t, 2] * conv.C * conv.itemsize


@kernel(DEPTHWISE)
def depthwise_part(thread_index, thread_count, record, like):
    """The thread's rows of the output: forward, or of a phase of dx, which undoes it."""
    conv = carray(record, 1)[0]
    C, table = conv.C, conv.sources + thread_index * conv.n_taps * 16
    sources = carray(void_pointer(table), (conv.n_taps, 2), np.int64)
    b, step = pointer(conv.b, like), conv.step_w * C  # (C,)
    lo, hi = thread_range(thread_index, thread_count, conv.N * conv.rows, 1)
    for line in range(lo, hi):
        image, i = line // conv.rows, line % conv.rows
        at = image * conv.out_image + i * conv.out_row
        z = advance(pointer(conv.z, like), at)  # (columns, C), out_pixel apart
        # products of taps, and bias
        j = 0
        while j < conv.columns:
            within = conv.first <= j < conv.last
            if not within or j == conv.first:
                place_taps(conv, sources, image, i, j, conv.w)
            shift, pixel = (j - conv.first) * step if within else 0, advance(z, j * conv.out_pixel)  # (C,)
            if within and j + PIXELS <= conv.last:
                four_pixels(C, conv.n_taps, table, shift, step, b, pixel, conv.out_pixel)
                j += PIXELS
            else:
                one_pixel(C, conv.n_taps, table, shift, step, b, pixel, conv.out_pixel)
                j += 1
        # residual and activation
        if conv.y:
            n = conv.columns * C
            if conv.residual:
                map_arrays(add, n, (z, advance(pointer(conv.residual, like), at)), (z,), ())
            activate(conv.activate, conv.parameter, conv.columns, C, z, advance(pointer(conv.y, like), at))


@kernel(DEPTHWISE)
def depthwise_weights_part(thread_index, thread_count, record, like):
    """The thread's channels of dw (n_taps, C), which undoes the products: over all rows of the output."""
    conv = carray(record, 1)[0]
    C, table = conv.C, conv.sources + thread_index * conv.n_taps * 16
    sources = carray(void_pointer(table), (conv.n_taps, 2), np.int64)
    lo, hi = thread_range(thread_index, thread_count, C, SIDE_BY_SIDE * lanes(like))
    for t in range(conv.n_taps if lo < hi else 0):
        clear(hi - lo, advance(pointer(conv.dw, like), t * C + lo))
    for line in range(conv.N * conv.rows if lo < hi else 0):
        image, i = line // conv.rows, line % conv.rows
        dz = advance(pointer(conv.dz, like), line * conv.columns * C + lo)  # (columns, hi - lo), C apart
        j = 0
        while j < conv.columns:
            n = conv.last - conv.first if j == conv.first < conv.last else 1
            place_taps(conv, sources, image, i, j, conv.dw)
            for t in range(conv.n_taps):
                sources[t, 0] += lo * conv.itemsize
                sources[t, 1] += lo * conv.itemsize
            t = 0
            while t < conv.n_taps:
                if t + TAPS <= conv.n_taps:
                    three_taps(hi - lo, n, table + t * 16, conv.step_w * C, advance(dz, j * C), C)
                    t += TAPS
                else:
                    one_tap(hi - lo, n, table + t * 16, conv.step_w * C, advance(dz, j * C), C)
                    t += 1
            j += n


@device_function
def describe(conv, x, rows, columns, stride, taps, sources, zeros):
    """Taps (n_taps, 3) over x (N, H, W, C), for so many rows and columns of the output."""
    conv.N, conv.H, conv.W, conv.C = x.shape
    conv.rows, conv.columns, conv.step_h, conv.step_w, conv.itemsize = rows, columns, stride[0], stride[1], x.itemsize
    conv.n_taps, conv.taps, conv.x = len(taps), address(taps), address(x)
    conv.sources, conv.zeros = address(sources), address(zeros)
    conv.first, conv.last = 0, columns
    for t in range(len(taps)):
        conv.first = max(conv.first, (conv.step_w - 1 - taps[t, 1]) // conv.step_w)
        conv.last = min(conv.last, (conv.step_w - 1 + conv.W - taps[t, 1]) // conv.step_w)


@driver_function
def scratch_arrays(thread_count, n_taps, columns, step, like):
    """Scratch: sources (threads, n_taps, 2), and zeros, which taps outside the image read for a row of the output."""
    return np.empty((thread_count, n_taps, 2), np.int64), np.zeros((columns * step + 1) * like.shape[3], like.dtype)


@driver
def _forward(launcher, thread_count, kernels, x, w, b, stride, taps, residual, function, parameter, z, y):
    sources, zeros = scratch_arrays(thread_count, len(taps), z.shape[2], stride[1], x)
    record = local_zeros(1, DEPTHWISE)
    conv = record[0]
    describe(conv, x, z.shape[1], z.shape[2], stride, taps, sources, zeros)
    conv.out_image, conv.out_row, conv.out_pixel = conv.rows * conv.columns * conv.C, conv.columns * conv.C, conv.C
    conv.w, conv.b, conv.residual = address(w), address_or_null(b), address_or_null(residual)
    conv.z, conv.y, conv.activate, conv.parameter = address(z), address(y), function, parameter
    run_kernel(launcher, kernels[PIXELS_PART], thread_count, record, (sources, zeros))


@driver
def _input_gradient(launcher, thread_count, kernels, dz, w, stride, taps, n_taps, dx):
    """taps (phases, most taps, 3), of which a phase has n_taps (phases,): for the image's pixels by their place in the stride."""
    sources, zeros = scratch_arrays(thread_count, taps.shape[1], dx.shape[2], 1, dz)
    for i in range(min(stride[0], dx.shape[1])):
        for j in range(min(stride[1], dx.shape[2])):
            phase, rows = i * stride[1] + j, (dx.shape[1] - i + stride[0] - 1) // stride[0]
            columns = (dx.shape[2] - j + stride[1] - 1) // stride[1]
            record = local_zeros(1, DEPTHWISE)
            conv = record[0]
            describe(conv, dz, rows, columns, (1, 1), taps[phase, : n_taps[phase]], sources, zeros)
            conv.out_image, conv.out_row = dx.shape[1] * dx.shape[2] * conv.C, stride[0] * dx.shape[2] * conv.C
            conv.out_pixel, conv.w = stride[1] * conv.C, address(w)
            conv.z = address(dx) + (i * dx.shape[2] + j) * conv.C * conv.itemsize
            run_kernel(launcher, kernels[PIXELS_PART], thread_count, record, (sources, zeros))


@driver
def _weight_gradient(launcher, thread_count, kernels, x, dz, stride, taps, dw):
    sources, zeros = scratch_arrays(thread_count, len(taps), dz.shape[2], stride[1], x)
    record = local_zeros(1, DEPTHWISE)
    conv = record[0]
    describe(conv, x, dz.shape[1], dz.shape[2], stride, taps, sources, zeros)
    conv.dz, conv.dw = address(dz), address(dw)
    run_kernel(launcher, kernels[WEIGHTS_PART], thread_count, record, (sources, zeros))


_KERNELS = Addresses(depthwise_part, depthwise_weights_part)
# multiplications and additions that a pixel's channel of one tap costs as much as: it comes from memory
COST = 4


def applies(x, w):
    """Whether every channel of x has one kernel of its own in w (kh, kw, 1, C)."""
    return w.shape[2] == 1 and w.shape[3] == x.shape[3] > 1


def forward(x, w, b, geometry, residual, activation, saved):
    """conv2d_forward of conv.py, for depthwise kernels w (kh, kw, 1, C)."""
    run(
        COST * saved.z.size * len(w) * w.shape[1], _forward, _KERNELS[x.dtype.char], x, w, *or_empty(x.dtype, 1, b), geometry.stride,
        _taps(w.shape, geometry), *or_empty(x.dtype, 4, residual), forward_address[x.dtype.char, activation.code],
        activation.parameter, *saved,
    )  # fmt: skip


def input_gradient(dz, w, geometry, dx):
    """dx (N, H, W, C) from dz: undoes forward for its input."""
    operations = COST * dz.size * len(w) * w.shape[1]
    run(operations, _input_gradient, _KERNELS[dz.dtype.char], dz, w, geometry.stride, *_phases(w.shape, geometry), dx)


def weight_gradient(x, dz, geometry, dw):
    """dw (kh, kw, 1, C) from dz: undoes forward for its weights."""
    operations = COST * dz.size * len(dw) * dw.shape[1]
    run(operations, _weight_gradient, _KERNELS[x.dtype.char], x, dz, geometry.stride, _taps(dw.shape, geometry), dw)


def _taps(size, geometry):
    """(n_taps, 3) of a kernel of this size."""
    _, pads, dilation = geometry
    a, b = np.divmod(np.arange(size[0] * size[1]), size[1])
    return np.stack([a * dilation[0] - pads[0], b * dilation[1] - pads[1], np.arange(len(a))], axis=1)


def _phases(size, geometry):
    """The taps that reach the pixels of each phase of the stride, last first: (phases, most taps, 3), and how many (phases,)."""
    stride, pads, dilation = geometry
    a, b = np.divmod(np.arange(size[0] * size[1])[::-1], size[1])
    phases = []
    for i, j in np.ndindex(*stride):
        h, w = i + pads[0] - a * dilation[0], j + pads[1] - b * dilation[1]
        in_phase = (h % stride[0] == 0) & (w % stride[1] == 0)
        phases.append(np.stack([h // stride[0], w // stride[1], a * size[1] + b], axis=1)[in_phase])
    taps = np.zeros((len(phases), max(map(len, phases)), 3), np.int64)
    for row, phase in zip(taps, phases, strict=True):
        row[: len(phase)] = phase
    return taps, np.array([len(phase) for phase in phases])
