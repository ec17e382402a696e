"""Depthwise convolution of images (N, H, W, C), every channel with a kernel of its own: as in kernels/reference/conv.py, groups = C = K.

    z[n, i, j, c] = sum over taps (a, b) of x[n, i sh + a dh - top, j sw + b dw - left, c] w[a, b, c] + b[c]

Vectors run along the channels, and taps read the image where it lies; a tap outside of it reads zeros. Four neighbouring pixels of
the output are made at a time, two vectors of channels each, whose sums stay in registers over all taps. The input's gradient is the
same of dz, one phase of the stride after another, each with the taps that it meets. The weights' gradient is summed in registers over
a row of the output, three taps at a time, and in memory row after row, so that no sum in float32 is one long chain. A thread has rows of
the output, or channels of the weights' gradient.
"""

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from .activation import activate
from .engine.compile import Addresses, device_function, driver, kernel, or_empty
from .engine.intrinsics import (
    Emitter,
    address,
    address_or_null,
    advance,
    lanes,
    local_zeros,
    pointer,
    run_kernel,
    void_pointer,
)
from .engine.thread_pool import run, thread_range
from .engine.vector_loops import add, map_arrays
from .gemm import clear

# taps (n_taps, 3): row and column of the image, seen from the pixel's own, and which of w's; columns first..last of the output have all
# their taps' columns in the image. out_*: values from one image, row and pixel of the output to the next. zeros: a row of the image,
# of zeros; sources (parts, n_taps, 2): where the taps of a pixel and their weights lie
DEPTHWISE = np.dtype(
    [
        (name, "i8")
        for name in "N H W C rows columns step_h step_w n_taps taps first last sources zeros itemsize".split()
    ]
    + [(name, "i8") for name in "x w b residual z y code dz dw out_image out_row out_pixel".split()]
    + [("parameter", "f8")]
)
PIXELS_PART, WEIGHTS_PART = range(2)
# pixels made at a time, and taps of the weights' gradient; vectors of channels side by side
PIXELS, TAPS, SIDE_BY_SIDE = 4, 3, 2


def _addresses(builder, table, count, shift, scalar):
    """Loads the pointers of `count` rows (source, other) of a table from a row on: sources moved by `shift` values."""
    zero, one = ir.Constant(ir.IntType(64), 0), ir.Constant(ir.IntType(64), 1)
    pairs = []
    for t in range(count):
        row = builder.gep(table, [ir.Constant(ir.IntType(64), 2 * t)])
        source, other = (
            builder.inttoptr(builder.load(builder.gep(row, [at])), scalar.as_pointer()) for at in (zero, one)
        )
        pairs.append((builder.gep(source, [shift]), other))
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
                    ((x, w),) = _addresses(builder, row, 1, builder.add(shift, at), emit.scalar)
                    w = emit.at(w, at)
                    for v in range(vectors):
                        weight = emit.load(emit.at(w, v * emit.width), mask)
                        for p in range(count):
                            value = emit.load(emit.at(emit.at(x, steps[p]), v * emit.width), mask)
                            builder.store(emit.fma(value, weight, builder.load(sums[p, v])), sums[p, v])
                for p in range(count):
                    to = emit.at(emit.at(target, builder.mul(target_step, ir.Constant(i64, p))), at)
                    for v in range(vectors):
                        _store(emit, builder.load(sums[p, v]), emit.at(to, v * emit.width), tail)

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
                pairs = _addresses(builder, table, count, at, emit.scalar)
                sums = {(t, v): cgutils.alloca_once_value(builder, zero) for t in range(count) for v in range(vectors)}
                for total in sums.values():
                    builder.store(zero, total)
                with cgutils.for_range(builder, n_pixels) as pixel:
                    upstream = emit.at(emit.at(dz, builder.mul(pixel.index, dz_step)), at)
                    moved = builder.mul(pixel.index, step)
                    for v in range(vectors):
                        factor = emit.load(emit.at(upstream, v * emit.width), mask)
                        for t, (x, _) in enumerate(pairs):
                            value = emit.load(emit.at(emit.at(x, moved), v * emit.width), mask)
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
def place_taps(g, sources, image, i, j, weights):
    """Where the taps of the output's pixel (i, j) and their rows of the weights, at an address, lie: to sources (n_taps, 2)."""
    taps = carray(void_pointer(g.taps), (g.n_taps, 3), np.int64)
    for t in range(g.n_taps):
        h, w = i * g.step_h + taps[t, 0], j * g.step_w + taps[t, 1]
        inside = 0 <= h < g.H and 0 <= w < g.W
        sources[t, 0] = g.x + ((image * g.H + h) * g.W + w) * g.C * g.itemsize if inside else g.zeros
        sources[t, 1] = weights + taps[t, 2] * g.C * g.itemsize


@kernel(DEPTHWISE)
def depthwise_part(part, parts, job, like):
    """The part's rows of the output."""
    g = carray(job, 1)[0]
    C, table = g.C, g.sources + part * g.n_taps * 16
    sources, b, step = carray(void_pointer(table), (g.n_taps, 2), np.int64), pointer(g.b, like), g.step_w * g.C
    lo, hi = thread_range(part, parts, g.N * g.rows, 1)
    for line in range(lo, hi):
        image, i = line // g.rows, line % g.rows
        at = image * g.out_image + i * g.out_row
        z = advance(pointer(g.z, like), at)  # (columns, C), out_pixel apart
        j = 0
        while j < g.columns:
            within = g.first <= j < g.last
            if not within or j == g.first:
                place_taps(g, sources, image, i, j, g.w)
            shift, to = (j - g.first) * step if within else 0, advance(z, j * g.out_pixel)
            if within and j + PIXELS <= g.last:
                four_pixels(C, g.n_taps, table, shift, step, b, to, g.out_pixel)
                j += PIXELS
            else:
                one_pixel(C, g.n_taps, table, shift, step, b, to, g.out_pixel)
                j += 1
        if g.y:
            n = g.columns * C
            if g.residual:
                map_arrays(add, n, (z, advance(pointer(g.residual, like), at)), (z,), ())
            activate(g.code, g.parameter, g.columns, C, z, advance(pointer(g.y, like), at))


@kernel(DEPTHWISE)
def depthwise_weights_part(part, parts, job, like):
    """The part's channels of dw (n_taps, C), over all rows of the output."""
    g = carray(job, 1)[0]
    C, table = g.C, g.sources + part * g.n_taps * 16
    sources = carray(void_pointer(table), (g.n_taps, 2), np.int64)
    lo, hi = thread_range(part, parts, C, SIDE_BY_SIDE * lanes(like))
    for t in range(g.n_taps if lo < hi else 0):
        clear(hi - lo, advance(pointer(g.dw, like), t * C + lo))
    for line in range(g.N * g.rows if lo < hi else 0):
        image, i = line // g.rows, line % g.rows
        dz = advance(pointer(g.dz, like), line * g.columns * C + lo)  # (columns, C)
        j = 0
        while j < g.columns:
            n = g.last - g.first if j == g.first < g.last else 1
            place_taps(g, sources, image, i, j, g.dw)
            for t in range(g.n_taps):
                sources[t, 0] += lo * g.itemsize
                sources[t, 1] += lo * g.itemsize
            t = 0
            while t < g.n_taps:
                if t + TAPS <= g.n_taps:
                    three_taps(hi - lo, n, table + t * 16, g.step_w * C, advance(dz, j * C), C)
                    t += TAPS
                else:
                    one_tap(hi - lo, n, table + t * 16, g.step_w * C, advance(dz, j * C), C)
                    t += 1
            j += n


@device_function
def describe(g, x, rows, columns, stride, taps, sources, zeros):
    """Taps (n_taps, 3) over x (N, H, W, C), for so many rows and columns of the output."""
    g.N, g.H, g.W, g.C = x.shape
    g.rows, g.columns, g.step_h, g.step_w, g.itemsize = rows, columns, stride[0], stride[1], x.itemsize
    g.n_taps, g.taps, g.sources, g.zeros, g.x = len(taps), address(taps), address(sources), address(zeros), address(x)
    g.first, g.last = 0, columns
    for t in range(len(taps)):
        g.first = max(g.first, (g.step_w - 1 - taps[t, 1]) // g.step_w)
        g.last = min(g.last, (g.step_w - 1 + g.W - taps[t, 1]) // g.step_w)


@device_function
def rooms(parts, n_taps, columns, step, like):
    """Sources (parts, n_taps, 2), and zeros in the place of all pixels of the image that a tap has in a row of the output."""
    return np.empty((parts, n_taps, 2), np.int64), np.zeros((columns * step + 1) * like.shape[3], like.dtype)


@driver
def _forward(launcher, parts, kernels, x, w, b, stride, taps, residual, code, parameter, z, y):
    sources, zeros = rooms(parts, len(taps), z.shape[2], stride[1], x)
    job = local_zeros(1, DEPTHWISE)
    g = job[0]
    describe(g, x, z.shape[1], z.shape[2], stride, taps, sources, zeros)
    g.out_image, g.out_row, g.out_pixel = g.rows * g.columns * g.C, g.columns * g.C, g.C
    g.w, g.b, g.residual, g.z, g.y = address(w), address_or_null(b), address_or_null(residual), address(z), address(y)
    g.code, g.parameter = code, parameter
    run_kernel(launcher, kernels[PIXELS_PART], parts, job, (sources, zeros))


@driver
def _inputs(launcher, parts, kernels, dz, w, stride, taps, n_taps, dx):
    """taps (phases, most taps, 3), of which a phase has n_taps (phases,): for the image's pixels by their place in the stride."""
    sources, zeros = rooms(parts, taps.shape[1], dx.shape[2], 1, dz)
    for i in range(min(stride[0], dx.shape[1])):
        for j in range(min(stride[1], dx.shape[2])):
            phase, rows = i * stride[1] + j, (dx.shape[1] - i + stride[0] - 1) // stride[0]
            columns = (dx.shape[2] - j + stride[1] - 1) // stride[1]
            job = local_zeros(1, DEPTHWISE)
            g = job[0]
            describe(g, dz, rows, columns, (1, 1), taps[phase, : n_taps[phase]], sources, zeros)
            g.out_image, g.out_row = dx.shape[1] * dx.shape[2] * g.C, stride[0] * dx.shape[2] * g.C
            g.out_pixel, g.w = stride[1] * g.C, address(w)
            g.z = address(dx) + (i * dx.shape[2] + j) * g.C * g.itemsize
            run_kernel(launcher, kernels[PIXELS_PART], parts, job, (sources, zeros))


@driver
def _weights_gradient(launcher, parts, kernels, x, dz, stride, taps, dw):
    sources, zeros = rooms(parts, len(taps), dz.shape[2], stride[1], x)
    job = local_zeros(1, DEPTHWISE)
    g = job[0]
    describe(g, x, dz.shape[1], dz.shape[2], stride, taps, sources, zeros)
    g.dz, g.dw = address(dz), address(dw)
    run_kernel(launcher, kernels[WEIGHTS_PART], parts, job, (sources, zeros))


_KERNELS = Addresses(depthwise_part, depthwise_weights_part)
# multiplications and additions that a pixel's channel of one tap costs as much as: it comes from memory
COST = 4


def suits(x, w):
    """Whether every channel of x has one kernel of its own in w (kh, kw, 1, C)."""
    return w.shape[2] == 1 and w.shape[3] == x.shape[3] > 1


def forward(x, w, b, geometry, residual, activation, saved):
    """As conv2d_forward."""
    run(
        COST * saved.z.size * len(w) * w.shape[1], _forward, _KERNELS[x.dtype.char], x, w, *or_empty(x.dtype, 1, b), geometry.stride,
        _taps(w.shape, geometry), *or_empty(x.dtype, 4, residual), *activation, *saved,
    )  # fmt: skip


def inputs(dz, w, geometry, dx):
    """dx from dz."""
    operations = COST * dz.size * len(w) * w.shape[1]
    run(operations, _inputs, _KERNELS[dz.dtype.char], dz, w, geometry.stride, *_phases(w.shape, geometry), dx)


def weights(x, dz, geometry, dw):
    """dw from dz."""
    operations = COST * dz.size * len(dw) * dw.shape[1]
    run(operations, _weights_gradient, _KERNELS[x.dtype.char], x, dz, geometry.stride, _taps(dw.shape, geometry), dw)


def _taps(size, geometry):
    """(n_taps, 3) of a kernel of this size."""
    _, pads, dilation = geometry
    a, b = np.divmod(np.arange(size[0] * size[1]), size[1])
    return np.stack([a * dilation[0] - pads[0], b * dilation[1] - pads[1], np.arange(len(a))], axis=1)


def _phases(size, geometry):
    """The taps that the pixels of every phase of the stride have met, last first: (phases, most taps, 3), and how many (phases,)."""
    stride, pads, dilation = geometry
    a, b = np.divmod(np.arange(size[0] * size[1])[::-1], size[1])
    phases = []
    for i, j in np.ndindex(*stride):
        h, w = i + pads[0] - a * dilation[0], j + pads[1] - b * dilation[1]
        met = (h % stride[0] == 0) & (w % stride[1] == 0)
        phases.append(np.stack([h // stride[0], w // stride[1], a * size[1] + b], axis=1)[met])
    taps = np.zeros((len(phases), max(map(len, phases)), 3), np.int64)
    for row, phase in zip(taps, phases, strict=True):
        row[: len(phase)] = phase
    return taps, np.array([len(phase) for phase in phases])
