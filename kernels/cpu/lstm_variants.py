"""LSTM with layer norm, zoneout and recurrent dropout; formulas and layout of rows: kernels/reference/lstm_variants.py.

Passes: x w_ih is one product over all steps before the loop. Then a thread takes its sequences through all time steps, as in lstm.py. A
step is the product with w_hh, and then, row by row while they are in cache, the two norms, the gates, the norm of the cell, and the factors
of zoneout and recurrent dropout, which backward computes again from the key.

Backward: the loop leaves dz, dv and the gradient of the normalised cell. The sums over rows that the norms' weights need have no order in
time, nor has du: they are layer norms' backwards over all steps. Products over all steps give dx and the gradients of the matrices.
"""

import numpy as np

from ..types import ACTIVATIONS, Affine, LayerSaved, NormGradients, Statistics
from .engine import vector_math
from .engine.compile import Addresses, device_function, driver, driver_function, inline_function, kernel
from .engine.intrinsics import (
    address,
    address_or_null,
    advance,
    carray,
    copy,
    local_zeros,
    pointer,
    real,
    run_kernel,
    void_pointer,
)
from .engine.matrix import MATRIX, array_matrix
from .engine.microkernel import provide_microkernel
from .engine.random import random
from .engine.thread_pool import run, thread_range
from .engine.vector_loops import add, map_arrays, map_values, squares
from .gemm import SCRATCH, gemm_part
from .layer_norm import factors_of, float64s, gradient_factors, layer_norm_backward, mean_and_rstd, normalise
from .packing import offsets_of, order_of
from .recurrence import (
    BACKWARD_PART,
    FEW_ROWS,
    FEW_STEPS,
    FORWARD_PART,
    IN_PLACE,
    IN_ROWS,
    WEIGHTS_PART,
    copy_states,
    describe_matrix,
    describe_scratch,
    describe_sequences,
    fill_panels,
    launch_product,
    pack_part,
    sequences_before,
    step_product,
    step_sequences,
    thread_sequences,
    values_at,
    weight_gradient,
)

# addresses of arrays, 0 where there is none, values from row to row (_row), and sizes
VARIANT = np.dtype(
    # N, T, R; C and H; ones: 1 if there is a gradient of b to sum
    [(name, "i8") for name in "n steps rows C H ones itemsize reverse accumulate order offsets".split()]
    # gemm: address of gemm_part; scratch: its panels, (SCRATCH,) a thread; cells: (6, H) a thread, m, k_c, k_h of a row, then dcell in
    # backward, or c, tanh c and the cell where they are not kept; states: of all threads
    + [(name, "i8") for name in "gemm scratch cells states".split()]
    # as the products in time read it
    + [("w_hh", MATRIX)]
    # a forward's arrays, as the reference has them
    + [(name, "i8") for name in "xs xs_row b gamma_x gamma_h gamma_c beta_c h_0 c_0 h_n c_n".split()]
    + [(name, "i8") for name in "gates c tanh_c h h_row u v cell mean rstd".split()]
    # a backward's
    + [(name, "i8") for name in "dh dh_row dh_n dc_n dz du dv dn dh_0 dc_0 squares dw_ih dw_hh db".split()]
    # what the weights' gradients need: inputs (R, H + 1) = h_{t-1}, 1
    + [("inputs", "i8")]
    # of m, k_c and k_h: factor where the random number is at least limit, else 0
    + [(name, "u8") for name in "key limit_g limit_c limit_h".split()]
    + [(name, "f8") for name in "factor_g factor_c factor_h eps".split()]
)
# a place among the kernels behind those of recurrence.py
INPUTS_PART = WEIGHTS_PART + 1


@device_function
def thread_states(variant, thread_index, thread_count, like):
    """Scratch of the thread's n sequences: h (n, H), c (n, H), and products for them (n, 4H)."""
    H, sequences = variant.H, thread_sequences(thread_index, thread_count, variant.n)
    before = sequences_before(thread_index, thread_count, variant.n)
    state_h = values_at(variant.states, 6 * H * before, like)
    return state_h, advance(state_h, sequences * H), advance(state_h, 2 * sequences * H)


@device_function
def constant_factors(variant, thread_index, like):
    """The thread's m, k_c and k_h (H,) each, with the factors that hold for all rows where nothing is drawn; and a row's cells (3, H)."""
    H = variant.H
    m = values_at(variant.cells, thread_index * 6 * H, like)
    k_c, k_h = advance(m, H), advance(m, 2 * H)
    factors = carray(m, 3 * H)
    for j in range(H):
        factors[j], factors[H + j], factors[2 * H + j] = variant.factor_g, variant.factor_c, variant.factor_h
    return m, k_c, k_h, advance(m, 3 * H)


@device_function
def draw(H, key, kind, sequence, t, limit, factor, target):
    """The factors of a kind (H,) for a sequence's step t, unless they are the same for all."""
    if limit == 0:
        return
    values, sequence_key = carray(target, H), random(key, 3 * sequence + kind)
    for j in range(H):
        values[j] = real(factor, values[j]) if random(sequence_key, t * H + j) >= limit else real(0, values[j])


@device_function
def draw_factors(variant, sequence, t, m, k_c, k_h):
    H, key = variant.H, variant.key
    draw(H, key, 0, sequence, t, variant.limit_g, variant.factor_g, m)
    draw(H, key, 1, sequence, t, variant.limit_c, variant.factor_c, k_c)
    draw(H, key, 2, sequence, t, variant.limit_h, variant.factor_h, k_h)


@inline_function
def normalise_gates(u, v, gamma_x, gamma_h, b, high_x, rstd_x, low_x, high_h, rstd_h, low_h):
    return (((u - high_x) * rstd_x + low_x) * gamma_x + ((v - high_h) * rstd_h + low_h) * gamma_h + b,)


@inline_function
def next_cell(i, f, g, m, k_c, c_before):
    """The cell, and c_t, twice: for the array c and for the state."""
    cell = f * c_before + i * (m * g)
    c = k_c * cell + (real(1, k_c) - k_c) * c_before
    return cell, c, c


@inline_function
def next_output(o, tanh_c, k_h, h_before):
    """h_t, twice: for the array h and for the state."""
    h = k_h * (o * tanh_c) + (real(1, k_h) - k_h) * h_before
    return h, h


@inline_function
def output_gradients(dh, k_h, o, tanh_c):
    """dz_o, dn, and what dh_{t-1} has of h_t directly."""
    one, dr = real(1, dh), k_h * dh
    return dr * tanh_c * o * (one - o), dr * o * (one - tanh_c * tanh_c), (one - k_h) * dh


@inline_function
def norm_gradient(dy, gamma, x, high, rstd, low, slope, offset):
    return (rstd * (dy * gamma) + (((x - high) * rstd + low) * slope + offset),)


@inline_function
def cell_gradients(i, f, g, m, k_c, c_before, dcell, dc):
    """dz of i, f and g, and dc of the step before."""
    one, d = real(1, i), k_c * dc + dcell
    dz_i, dz_f, dz_g = d * (m * g) * i * (one - i), d * c_before * f * (one - f), d * i * m * (one - g * g)
    return dz_i, dz_f, dz_g, d * f + (one - k_c) * dc


@device_function
def saved_factors(variant, k, row, one):
    """(high, rstd, low) of the norm of u, v or the cell, k = 0, 1 or 2, in a row: see factors_of in layer_norm.py."""
    at, n = k * variant.rows + row, 3 * variant.rows
    return factors_of(float64s(variant.mean, n)[at], float64s(variant.rstd, n)[at], one)


@device_function
def row_factors(variant, k, row, x, columns):
    """Write mean and rstd of a row of u, v or the cells, k = 0, 1 or 2, if they are kept, and return its factors."""
    at, n = k * variant.rows + row, 3 * variant.rows
    mean, rstd = mean_and_rstd(x, columns, variant.eps)
    if variant.mean:
        float64s(variant.mean, n)[at], float64s(variant.rstd, n)[at] = mean, rstd
    return factors_of(mean, rstd, carray(x, 1)[0])


@device_function
def differentiate_norm(variant, k, row, dy, gamma, x, columns, target):
    """The gradient of a row of u, v or the cells, k = 0, 1 or 2, from that of its norm's output."""
    factors = gradient_factors(dy, gamma, x, columns, saved_factors(variant, k, row, carray(x, 1)[0]))
    map_arrays(norm_gradient, columns, (dy, gamma, x), (target,), factors)


@kernel(VARIANT, needs=provide_microkernel)
def lstm_variant_forward_part(thread_index, thread_count, record, like):
    """The thread's sequences through all steps, forward, from x w_ih in u, or with b in the place of the gates."""
    variant = carray(record, 1)[0]
    H, order, offsets, null = variant.H, order_of(variant), offsets_of(variant), pointer(variant.n * 0, like)
    gamma_x, gamma_h, b = (
        pointer(variant.gamma_x, like),
        pointer(variant.gamma_h, like),
        pointer(variant.b, like),
    )  # (4H,)
    gamma_c, beta_c = pointer(variant.gamma_c, like), pointer(variant.beta_c, like)  # (H,)
    state_h, state_c, products = thread_states(variant, thread_index, thread_count, like)
    m, k_c, k_h, row_cells = constant_factors(variant, thread_index, like)
    copy_states(variant, thread_index, thread_count, H, state_h, H, variant.h_0, False)
    copy_states(variant, thread_index, thread_count, H, state_c, H, variant.c_0, False)
    for step in range(variant.steps):
        t = variant.steps - 1 - step if variant.reverse else step
        rows = thread_sequences(thread_index, thread_count, step_sequences(offsets, variant.steps, t))
        first = offsets[t] + thread_index
        # v = h_{t-1} w_hh, or z = x_t w_ih + b + h_{t-1} w_hh; the step's rows are thread_count rows apart
        apart = thread_count * 4 * H
        step_v, v_row = products, 4 * H  # (rows, 4H)
        if variant.v:
            step_v, v_row = values_at(variant.v, first * 4 * H, like), apart
        if variant.gamma_x:
            step_product(variant, thread_index, rows, 4 * H, H, state_h, H, variant.w_hh, null, 0, step_v, v_row)
        else:
            z = values_at(variant.gates, first * 4 * H, like)  # (rows, 4H)
            step_product(variant, thread_index, rows, 4 * H, H, state_h, H, variant.w_hh, z, apart, z, apart)
        for i in range(rows):
            row, sequence = first + i * thread_count, order[thread_index + i * thread_count]
            z, h_before, c_before = (
                values_at(variant.gates, row * 4 * H, like),
                advance(state_h, i * H),
                advance(state_c, i * H),
            )  # (4H,), (H,), (H,)
            # z = LN(u) gamma_x + LN(v) gamma_h + b, and the gates
            if variant.gamma_x:
                u, v = values_at(variant.u, row * 4 * H, like), advance(step_v, i * v_row)  # (4H,) each
                factors = row_factors(variant, 0, row, u, 4 * H) + row_factors(variant, 1, row, v, 4 * H)
                map_arrays(normalise_gates, 4 * H, (u, v, gamma_x, gamma_h, b), (z,), factors)
            f, g, o = advance(z, H), advance(z, 2 * H), advance(z, 3 * H)  # (H,) each
            map_values(vector_math.sigmoid, 2 * H, z, z, ())
            map_values(vector_math.tanh, H, g, g, ())
            map_values(vector_math.sigmoid, H, o, o, ())
            # the cell and c_t
            draw_factors(variant, sequence, t, m, k_c, k_h)
            c, tanh_c, cell = row_cells, advance(row_cells, H), advance(row_cells, 2 * H)  # (H,) each
            if variant.c:
                c, tanh_c = values_at(variant.c, row * H, like), values_at(variant.tanh_c, row * H, like)
                cell = values_at(variant.cell, row * H, like)
            if variant.gamma_x == 0:
                cell = tanh_c
            map_arrays(next_cell, H, (z, f, g, m, k_c, c_before), (cell, c, c_before), ())
            # tanh_c and h_t
            if variant.gamma_x:
                map_arrays(normalise, H, (cell, gamma_c, beta_c), (tanh_c,), row_factors(variant, 2, row, cell, H))
            map_values(vector_math.tanh, H, tanh_c, tanh_c, ())
            h = values_at(variant.h, row * variant.h_row, like)  # (H,)
            map_arrays(next_output, H, (o, tanh_c, k_h, h_before), (h, h_before), ())
    copy_states(variant, thread_index, thread_count, H, state_h, H, variant.h_n, True)
    copy_states(variant, thread_index, thread_count, H, state_c, H, variant.c_n, True)


@kernel(VARIANT, needs=provide_microkernel)
def lstm_variant_backward_part(thread_index, thread_count, record, like):
    """The thread's sequences back through all steps of the forward, to dz, dv and dn; w_hh is its transpose."""
    variant = carray(record, 1)[0]
    H, order, offsets, null = variant.H, order_of(variant), offsets_of(variant), pointer(variant.n * 0, like)
    gamma_h, gamma_c = pointer(variant.gamma_h, like), pointer(variant.gamma_c, like)  # (4H,), (H,)
    state_dh, state_dc, products = thread_states(variant, thread_index, thread_count, like)
    m, k_c, k_h, dcell = constant_factors(variant, thread_index, like)
    copy_states(variant, thread_index, thread_count, H, state_dh, H, variant.dh_n, False)
    copy_states(variant, thread_index, thread_count, H, state_dc, H, variant.dc_n, False)
    for step in range(variant.steps):
        t = step if variant.reverse else variant.steps - 1 - step
        step_before = t + 1 if variant.reverse else t - 1
        rows = thread_sequences(thread_index, thread_count, step_sequences(offsets, variant.steps, t))
        rows_before = thread_sequences(thread_index, thread_count, step_sequences(offsets, variant.steps, step_before))
        first = offsets[t] + thread_index
        for i in range(rows):
            row, sequence = first + i * thread_count, order[thread_index + i * thread_count]
            dh, dc = advance(state_dh, i * H), advance(state_dc, i * H)  # (H,) each
            # the whole dL/dh_t
            if variant.dh:
                map_arrays(add, H, (dh, values_at(variant.dh, row * variant.dh_row, like)), (dh,), ())
            if variant.squares:
                carray(void_pointer(variant.squares), row + 1, np.float64)[row] = squares(dh, H)
            # h_t and tanh_c, back
            draw_factors(variant, sequence, t, m, k_c, k_h)
            i_gate = values_at(variant.gates, row * 4 * H, like)  # (H,), as the next three
            f, g, o = advance(i_gate, H), advance(i_gate, 2 * H), advance(i_gate, 3 * H)
            dz = values_at(variant.dz, row * 4 * H, like)  # (4H,)
            dn = values_at(variant.dn, row * H, like) if variant.gamma_x else dcell  # (H,)
            tanh_c = values_at(variant.tanh_c, row * H, like)  # (H,)
            map_arrays(output_gradients, H, (dh, k_h, o, tanh_c), (advance(dz, 3 * H), dn, dh), ())
            if variant.gamma_x:
                cell = values_at(variant.cell, row * H, like)  # (H,)
                differentiate_norm(variant, 2, row, dn, gamma_c, cell, H, dcell)
            # the cell and c_t, back
            c_before = values_at(variant.c_0, sequence * H, like)  # (H,)
            if i < rows_before:
                row_before = offsets[step_before] + thread_index + i * thread_count
                c_before = values_at(variant.c, row_before * H, like)
            sources = i_gate, f, g, m, k_c, c_before, dcell, dc
            map_arrays(cell_gradients, H, sources, (dz, advance(dz, H), advance(dz, 2 * H), dc), ())
            # LN(v), back
            if variant.gamma_x:
                v, dv = values_at(variant.v, row * 4 * H, like), values_at(variant.dv, row * 4 * H, like)  # (4H,) each
                differentiate_norm(variant, 1, row, dz, gamma_h, v, 4 * H, dv)
        # dh_{t-1} += dv w_hh^T; the products add up alone, as in gru.py
        dv, dv_row = values_at(variant.dv, first * 4 * H, like), thread_count * 4 * H  # (rows, 4H)
        step_product(variant, thread_index, rows, H, 4 * H, dv, dv_row, variant.w_hh, null, 0, products, H)
        map_arrays(add, rows * H, (state_dh, products), (state_dh,), ())
    copy_states(variant, thread_index, thread_count, H, state_dh, H, variant.dh_0, True)
    copy_states(variant, thread_index, thread_count, H, state_dc, H, variant.dc_0, True)


@kernel(VARIANT)
def inputs_part(thread_index, thread_count, record, like):
    """h_{t-1} and 1 (R, H + 1) of the thread's steps."""
    variant = carray(record, 1)[0]
    H, order, offsets = variant.H, order_of(variant), offsets_of(variant)
    first, end = thread_range(thread_index, thread_count, variant.steps, 1)
    for t in range(first, end):
        step_before = t + 1 if variant.reverse else t - 1
        rows_before = step_sequences(offsets, variant.steps, step_before)
        for p in range(offsets[t + 1] - offsets[t]):
            h_before = values_at(variant.h_0, order[p] * H, like)  # (H,)
            if p < rows_before:
                h_before = values_at(variant.h, (offsets[step_before] + p) * variant.h_row, like)
            inputs = values_at(variant.inputs, (offsets[t] + p) * (H + 1), like)  # (H + 1,)
            copy(H, h_before, inputs)
            carray(advance(inputs, H), 1)[0] = 1


@kernel(VARIANT)
def weights_part(thread_index, thread_count, record, like):
    """The thread's columns of the gradients of w_ih and w_hh, and without layer norm of b."""
    variant = carray(record, 1)[0]
    C, H, columns = variant.C, variant.H, variant.H + 1
    xs, inputs = pointer(variant.xs, like), pointer(variant.inputs, like)  # (R, C), (R, H + 1)
    du, dv = pointer(variant.du, like), pointer(variant.dv, like)  # (R, 4H) each
    dw_ih, dw_hh, db = pointer(variant.dw_ih, like), pointer(variant.dw_hh, like), pointer(variant.db, like)
    weight_gradient(variant, thread_index, thread_count, C, 4 * H, xs, variant.xs_row, du, 4 * H, dw_ih, 4 * H)
    weight_gradient(variant, thread_index, thread_count, H, 4 * H, inputs, columns, dv, 4 * H, dw_hh, 4 * H)
    ones = advance(inputs, H)  # (R, 1)
    weight_gradient(variant, thread_index, thread_count, variant.ones, 4 * H, ones, columns, dv, 4 * H, db, 4 * H)


@device_function
def scratch_sizes(n, H):
    """Sizes of the scratch that forward and backward share: all threads' states; w_hh as products read it, and zeros in b's place."""
    # the last panel may have more columns than w
    return 6 * n * H, 4 * H * H + 64 * 4 * H


@device_function
def describe_norms(variant, gammas, arrays, statistics):
    """Fill in the norms' weights (gamma_x, gamma_h, gamma_c), their inputs (u, v, cell), and (mean, rstd); null without layer norm."""
    variant.gamma_x, variant.gamma_h, variant.gamma_c = (
        address_or_null(gammas[0]),
        address_or_null(gammas[1]),
        address_or_null(gammas[2]),
    )
    variant.u, variant.v, variant.cell = (
        address_or_null(arrays[0]),
        address_or_null(arrays[1]),
        address_or_null(arrays[2]),
    )
    variant.mean, variant.rstd = address_or_null(statistics[0]), address_or_null(statistics[1])


@device_function
def describe_factors(variant, key, limits, factors):
    """Fill in what m, k_c and k_h are drawn from."""
    variant.key = key
    variant.limit_g, variant.limit_c, variant.limit_h = limits
    variant.factor_g, variant.factor_c, variant.factor_h = factors


@driver_function
def describe_steps(variant, launcher, thread_count, kernels, transposed, w_hh, scratch):
    """w_hh, or its transpose, as products in time will read it, and the scratch: the address of its rest."""
    H = variant.H
    states_size, w_hh_size = scratch_sizes(variant.n, H)
    w_hh_scratch = describe_scratch(variant, thread_count, kernels, scratch, states_size)
    if variant.steps > FEW_STEPS and variant.n > FEW_ROWS * thread_count:
        variant.w_hh.at, depth = w_hh_scratch, 4 * H if transposed else H
        fill_panels(launcher, thread_count, kernels, transposed, w_hh, H, 4 * H, w_hh_scratch, depth, 0)
    else:
        mode = IN_PLACE if variant.steps <= FEW_STEPS else IN_ROWS
        describe_matrix(variant.w_hh, mode, transposed, w_hh, H, 4 * H, w_hh_scratch)
    return w_hh_scratch + w_hh_size * variant.itemsize


@driver
def _forward(
    launcher, thread_count, kernels, xs, w_ih, w_hh, b, gamma_x, gamma_h, gamma_c, beta_c, h_0, c_0, order, offsets, reverse,
    key, limits, factors, eps, gates, c, tanh_c, h, u, v, cell, mean, rstd, h_n, c_n, scratch,
):  # fmt: skip
    record = local_zeros(1, VARIANT)
    variant = record[0]
    describe_sequences(variant, xs, h_0, order, offsets, reverse, gates, h)
    describe_norms(variant, (gamma_x, gamma_h, gamma_c), (u, v, cell), (mean, rstd))
    describe_factors(variant, key, limits, factors)
    variant.H, variant.c_0, variant.h_n, variant.c_n = h_0.shape[1], address(c_0), address(h_n), address(c_n)
    variant.b, variant.beta_c, variant.eps = address_or_null(b), address_or_null(beta_c), eps
    variant.c, variant.tanh_c = address_or_null(c), address_or_null(tanh_c)
    variant.cells = describe_steps(variant, launcher, thread_count, kernels, False, w_hh, scratch)
    # what is not kept is normalised in place
    variant.u = variant.u if variant.u else variant.gates
    start, target = (0, variant.u) if variant.gamma_x else (variant.b, variant.gates)
    launch_product(launcher, thread_count, kernels, False, w_ih, variant, variant.xs, variant.xs_row, start, target)
    # a sequence is one thread's
    run_kernel(launcher, kernels[FORWARD_PART], max(1, min(thread_count, variant.n)), record, ())


@driver
def _steps_backward(
    launcher, thread_count, kernels, has_dh, dh, dh_n, dc_n, xs, w_hh, gamma_x, gamma_h, gamma_c, h_0, c_0, order, offsets, reverse,
    key, limits, factors, gates, c, tanh_c, h, u, v, cell, mean, rstd, dz, dv, dn, dh_0, dc_0, squares, scratch,
):  # fmt: skip
    record = local_zeros(1, VARIANT)
    variant = record[0]
    describe_sequences(variant, xs, h_0, order, offsets, reverse, gates, h)
    describe_norms(variant, (gamma_x, gamma_h, gamma_c), (u, v, cell), (mean, rstd))
    describe_factors(variant, key, limits, factors)
    variant.H, variant.c_0, variant.c, variant.tanh_c = h_0.shape[1], address(c_0), address(c), address(tanh_c)
    variant.cells = describe_steps(variant, launcher, thread_count, kernels, True, w_hh, scratch)
    variant.dh, variant.dh_row = address(dh) if has_dh else 0, array_matrix(dh).row
    variant.dh_n, variant.dc_n, variant.squares = address_or_null(dh_n), address_or_null(dc_n), address_or_null(squares)
    variant.dz, variant.dv, variant.dn = address(dz), address(dv), address_or_null(dn)
    variant.dh_0, variant.dc_0 = address(dh_0), address(dc_0)
    run_kernel(launcher, kernels[BACKWARD_PART], max(1, min(thread_count, variant.n)), record, ())


@driver
def _weights_backward(
    launcher, thread_count, kernels, xs, w_ih, h_0, order, offsets, reverse, h, du, dv, dxs, dw_ih, dw_hh, db, scratch
):
    record = local_zeros(1, VARIANT)
    variant = record[0]
    describe_sequences(variant, xs, h_0, order, offsets, reverse, du, h)
    variant.H, variant.du, variant.dv = h_0.shape[1], address(du), address(dv)
    variant.dw_ih, variant.dw_hh, variant.db, variant.ones = (
        address(dw_ih),
        address(dw_hh),
        address_or_null(db),
        min(1, db.size),
    )
    variant.inputs = describe_scratch(variant, thread_count, kernels, scratch, 0)
    run_kernel(launcher, kernels[INPUTS_PART], thread_count, record, ())
    if dxs.size > 0:
        launch_product(launcher, thread_count, kernels, True, w_ih, variant, variant.du, 4 * variant.H, 0, address(dxs))
    run_kernel(launcher, kernels[WEIGHTS_PART], thread_count, record, ())


_KERNELS = Addresses(
    gemm_part, pack_part, lstm_variant_forward_part, lstm_variant_backward_part, weights_part, inputs_part
)
# vectors and matrices for None: see lstm.py
_NONE = {char: (np.empty(0, char), np.empty((0, 0), char)) for char in "fd"}
IDENTITY = ACTIVATIONS["identity"]


def _factor_arguments(variant):
    """The key, limits and factors of the record, in types that depend on no value."""
    factors, limits = zip(*variant.factors, strict=True)
    return np.uint64(variant.key or 0), tuple(map(np.uint64, limits)), tuple(map(float, factors))


def lstm_variant_forward(xs, weights, start, batch, variant, saved, end):
    """Write h and the arrays for backward to `saved`, and the states after each sequence's last step to `end`."""
    w_ih, w_hh, b, *norms = weights
    gates, c, tanh_c, h, u, v, cell, mean, rstd = saved
    dtype, (rows, C), (n, H) = xs.dtype, xs.shape, start.c.shape
    vector, matrix = _NONE[dtype.char]
    wide = _NONE["d"][1]
    run(
        8 * rows * H * (C + H), _forward, _KERNELS[dtype.char], xs[:0], w_ih[:0], w_hh[:0],
        *(vector if a is None else a for a in (b, *norms)), *start, *batch, *_factor_arguments(variant), variant.eps,
        gates, *(matrix if a is None else a for a in (c, tanh_c)), h[:0], *(matrix if a is None else a for a in (u, v, cell)),
        *(wide if a is None else a for a in (mean, rstd)), *end,
        scratch=(dtype, sum(scratch_sizes.py_func(n, H)), SCRATCH + 6 * H),
    )  # fmt: skip


def lstm_variant_backward(upstream, xs, weights, start, batch, variant, saved, gradients):
    """All gradients from the upstream gradients; an upstream gradient that is None is zero."""
    dh, dh_n, dc_n = upstream
    w_ih, w_hh, b, *gammas, _ = weights
    gates, c, tanh_c, h, u, v, cell, mean, rstd = saved
    dz, du, dv, dn, dxs, dweights, dstart, squares = gradients
    dtype, (rows, C), (n, H), has_norm = xs.dtype, xs.shape, start.c.shape, u is not None
    vector, matrix = _NONE[dtype.char]
    wide_vector, wide = _NONE["d"]
    kernels, cost = _KERNELS[dtype.char], 8 * rows * H
    run(
        cost * H, _steps_backward, kernels, dh is not None, matrix if dh is None else dh[:0], matrix if dh_n is None else dh_n,
        matrix if dc_n is None else dc_n, xs[:0], w_hh[:0], *(vector if a is None else a for a in gammas), *start, *batch,
        *_factor_arguments(variant), gates, c, tanh_c, h[:0], *(matrix if a is None else a for a in (u, v, cell)),
        *(wide if a is None else a for a in (mean, rstd)), dz, dv, matrix if dn is None else dn, *dstart,
        wide_vector if squares is None else squares,
        scratch=(dtype, sum(scratch_sizes.py_func(n, H)), SCRATCH + 6 * H),
    )  # fmt: skip
    if has_norm:
        sums = (dweights.gamma_x, dweights.b), (dweights.gamma_h, np.empty_like(b)), (dweights.gamma_c, dweights.beta_c)
        norms = zip((dz, dz, dn), (u, v, cell), gammas, (du, None, None), mean, rstd, sums, strict=True)
        for dy, x, gamma, dx, row_mean, row_rstd, (dgamma, dbeta) in norms:
            statistics, written = Statistics(row_mean, row_rstd), NormGradients(None, dx, dgamma, dbeta)
            layer_norm_backward(dy, x, statistics, Affine(gamma, None), IDENTITY, LayerSaved(dy, dy), written)
    run(
        cost * (2 * C + H), _weights_backward, kernels, xs[:0], w_ih[:0], start.h, *batch, h[:0], du, dv,
        matrix if dxs is None else dxs, dweights.w_ih, dweights.w_hh, vector if has_norm or b is None else dweights.b,
        scratch=(dtype, rows * (H + 1), SCRATCH),
    )  # fmt: skip
