"""LSTM with layer norm, zoneout and recurrent dropout; formulas and layout of rows: kernels/reference/lstm_variants.py.

A time step is one GEMM over all sequences, with w_hh, and a few launches: forward one, or two with layer norm; backward three, or four.
Together they would have too many registers. lstm.py says how lengths stay on the device. In the kernels of norms the `width` threads side
by side of a tile share a sequence, since a norm needs sums over its row. Factors of zoneout and recurrent dropout are computed where they
are used, in backward again. What has no order in time is done over all steps: x w_ih and its norm before the loop; du, dx, and the
gradients of all weights after it.

Kernels of norms are wide (float64): the sums, and the numbers of a row.
"""

import math

from numba import cuda, float64

from ..reference.packing import steps
from ..types import ACTIVATIONS, Affine, LayerSaved, NormGradients, PackedBatch, Statistics
from .activation import sigmoid
from .engine import device
from .engine.device import (
    BLOCK,
    Bits,
    Integer,
    Integers,
    Number,
    Real,
    Values,
    Wide,
    WideNumber,
    blocks,
    bounded,
    device_function,
    grid_start,
    grid_stride,
    kernel,
    launch,
    wide_kernel,
)
from .engine.random import random
from .engine.reductions import add_across, sum_rows, tile_width
from .layer_norm import layer_norm_backward, layer_norm_forward, row_factors
from .packing import device_packing
from .recurrence import (
    BIAS,
    END,
    FURTHER,
    UPSTREAM,
    WHOLE,
    row_squares,
    row_stride,
    start_or_before,
    value_before,
    whole_gradient,
)

# further options of a launch: layer norm; what backward needs to keep
NORM, KEEP = FURTHER, FURTHER << 1
IDENTITY = ACTIVATIONS["identity"]


@device_function
def draw(dtype, key, kind, sequence, number, limit, factor):
    """The factor of a unit."""
    return factor if random(random(key, 3 * sequence + kind), number) >= limit else dtype(0)


@device_function
def tile_moments(shared, values, first, lane, end, width, eps):
    """mean and rstd of a tile's row, which begins at `first` and has `end` values, none outside of the matrix."""
    start, count, total, squares = 0.0, max(end, 1), 0.0, 0.0
    if end:
        start = float64(values[first])
    for column in range(lane, end, width):
        distance = float64(values[first + column]) - start
        total += distance
        squares += distance * distance
    total, squares = add_across(shared, total, width), add_across(shared, squares, width)
    var = (squares - total * (total / count)) / count
    # rounding may leave a little less than nothing
    return start + total / count, 1.0 / math.sqrt((0.0 if var < 0.0 else var) + eps)


@wide_kernel
def lstm_variant_products(
    dtype: Real, t: Integer, rows: Integer, hidden: Integer, width: Integer, options: Integer, eps: WideNumber, offsets: Integers,
    product: Values, gamma_h: Values, v: Values, mean: Wide, rstd: Wide,
):  # fmt: skip
    """v (R, 4H) from the product h w_hh (N, 4H), if it is kept, and LN(v) gamma_h in its place."""
    shared = cuda.shared.array(BLOCK, float64)
    lane = cuda.threadIdx.x & (width - 1)
    p = cuda.blockIdx.x * (BLOCK // width) + cuda.threadIdx.x // width
    row, first = offsets[t] + p, p * 4 * hidden
    end = 4 * hidden if row < offsets[t + 1] else 0
    row_mean, row_rstd = tile_moments(shared, product, first, lane, end, width, eps)
    high, factor, low = row_factors(dtype, row_mean, row_rstd)
    if options & KEEP and lane == 0 and end:
        mean[rows + row], rstd[rows + row] = row_mean, row_rstd
    for column in range(lane, end, width):
        value = product[first + column]
        if options & KEEP:
            v[row * 4 * hidden + column] = value
        product[first + column] = ((value - high) * factor + low) * gamma_h[column]


@bounded
@wide_kernel
def lstm_variant_cells(
    dtype: Real, t: Integer, rows: Integer, hidden: Integer, width: Integer, h_row: Integer, cell_row: Integer, options: Integer,
    eps: WideNumber, key: Bits, factor_g: Number, limit_g: Bits, factor_c: Number, limit_c: Bits, factor_h: Number, limit_h: Bits,
    order: Integers, offsets: Integers, product: Values, b: Values, gamma_c: Values, beta_c: Values,
    gates: Values, state_h: Values, state_c: Values, cell: Values, mean: Wide, rstd: Wide, c: Values, tanh_c: Values, h: Values,
):  # fmt: skip
    """The gates from what x_t has of z, in their place, and what h_{t-1} has of it, product (N, 4H); the new state_c and state_h (N, H).

    Without layer norm the array cell is tanh_c. What is not kept has no c and tanh_c, and the cell stands in the place of g. The rows of
    cell are cell_row values apart.
    """
    shared = cuda.shared.array(BLOCK, float64)
    lane = cuda.threadIdx.x & (width - 1)
    p = cuda.blockIdx.x * (BLOCK // width) + cuda.threadIdx.x // width
    row, high, factor, low = offsets[t] + p, dtype(0), dtype(1), dtype(0)
    end, sequence = 0, 0
    if row < offsets[t + 1]:
        end, sequence = hidden, order[p]
    for j in range(lane, end, width):
        at, step_at, i = row * 4 * hidden + j, p * 4 * hidden + j, p * hidden + j
        z_i, z_f = gates[at] + product[step_at], gates[at + hidden] + product[step_at + hidden]
        z_g, z_o = (
            gates[at + 2 * hidden] + product[step_at + 2 * hidden],
            gates[at + 3 * hidden] + product[step_at + 3 * hidden],
        )
        if options & BIAS:
            z_i += b[j]
            z_f += b[hidden + j]
            z_g += b[2 * hidden + j]
            z_o += b[3 * hidden + j]
        in_gate, forget, g, c_before = sigmoid(z_i), sigmoid(z_f), math.tanh(z_g), state_c[i]
        gates[at], gates[at + hidden] = in_gate, forget
        gates[at + 2 * hidden], gates[at + 3 * hidden] = g, sigmoid(z_o)
        number = t * hidden + j
        m = draw(dtype, key, 0, sequence, number, limit_g, factor_g)
        k_c = draw(dtype, key, 1, sequence, number, limit_c, factor_c)
        new = forget * c_before + in_gate * (m * g)
        value = k_c * new + (dtype(1) - k_c) * c_before
        cell[row * cell_row + j], state_c[i] = new, value
        if options & KEEP:
            c[row * hidden + j] = value
    if options & NORM:
        cuda.syncthreads()
        row_mean, row_rstd = tile_moments(shared, cell, row * cell_row, lane, end, width, eps)
        high, factor, low = row_factors(dtype, row_mean, row_rstd)
        if options & KEEP and lane == 0 and end:
            mean[2 * rows + row], rstd[2 * rows + row] = row_mean, row_rstd
    for j in range(lane, end, width):
        i, value = p * hidden + j, cell[row * cell_row + j]
        if options & NORM:
            value = ((value - high) * factor + low) * gamma_c[j] + beta_c[j]
        tanh, k_h = math.tanh(value), draw(dtype, key, 2, sequence, t * hidden + j, limit_h, factor_h)
        value = k_h * (gates[row * 4 * hidden + 3 * hidden + j] * tanh) + (dtype(1) - k_h) * state_h[i]
        state_h[i], h[row * h_row + j] = value, value
        if options & KEEP:
            tanh_c[row * hidden + j] = tanh


@kernel
def lstm_variant_output_gradients(
    dtype: Real, t: Integer, steps: Integer, step_after: Integer, hidden: Integer, dh_row: Integer, options: Integer,
    key: Bits, factor_h: Number, limit_h: Bits, order: Integers, offsets: Integers, dh: Values, direct: Values, dh_after: Values,
    dh_n: Values, gates: Values, tanh_c: Values, dz: Values, dn: Values, step_dcell: Values, whole: Values,
):  # fmt: skip
    """dz of o, dn (R, H) and its copy step_dcell (N, H), and direct (N, H), the part of dL/dh_{t-1} that passes no product."""
    row, one = offsets[t], dtype(1)
    for i in range(grid_start(), (offsets[t + 1] - row) * hidden, grid_stride()):
        p = i // hidden
        j = i - p * hidden
        at = (row + p) * 4 * hidden + 3 * hidden + j
        # what the step after has directly is 0 where there is none
        dh_t = direct[i] + whole_gradient(
            dtype, t, steps, step_after, p, j, hidden, dh_row, options, order, offsets, dh, dh_after, dh_n
        )
        if options & WHOLE:
            whole[row * hidden + i] = dh_t
        k_h = draw(dtype, key, 2, order[p], t * hidden + j, limit_h, factor_h)
        direct[i] = (one - k_h) * dh_t
        dr, o, tanh = k_h * dh_t, gates[at], tanh_c[row * hidden + i]
        dz[at] = dr * tanh * o * (one - o)
        value = dr * o * (one - tanh * tanh)
        dn[row * hidden + i], step_dcell[i] = value, value


@kernel
def lstm_variant_gate_gradients(
    dtype: Real, t: Integer, steps: Integer, step_before: Integer, hidden: Integer,
    key: Bits, factor_g: Number, limit_g: Bits, factor_c: Number, limit_c: Bits,
    order: Integers, offsets: Integers, step_dcell: Values, gates: Values, c: Values, c_0: Values, state_dc: Values, dz: Values,
):  # fmt: skip
    """dz (R, 4H) of i, f and g, which may be gates, from what h_t gives dcell (N, H), and state_dc of the step before."""
    row, one = offsets[t], dtype(1)
    for i in range(grid_start(), (offsets[t + 1] - row) * hidden, grid_stride()):
        p = i // hidden
        j = i - p * hidden
        at, sequence, number = (row + p) * 4 * hidden + j, order[p], t * hidden + j
        in_gate, forget, g = gates[at], gates[at + hidden], gates[at + 2 * hidden]
        c_before = value_before(offsets, steps, step_before, p, j, hidden, hidden, c, order, c_0)
        m = draw(dtype, key, 0, sequence, number, limit_g, factor_g)
        k_c = draw(dtype, key, 1, sequence, number, limit_c, factor_c)
        dc = state_dc[i]
        dcell = step_dcell[i] + k_c * dc
        state_dc[i] = dcell * forget + (one - k_c) * dc
        dz_i, dz_f = dcell * (m * g) * in_gate * (one - in_gate), dcell * c_before * forget * (one - forget)
        dz[at], dz[at + hidden], dz[at + 2 * hidden] = dz_i, dz_f, dcell * in_gate * m * (one - g * g)


@wide_kernel
def lstm_variant_norm_gradients(
    dtype: Real, t: Integer, columns: Integer, width: Integer, options: Integer, offsets: Integers,
    dy: Values, gamma: Values, x: Values, mean: Wide, rstd: Wide, dx: Values, step_dx: Values,
):  # fmt: skip
    """The step's rows of dx (R, columns) from dy, that of the norm's output, which it is without layer norm, and their copy step_dx."""
    shared = cuda.shared.array(BLOCK, float64)
    lane = cuda.threadIdx.x & (width - 1)
    p = cuda.blockIdx.x * (BLOCK // width) + cuda.threadIdx.x // width
    row = offsets[t] + p
    first, end = row * columns, columns if row < offsets[t + 1] else 0
    high, factor, low, slope, offset = dtype(0), dtype(1), dtype(0), dtype(0), dtype(0)
    if options & NORM:
        row_rstd, total, products = 0.0, 0.0, 0.0
        if end:
            row_rstd = rstd[row]
            high, factor, low = row_factors(dtype, mean[row], row_rstd)
        for column in range(lane, end, width):
            at = first + column
            value = dy[at] * gamma[column]
            total += float64(value)
            products += float64(value * ((x[at] - high) * factor + low))
        total, products = add_across(shared, total, width), add_across(shared, products, width)
        slope, offset = dtype(-row_rstd * products / columns), dtype(-row_rstd * total / columns)
    for column in range(lane, end, width):
        at = first + column
        value = dy[at]
        if options & NORM:
            value = factor * (value * gamma[column]) + (((x[at] - high) * factor + low) * slope + offset)
            dx[at] = value
        step_dx[p * columns + column] = value


def tile_blocks(n, width):
    """The grid of tiles of this width, one for each of n sequences."""
    return -(-n // (BLOCK // width))


def factor_numbers(variant):
    """The key, and factor and limit of m, k_c and k_h."""
    return variant.key or 0, *(number for pair in variant.factors for number in pair)


def lstm_variant_forward(xs, weights, start, batch, variant, saved, end):
    """Write h and the arrays for backward to `saved`, and the states after each sequence's last step to `end`."""
    xp, matmul, dtype, (n, hidden) = device.xp, device.xp.matmul, xs.dtype, start.c.shape
    w_ih, w_hh, b, gamma_x, gamma_h, gamma_c, beta_c = weights
    gates, c, tanh_c, h, u, v, cell, mean, rstd = saved
    order, offsets = device_packing(batch)
    state_h, state_c, product, width = (
        start.h[order],
        start.c[order],
        xp.empty((n, 4 * hidden), dtype),
        tile_width(hidden),
    )
    options = KEEP * (c is not None)
    if gamma_x is None:
        options, cell = options | BIAS * (b is not None), tanh_c
        matmul(xs, w_ih, out=gates)
    else:
        options, u = options | NORM, gates if u is None else u
        matmul(xs, w_ih, out=u)
        statistics = Statistics(*(xp.empty(len(xs)) if a is None else a[0] for a in (mean, rstd)))
        layer_norm_forward(u, Affine(gamma_x, b), variant.eps, None, IDENTITY, statistics, LayerSaved(gates, gates))
    cell = cell if options & KEEP else gates[:, 2 * hidden :]
    grid = tile_blocks(n, width)
    sizes = len(xs), hidden, width, row_stride(h), row_stride(cell), options, variant.eps, *factor_numbers(variant)
    for t in steps(batch):
        matmul(state_h, w_hh, out=product)
        if options & NORM:
            arrays = offsets, product, gamma_h, v, mean, rstd
            launch(lstm_variant_products, dtype, grid, t, len(xs), hidden, width, options, variant.eps, *arrays)
        arrays = product, b, gamma_c, beta_c, gates, state_h, state_c, cell, mean, rstd, c, tanh_c, h
        launch(lstm_variant_cells, dtype, grid, t, *sizes, order, offsets, *arrays)
    end.h[order], end.c[order] = state_h, state_c


def lstm_variant_backward(upstream, xs, weights, start, batch, variant, saved, gradients):
    """All gradients from the upstream gradients; an upstream gradient that is None is zero."""
    xp, matmul, dtype = device.xp, device.xp.matmul, xs.dtype
    dz, du, dv, dn, dxs, dweights, _, squares = gradients
    batch = PackedBatch(*device_packing(batch), batch.reverse)
    whole = xp.empty(saved.h.shape, dtype) if squares is not None else None
    differentiate_steps(upstream, weights, start, batch, variant, saved, gradients, whole)
    if dn is None:
        if dweights.b is not None:
            sum_rows(dz, dweights.b)
    else:
        sums = (
            (dweights.gamma_x, dweights.b),
            (dweights.gamma_h, xp.empty_like(weights.b)),
            (dweights.gamma_c, dweights.beta_c),
        )
        inputs, gammas = (saved.u, saved.v, saved.cell), weights[3:6]
        norms = zip((dz, dz, dn), inputs, gammas, (du, None, None), saved.mean, saved.rstd, sums, strict=True)
        for dy, x, gamma, dx, mean, rstd, (dgamma, dbeta) in norms:
            written = NormGradients(None, dx, dgamma, dbeta)
            layer_norm_backward(
                dy, x, Statistics(mean, rstd), Affine(gamma, None), IDENTITY, LayerSaved(dy, dy), written
            )
    if dxs is not None:
        matmul(du, weights.w_ih.T, out=dxs)
    matmul(xs.T, du, out=dweights.w_ih)
    matmul(start_or_before(saved.h, start.h, batch).T, dv, out=dweights.w_hh)
    if squares is not None:
        row_squares(whole, squares)


def differentiate_steps(upstream, weights, start, batch, variant, saved, gradients, whole):
    """dz, dv, dn and the gradients of the start, through all steps, and whole (R, H) = dL/dh unless it is None."""
    (dh, dh_n, dc_n), (order, offsets, reverse), dtype = upstream, batch, gradients.dz.dtype
    gates, c, tanh_c, _, _, v, cell, mean, rstd = saved
    dz, _, dv, dn, _, _, dstart, _ = gradients
    xp, matmul, has_norm = device.xp, device.xp.matmul, v is not None
    (n, hidden), step_count, direction = start.c.shape, len(offsets) - 1, -1 if reverse else 1
    direct, dh_after, step_dv = (
        xp.zeros((n, hidden), dtype),
        xp.zeros((n, hidden), dtype),
        xp.zeros((n, 4 * hidden), dtype),
    )
    state_dc, width = xp.zeros_like(start.c) if dc_n is None else dc_n[order], tile_width(hidden)
    dn = xp.empty_like(c) if dn is None else dn
    options = UPSTREAM * (dh is not None) + END * (dh_n is not None) + WHOLE * (whole is not None) + NORM * has_norm
    key, *factors = factor_numbers(variant)
    dh_row, step_dcell, dcell = 0 if dh is None else row_stride(dh), xp.empty((n, hidden), dtype), xp.empty_like(c)
    outputs = order, offsets, dh, direct, dh_after, dh_n, gates, tanh_c, dz, dn, step_dcell, whole
    cells = order, offsets, step_dcell, gates, c, start.c, state_dc, dz
    of_v, of_cell = ((None, None) if mean is None else (mean[k], rstd[k]) for k in (1, 2))
    products = offsets, dz, weights.gamma_h, v, *of_v, dv, step_dv
    norm, grid, tile_grid = (
        (offsets, dn, weights.gamma_c, cell, *of_cell, dcell, step_dcell),
        blocks(n * hidden),
        tile_blocks(n, width),
    )
    for t in reversed(steps(batch)):
        place = t, step_count, t + direction, hidden, dh_row, options
        launch(lstm_variant_output_gradients, dtype, grid, *place, key, *factors[4:], *outputs)
        if has_norm:
            launch(lstm_variant_norm_gradients, dtype, tile_grid, t, hidden, width, options, *norm)
        place = t, step_count, t - direction, hidden
        launch(lstm_variant_gate_gradients, dtype, grid, *place, key, *factors[:4], *cells)
        launch(lstm_variant_norm_gradients, dtype, tile_grid, t, 4 * hidden, width, options, *products)
        matmul(step_dv, weights.w_hh.T, out=dh_after)
    # as in gru.py
    has_steps = xp.arange(n)[:, None] < offsets[min(step_count, 1)]
    dstart.h[order] = xp.where(has_steps, direct + dh_after, 0 if dh_n is None else dh_n[order])
    dstart.c[order] = state_dc
