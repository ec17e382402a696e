"""Optimisers over one flat array, as in kernels/reference/optim.py: clip, weight decay and update in one pass over memory.

Bias corrections are taken once a call, in float64. Each value of Adam costs a square root and a division, whose unit bounds the speed
while the arrays are in cache; beyond it memory does, with 28 bytes a float32.
"""

import math

import numpy as np
from numba import carray

from .. import names
from .jit import compiled, inlined, kernel
from .loops import square_sum
from .parallel import address_of, launch, share
from .simd import advance, pointer, real, void_pointer

# rows: of state; state's rows lie size values apart
UPDATE = np.dtype(
    [(name, "i8") for name in "size params grads state rows optimizer step".split()]
    + [(name, "f8") for name in "lr beta1 beta2 eps weight_decay nesterov scale".split()]
)
# an update costs about as much a value as this many multiplications and additions
COST = 32
# squares are summed in blocks of this many values, in one order for any number of threads
BLOCK = 16384


@inlined
def gradient(g, p, scale, decay):
    """The clipped gradient, with L2 decay where there is any: 0 * p would turn an infinite p into NaN."""
    return g * scale + decay * p if decay != real(0, p) else g * scale


@compiled
def sgd(n, params, grads, lr, scale, decay):
    p, g = carray(params, n), carray(grads, n)
    for i in range(n):
        p[i] -= lr * gradient(g[i], p[i], scale, decay)


@compiled
def momentum_sgd(n, params, grads, velocity, lr, momentum, keep, nesterov, scale, decay):
    """keep: what is kept of the velocity; at the first step it is the gradient itself."""
    p, g, v = carray(params, n), carray(grads, n), carray(velocity, n)
    for i in range(n):
        d = gradient(g[i], p[i], scale, decay)
        v[i] = keep * v[i] + d if keep != real(0, d) else d
        p[i] -= lr * (d + momentum * v[i] if nesterov else v[i])


@compiled
def adam(n, params, grads, first, second, lr, beta1, beta2, rest1, rest2, correction, eps, scale, decay):
    """rest: 1 - beta; lr and correction hold the bias corrections of m and of sqrt(v)."""
    p, g, m, v = carray(params, n), carray(grads, n), carray(first, n), carray(second, n)
    for i in range(n):
        d = gradient(g[i], p[i], scale, decay)
        m[i] = beta1 * m[i] + rest1 * d
        v[i] = beta2 * v[i] + rest2 * d * d
        p[i] -= lr * m[i] / (np.sqrt(v[i]) * correction + eps)


@kernel(UPDATE)
def update_part(part, parts, job, like):
    t = carray(job, 1)[0]
    lo, hi = share(part, parts, t.size, 64)
    n = hi - lo
    if n == 0:
        return
    params, grads = advance(pointer(t.params, like), lo), advance(pointer(t.grads, like), lo)
    first = advance(pointer(t.state, like), lo)
    one = carray(params, 1)[0]
    scale, decay = real(t.scale, one), real(t.weight_decay, one)
    if t.optimizer == names.ADAM:
        lr = real(t.lr / (1 - t.beta1**t.step), one)
        correction = real(1 / math.sqrt(1 - t.beta2**t.step), one)
        adam(
            n, params, grads, first, advance(first, t.size), lr, real(t.beta1, one), real(t.beta2, one),
            real(1 - t.beta1, one), real(1 - t.beta2, one), correction, real(t.eps, one), scale, decay,
        )  # fmt: skip
    elif t.rows:
        keep = 0.0 if t.step == 1 else t.beta1
        momentum_sgd(
            n, params, grads, first, real(t.lr, one), real(t.beta1, one), real(keep, one), t.nesterov != 0, scale, decay
        )
    else:
        sgd(n, params, grads, real(t.lr, one), scale, decay)


@compiled
def describe_update(job, size, params, grads, state, rows, optimizer, hyper, step, scale):
    """Fill an UPDATE record."""
    t = job[0]
    t.size, t.params, t.grads, t.state, t.rows = size, params, grads, state, rows
    t.optimizer, t.step, t.scale = optimizer, step, scale
    t.lr, t.beta1, t.beta2, t.eps, t.weight_decay, t.nesterov = (
        hyper[0],
        hyper[1],
        hyper[2],
        hyper[3],
        hyper[4],
        hyper[5],
    )


def update(params, grads, optimizer, state, hyper, step, grad_scale):
    """Update number `step` of params (P,) and state (S, P) from grads * grad_scale."""
    addresses = address_of(params), address_of(grads), address_of(state.reshape(-1)), len(state)
    job = np.array([(params.size, *addresses, optimizer, step, *hyper, grad_scale)], UPDATE)
    launch(update_part, params.dtype, job, COST * params.size)


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
