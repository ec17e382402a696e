"""Optimisers over flat arrays, as in kernels/reference/optim.py: clip, weight decay and update in one pass over memory.

A rule is what happens to one value; `zipped` makes a loop of it. What a rule is given is worked out once a call, in float64: bias
corrections are in `lr` and `correction`. Each value of Adam costs a square root and a division, whose unit bounds the speed
while the arrays are in cache; beyond it memory does, with 28 bytes a float32.
"""

import math

import numpy as np
from numba import carray

from .. import names
from .jit import Addresses, compiled, entry, inlined, kernel
from .lists import ADDRESS, START, SUMS, block_size, first_block, next_block, previous_block, rows_at, sums_of, table
from .loops import square_sum, zipped
from .parallel import address_of, launch, run, share
from .simd import address, advance, call, keep, pointer, real, void_pointer

# rows: of state; state's rows lie `stride` values apart. keep1: what is kept of a momentum; rest: 1 - beta; one of inside and
# outside the root is eps; decay is an L2 term, shrink what decoupled decay leaves of a parameter
UPDATE = np.dtype(
    [(name, "i8") for name in "size params grads state stride rows optimizer".split()]
    + [(name, "f8") for name in "lr beta1 beta2 keep1 rest1 rest2 correction inside outside nesterov".split()]
    + [(name, "f8") for name in "scale decay shrink".split()]
)
# of lists: tables of params and grads, sums of squares by block, and the address of an UPDATE
ARRAYS = np.dtype([(name, "i8") for name in "params grads n sums update".split()])
# an update costs about as much a value as this many multiplications and additions
COST = 32
# squares are summed in blocks of this many values, in one order for any number of threads
BLOCK = 16384


@inlined
def gradient(g, p, scale, decay):
    """The clipped gradient, with L2 decay where there is any: 0 * p would turn an infinite p into NaN."""
    return g * scale + decay * p if decay != real(0, p) else g * scale


@inlined
def sgd(p, g, scale, decay, shrink, lr):
    return (shrink * p - lr * gradient(g, p, scale, decay),)


@inlined
def momentum_sgd(p, g, v, scale, decay, shrink, lr, momentum, keep, nesterov):
    """keep: what is kept of the velocity; at the first step it is the gradient itself."""
    d = gradient(g, p, scale, decay)
    v = keep * v + d if keep != real(0, d) else d
    return shrink * p - lr * (d + momentum * v if nesterov != real(0, d) else v), v


@inlined
def adam(p, g, m, v, scale, decay, shrink, lr, beta1, beta2, rest1, rest2, correction, eps):
    d = gradient(g, p, scale, decay)
    m = beta1 * m + rest1 * d
    v = beta2 * v + rest2 * d * d
    return shrink * p - lr * m / (np.sqrt(v) * correction + eps), m, v


@inlined
def amsgrad(p, g, m, v, most, scale, decay, shrink, lr, beta1, beta2, rest1, rest2, correction, eps):
    d = gradient(g, p, scale, decay)
    m = beta1 * m + rest1 * d
    v = beta2 * v + rest2 * d * d
    # NaN in either stays NaN
    most = most if most >= v or most != most else v
    return shrink * p - lr * m / (np.sqrt(most) * correction + eps), m, v, most


@inlined
def rmsprop(p, g, v, scale, decay, shrink, lr, beta2, rest2, inside, outside):
    """Adagrad's too, with 1 for beta2 and for rest2."""
    d = gradient(g, p, scale, decay)
    v = beta2 * v + rest2 * d * d
    return shrink * p - lr * (d / (np.sqrt(v + inside) + outside)), v


@inlined
def momentum_rmsprop(p, g, m, v, scale, decay, shrink, lr, beta2, rest2, inside, outside, momentum):
    d = gradient(g, p, scale, decay)
    v = beta2 * v + rest2 * d * d
    m = momentum * m + d / (np.sqrt(v + inside) + outside)
    return shrink * p - lr * m, m, v


@compiled
def update_values(t, n, params, grads, state):
    """Update n values, of which `state` is the first row's place."""
    if n == 0:
        return
    one = carray(params, 1)[0]
    second = advance(state, t.stride)
    # numba adds tuples, but cannot unpack one in a branch
    common = real(t.scale, one), real(t.decay, one), real(t.shrink, one), real(t.lr, one)
    beta1, beta2, rest2 = real(t.beta1, one), real(t.beta2, one), real(t.rest2, one)
    inside, outside = real(t.inside, one), real(t.outside, one)
    moments = common + (beta1, beta2, real(t.rest1, one), rest2, real(t.correction, one), outside)  # noqa: RUF005
    root = common + (beta2, rest2, inside, outside)  # noqa: RUF005
    if t.optimizer == names.ADAM and t.rows == 2:
        zipped(adam, n, (params, grads, state, second), (params, state, second), moments)
    elif t.optimizer == names.ADAM:
        third = advance(second, t.stride)
        zipped(amsgrad, n, (params, grads, state, second, third), (params, state, second, third), moments)
    elif t.optimizer != names.SGD and t.rows == 1:
        zipped(rmsprop, n, (params, grads, state), (params, state), root)
    elif t.optimizer != names.SGD:
        zipped(momentum_rmsprop, n, (params, grads, state, second), (params, state, second), root + (beta1,))  # noqa: RUF005
    elif t.rows:
        velocity = common + (beta1, real(t.keep1, one), real(t.nesterov, one))  # noqa: RUF005
        zipped(momentum_sgd, n, (params, grads, state), (params, state), velocity)
    else:
        zipped(sgd, n, (params, grads), (params,), common)


@kernel(UPDATE)
def update_part(part, parts, job, like):
    t = carray(job, 1)[0]
    lo, hi = share(part, parts, t.size, 64)
    params, grads, state = pointer(t.params, like), pointer(t.grads, like), pointer(t.state, like)
    update_values(t, hi - lo, advance(params, lo), advance(grads, lo), advance(state, lo))


@compiled
def describe_update(job, size, params, grads, state, rows, optimizer, hyper, lr, step, scale):
    """Fill an UPDATE record; lr is the rate of this update, whatever hyper says."""
    t = job[0]
    t.size, t.params, t.grads, t.state, t.stride, t.rows = size, params, grads, state, size, rows
    t.optimizer, t.scale = optimizer, scale
    beta1, beta2, eps, weight_decay, form, decoupled = (
        hyper[1],
        hyper[2],
        hyper[3],
        hyper[4],
        hyper[5] != 0,
        hyper[6] != 0,
    )
    t.decay = 0.0 if decoupled else weight_decay
    t.shrink = 1 - lr * weight_decay if decoupled else 1.0
    t.lr, t.beta1, t.beta2, t.rest1, t.rest2 = lr, beta1, beta2, 1 - beta1, 1 - beta2
    t.correction, t.inside, t.outside = 1.0, 0.0, eps
    t.keep1, t.nesterov = 0.0 if step == 1 else beta1, form
    if optimizer == names.ADAM:
        t.lr = lr / (1 - beta1**step)
        t.correction = 1 / math.sqrt(1 - beta2**step)
    else:
        if optimizer == names.ADAGRAD:
            t.beta2, t.rest2 = 1.0, 1.0
        if form:
            t.inside, t.outside = eps, 0.0


@entry
def _update(launcher, parts, function, size, params, grads, state, rows, optimizer, hyper, step, scale):
    job = np.empty(1, UPDATE)
    describe_update(job, size, params, grads, state, rows, optimizer, hyper, hyper[0], step, scale)
    call(launcher, function, parts, job)


def update(params, grads, optimizer, state, hyper, step, grad_scale):
    """Update number `step` of params (P,) and state (S, P) from grads * grad_scale."""
    addresses = address_of(params), address_of(grads), address_of(state.reshape(-1))
    size, function = params.size, update_part.address(params.dtype)
    run(COST * size, _update, function, size, *addresses, len(state), optimizer, hyper, step, float(grad_scale))


@compiled
def squares(values, n):
    """The sum of n squares in float64."""
    whole = n - n % 16
    total = square_sum(values, whole)
    rest = carray(advance(values, whole), n - whole)
    for i in range(n - whole):
        total += np.float64(rest[i]) * np.float64(rest[i])
    return total


SQUARES = np.dtype([(name, "i8") for name in "size values sums".split()])


@kernel(SQUARES)
def squares_part(part, parts, job, like):
    t = carray(job, 1)[0]
    blocks = (t.size + BLOCK - 1) // BLOCK
    sums = carray(void_pointer(t.sums), blocks, np.float64)
    lo, hi = share(part, parts, blocks, 1)
    for block in range(lo, hi):
        at = block * BLOCK
        sums[block] = squares(advance(pointer(t.values, like), at), min(BLOCK, t.size - at))


def squared_norm(values):
    """The sum of squares in float64, of a flat array."""
    sums = np.zeros(-(-values.size // BLOCK))
    job = np.array([(values.size, address_of(values), address_of(sums))], SQUARES)
    launch(squares_part, values.dtype, job, 2 * values.size)
    return float(sums.sum())


@kernel(ARRAYS)
def square_arrays_part(part, parts, job, like):
    g = carray(job, 1)[0]
    t = rows_at(g.grads, g.n)
    sums = carray(void_pointer(g.sums), t[g.n, SUMS], np.float64)
    lo, hi = share(part, parts, t[g.n, START], 64)
    a, at = first_block(t, g.n, lo)
    while a < g.n and t[a, START] + at < hi:
        sums[sums_of(t, a, at)] = squares(advance(pointer(t[a, ADDRESS], like), at), block_size(t, a, at))
        a, at = next_block(t, g.n, a, at)


@kernel(ARRAYS)
def update_arrays_part(part, parts, job, like):
    """Backwards: what was read last for the norm is still in the caches."""
    g = carray(job, 1)[0]
    t = carray(void_pointer(g.update), 1, UPDATE)[0]
    params, grads, state = rows_at(g.params, g.n), rows_at(g.grads, g.n), pointer(t.state, like)
    lo, hi = share(part, parts, params[g.n, START], 64)
    a, at = previous_block(params, *first_block(params, g.n, hi))
    while a >= 0 and params[a, START] + at >= lo:
        p, d = pointer(params[a, ADDRESS], like), pointer(grads[a, ADDRESS], like)
        size, row = block_size(params, a, at), advance(state, params[a, START] + at)
        update_values(t, size, advance(p, at), advance(d, at), row)
        a, at = previous_block(params, a, at)


@entry
def _update_arrays(launcher, parts, kernels, params, grads, n, state, rows, optimizer, hyper, step, clip_norm, record):
    sums, job, update = np.empty(grads[n, SUMS]), np.empty(1, ARRAYS), np.empty(1, UPDATE)
    t, scale, size = job[0], 1.0, params[n, START]
    t.params, t.grads, t.n, t.sums, t.update = address(params), address(grads), n, address(sums), address(update)
    if clip_norm < np.inf:
        call(launcher, kernels[0], parts, job)
        squared = 0.0
        for square in sums:
            squared += square
        norm = math.sqrt(squared)
        record[0] = norm
        if not math.isfinite(norm):
            return names.NONFINITE
        scale = min(1.0, clip_norm / (norm + 1e-6))
    describe_update(update, size, 0, 0, state, rows, optimizer, hyper, hyper[0], step, scale)
    call(launcher, kernels[1], parts, job)
    keep(sums)
    keep(update)
    return names.OK


_LISTS = Addresses(square_arrays_part, update_arrays_part)


def update_arrays(params, grads, optimizer, state, hyper, step, clip_norm, record):
    """Update number `step` of a list of C-contiguous params from grads of the same shapes, times min(1, clip_norm / (norm + 1e-6)).

    state (S, P): the values of all arrays in their order. record (1,) = norm over all of grads, where clip_norm is finite.
    Returns OK, or NONFINITE for a norm that is not finite, and then nothing is updated.
    """
    to, of, dtype = table(params), table(grads), params[0].dtype
    return run(
        COST * int(to[-1, START]), _update_arrays, _LISTS[dtype.char], to, of, len(params), address_of(state.reshape(-1)),
        len(state), optimizer, hyper, step, clip_norm, record,
    )  # fmt: skip
