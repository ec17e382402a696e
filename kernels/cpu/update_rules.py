"""Update rules of the optimisers; formulas: kernels/reference/optim.py.

A rule (`sgd`, `adam`, ...) is an inline function that updates one parameter. Each has two kernels, without masks and with masks, in which
map_masked runs it over a block of values; a kernel is compiled at its first use and called by its address. What a rule takes besides
parameter, gradient and state is computed once an update, in float64: `lr` and `correction` hold Adam's bias corrections. Adam needs a
square root and a division a value, which bound its speed while the arrays are in cache; beyond the cache memory does, with 28 bytes a
float32 value.
"""

import math

import numpy as np

from .. import types
from .engine.compile import device_function, inline_function, kernel
from .engine.intrinsics import advance, carray, data, pointer, real, void_pointer
from .engine.vector_loops import map_masked

# one update of some values. rows: of state, which are `stride` values apart; keep1: the factor of the momentum, 0 at the first step;
# rest1, rest2: 1 - beta; inside, outside: eps inside and outside the root, one of them 0; decay: of the L2 term; shrink: the factor of a
# parameter by decoupled decay
UPDATE = np.dtype(
    [(name, "i8") for name in "state stride rows optimizer".split()]
    + [(name, "f8") for name in "lr beta1 beta2 keep1 rest1 rest2 correction inside outside nesterov".split()]
    + [(name, "f8") for name in "scale decay shrink".split()]
)
UPDATE_BYTES = UPDATE.itemsize
# settings of a group in hyper
HYPER_SIZE = 7


@inline_function
def gradient(g, p, scale, decay):
    """The clipped gradient, with L2 decay where there is any: 0 * p would turn an infinite p into NaN."""
    return g * scale + decay * p if decay != real(0, p) else g * scale


@inline_function
def sgd(p, g, scale, decay, shrink, lr):
    return (shrink * p - lr * gradient(g, p, scale, decay),)


@inline_function
def momentum_sgd(p, g, v, scale, decay, shrink, lr, momentum, keep, nesterov):
    """keep: the factor of the old velocity, 0 at the first step, when the velocity is the gradient."""
    d = gradient(g, p, scale, decay)
    v = keep * v + d if keep != real(0, d) else d
    return shrink * p - lr * (d + momentum * v if nesterov != real(0, d) else v), v


@inline_function
def adam(p, g, m, v, scale, decay, shrink, lr, beta1, beta2, rest1, rest2, correction, eps):
    d = gradient(g, p, scale, decay)
    m = beta1 * m + rest1 * d
    v = beta2 * v + rest2 * d * d
    return shrink * p - lr * m / (np.sqrt(v) * correction + eps), m, v


@inline_function
def amsgrad(p, g, m, v, largest_v, scale, decay, shrink, lr, beta1, beta2, rest1, rest2, correction, eps):
    d = gradient(g, p, scale, decay)
    m = beta1 * m + rest1 * d
    v = beta2 * v + rest2 * d * d
    # NaN in either stays NaN
    largest_v = largest_v if largest_v >= v or largest_v != largest_v else v
    return shrink * p - lr * m / (np.sqrt(largest_v) * correction + eps), m, v, largest_v


@inline_function
def rmsprop(p, g, v, scale, decay, shrink, lr, beta2, rest2, inside, outside):
    """Adagrad's too, with 1 for beta2 and for rest2."""
    d = gradient(g, p, scale, decay)
    v = beta2 * v + rest2 * d * d
    return shrink * p - lr * (d / (np.sqrt(v + inside) + outside)), v


@inline_function
def momentum_rmsprop(p, g, m, v, scale, decay, shrink, lr, beta2, rest2, inside, outside, momentum):
    d = gradient(g, p, scale, decay)
    v = beta2 * v + rest2 * d * d
    m = momentum * m + d / (np.sqrt(v + inside) + outside)
    return shrink * p - lr * m, m, v


# n values and their gradients; state: of its first row; masks: of n bytes, 0 where a value is pruned; update: address of an UPDATE
BLOCK = np.dtype([(name, "i8") for name in "n params grads state masks update".split()])


@device_function
def update_of(record):
    """The UPDATE record of a block."""
    return carray(void_pointer(carray(record, 1)[0].update), 1, UPDATE)[0]


@device_function
def arrays_of(record, like):
    """n; pointers to params, grads and two rows of state; and the numbers that all rules begin with."""
    block, t = carray(record, 1)[0], update_of(record)
    params, grads, state = pointer(block.params, like), pointer(block.grads, like), pointer(block.state, like)  # (n,)
    one = carray(params, 1)[0]
    numbers = real(t.scale, one), real(t.decay, one), real(t.shrink, one), real(t.lr, one)
    return block.n, (params, grads, state, advance(state, t.stride)), numbers


@inline_function
def sgd_loop(record, mask, like):
    n, (params, grads, _, _), numbers = arrays_of(record, like)
    map_masked(sgd, n, mask, (params, grads), (params,), numbers)


@inline_function
def momentum_sgd_loop(record, mask, like):
    t, (n, (params, grads, v, _), numbers) = update_of(record), arrays_of(record, like)
    velocity = real(t.beta1, numbers[0]), real(t.keep1, numbers[0]), real(t.nesterov, numbers[0])
    map_masked(momentum_sgd, n, mask, (params, grads, v), (params, v), numbers + velocity)


@device_function
def moment_numbers(t, one):
    """What adam and amsgrad take after the numbers of all rules."""
    betas = real(t.beta1, one), real(t.beta2, one), real(t.rest1, one), real(t.rest2, one)
    # numba adds tuples, but cannot unpack one in another
    return betas + (real(t.correction, one), real(t.outside, one))  # noqa: RUF005


@inline_function
def adam_loop(record, mask, like):
    t, (n, (params, grads, m, v), numbers) = update_of(record), arrays_of(record, like)
    map_masked(adam, n, mask, (params, grads, m, v), (params, m, v), numbers + moment_numbers(t, numbers[0]))


@inline_function
def amsgrad_loop(record, mask, like):
    t, (n, (params, grads, m, v), numbers) = update_of(record), arrays_of(record, like)
    largest_v = advance(v, t.stride)
    map_masked(
        amsgrad,
        n,
        mask,
        (params, grads, m, v, largest_v),
        (params, m, v, largest_v),
        numbers + moment_numbers(t, numbers[0]),
    )


@device_function
def root_numbers(t, one):
    """What rmsprop and momentum_rmsprop take after the numbers of all rules."""
    return real(t.beta2, one), real(t.rest2, one), real(t.inside, one), real(t.outside, one)


@inline_function
def rmsprop_loop(record, mask, like):
    t, (n, (params, grads, v, _), numbers) = update_of(record), arrays_of(record, like)
    map_masked(rmsprop, n, mask, (params, grads, v), (params, v), numbers + root_numbers(t, numbers[0]))


@inline_function
def momentum_rmsprop_loop(record, mask, like):
    t, (n, (params, grads, m, v), numbers) = update_of(record), arrays_of(record, like)
    roots = root_numbers(t, numbers[0]) + (real(t.beta1, numbers[0]),)  # noqa: RUF005
    map_masked(momentum_rmsprop, n, mask, (params, grads, m, v), (params, m, v), numbers + roots)


@device_function
def mask_of(record):
    block = carray(record, 1)[0]
    return data(carray(void_pointer(block.masks), block.n, np.uint8))  # (n,)


@kernel(BLOCK)
def sgd_block(_, __, record, like):
    sgd_loop(record, None, like)


@kernel(BLOCK)
def masked_sgd_block(_, __, record, like):
    sgd_loop(record, mask_of(record), like)


@kernel(BLOCK)
def momentum_sgd_block(_, __, record, like):
    momentum_sgd_loop(record, None, like)


@kernel(BLOCK)
def masked_momentum_sgd_block(_, __, record, like):
    momentum_sgd_loop(record, mask_of(record), like)


@kernel(BLOCK)
def adam_block(_, __, record, like):
    adam_loop(record, None, like)


@kernel(BLOCK)
def masked_adam_block(_, __, record, like):
    adam_loop(record, mask_of(record), like)


@kernel(BLOCK)
def amsgrad_block(_, __, record, like):
    amsgrad_loop(record, None, like)


@kernel(BLOCK)
def masked_amsgrad_block(_, __, record, like):
    amsgrad_loop(record, mask_of(record), like)


@kernel(BLOCK)
def rmsprop_block(_, __, record, like):
    rmsprop_loop(record, None, like)


@kernel(BLOCK)
def masked_rmsprop_block(_, __, record, like):
    rmsprop_loop(record, mask_of(record), like)


@kernel(BLOCK)
def momentum_rmsprop_block(_, __, record, like):
    momentum_rmsprop_loop(record, None, like)


@kernel(BLOCK)
def masked_momentum_rmsprop_block(_, __, record, like):
    momentum_rmsprop_loop(record, mask_of(record), like)


# the place in BLOCK_KERNELS of the first kernel with masks
FIRST_MASKED = 6


def block_kernel_number(optimizer, rows, masked):
    """Which of these kernels an optimiser with so many rows of state has, as a place in BLOCK_KERNELS."""
    first = FIRST_MASKED if masked else 0
    if optimizer == types.ADAM:
        return first + (2 if rows == 2 else 3)
    if optimizer == types.SGD:
        return first + (1 if rows else 0)
    return first + (4 if rows == 1 else 5)


# one for each kind of state, and again with masks
BLOCK_KERNELS = (
    sgd_block, momentum_sgd_block, adam_block, amsgrad_block, rmsprop_block, momentum_rmsprop_block,
    masked_sgd_block, masked_momentum_sgd_block, masked_adam_block, masked_amsgrad_block, masked_rmsprop_block,
    masked_momentum_rmsprop_block,
)  # fmt: skip


@device_function
def describe_updates(records, size, state, rows, optimizer, hyper, rates, step, scale):
    """Fill an UPDATE record for each group from its row of hyper, flat; rates (G,) are those of this update, whatever hyper says."""
    for group in range(len(records)):
        settings = hyper[HYPER_SIZE * group : HYPER_SIZE * (group + 1)]
        describe_update(records[group], size, state, rows, optimizer, settings, rates[group], step, scale)


@device_function
def describe_update(t, size, state, rows, optimizer, hyper, lr, step, scale):
    t.state, t.stride, t.rows = state, size, rows
    t.optimizer, t.scale = optimizer, scale
    beta1, beta2, eps, weight_decay = hyper[1], hyper[2], hyper[3], hyper[4]
    form, decoupled = hyper[5] != 0, hyper[6] != 0
    t.decay = 0.0 if decoupled else weight_decay
    t.shrink = 1 - lr * weight_decay if decoupled else 1.0
    t.lr, t.beta1, t.beta2, t.rest1, t.rest2 = lr, beta1, beta2, 1 - beta1, 1 - beta2
    t.correction, t.inside, t.outside = 1.0, 0.0, eps
    t.keep1, t.nesterov = 0.0 if step == 1 else beta1, form
    if optimizer == types.ADAM:
        t.lr = lr / (1 - beta1**step)
        t.correction = 1 / math.sqrt(1 - beta2**step)
        if form:
            t.outside = eps * t.correction
    else:
        if optimizer == types.ADAGRAD:
            t.beta2, t.rest2 = 1.0, 1.0
        if form:
            t.inside, t.outside = eps, 0.0
