"""Training steps of a dense chain, as in kernels/reference/training_step.py: launches of other files, of which none waits.

Beside the layers' own launches, at most three each, a step has four: the loss and its gradient; the mean of the losses; the squares of
the gradients; the update, which clips. Whether there was a bad label, and whether the norm is finite, is known on the device alone: a
step leaves a status, and the next step of an epoch does nothing where that is not OK. So an epoch waits once, at its end. The gradients of
the batch that failed are then taken again, for whoever asks which were not finite.

A record that is on the device is written there, as are rows of health. All that a step makes on the way, but its status, lies in `work`.
"""

import math

import numpy as np
from numba import cuda, float64

from .. import types
from ..reference.dense import layer_views
from ..reference.training_step import FUSED
from .clip import norms_of
from .dense import dense_chain_backward, dense_chain_forward
from .engine import device
from .engine.device import BLOCK, Integer, Integers, Real, Wide, WideNumber, constant, flat, give, launch, wide_kernel
from .engine.reductions import add_down
from .health import array_health, leave_ratios, output_health
from .loss import class_losses, value_losses
from .optim import count, update_all


@wide_kernel
def leave_mean(
    dtype: Real, n: Integer, scale: WideNumber, parts: Wide, before: Integers, status: Integers, record: Wide
):  # fmt: skip
    """record[0] = scale times the sum of parts (n,), and status: that before, or BAD_LABEL, of which a loss of -inf tells."""
    shared, total = cuda.shared.array(BLOCK, float64), 0.0
    for i in range(cuda.threadIdx.x, n, BLOCK):
        total += parts[i]
    total = add_down(shared, total, 1)
    if cuda.threadIdx.x == 0:
        found = before[0]
        if found == types.OK and total == -math.inf:
            found = types.BAD_LABEL
        status[0] = found
        if found == types.OK:
            record[0] = total * scale


class Chain:
    """A chain's arrays, as views into flat ones, and what its steps are asked for."""

    def __init__(self, layers, parameters, loss, params, grads, work):
        self.layers, self.loss, self.params, self.grads, self.work = layers, loss, params, grads, work
        self.weights, self.biases, self.activations = layer_views(layers, parameters, params)
        self.dweights, self.dbiases, _ = layer_views(layers, parameters, grads)
        if FUSED.get(loss) == self.activations[-1].code:
            self.activations[-1] = types.ACTIVATIONS["identity"]

    def lay_out(self, rows):
        """For so many rows every layer's y, z and dz, and what is left of `work`."""
        sizes = [(rows, w.shape[1]) for w in self.weights]
        rest, found = self.work, []
        for _ in range(3):
            parts, rest = carve(rest, sizes)
            found.append(parts)
        ys, zs, dzs = found
        zs = [z if f.needs_input else y for f, y, z in zip(self.activations, ys, zs, strict=True)]
        return ys, zs, dzs, rest

    def gradients(self, x, target, row_weights, l2):
        """The gradients of x's rows: (the sums of the losses' parts, what to scale them by, the squares of all w or None, outputs)."""
        ys, zs, dzs, rest = self.lay_out(len(x))
        dense_chain_forward(x, self.weights, self.biases, self.activations, None, zs, ys)
        by_row = self.loss == types.CROSS_ENTROPY
        columns = 1 if by_row else ys[-1].shape[1]
        (losses,), _ = carve(rest, [(len(x), columns)])
        weight = len(x) if row_weights is None else float(row_weights.sum(dtype=np.float64))
        scale = 1 / (weight * columns) if weight * columns else 0.0
        if by_row:
            parts = class_losses(ys[-1], target, losses[:, 0], dzs[-1], scale)
        else:
            parts = value_losses(self.loss, ys[-1], target, losses, dzs[-1], scale)
        if row_weights is not None:
            dzs[-1] *= row_weights[:, None]
            bad = parts.sum() == -math.inf
            parts = device.xp.where(bad, -math.inf, (losses * row_weights[:, None]).sum(dtype=np.float64)).reshape(1)
        dense_chain_backward(dzs[-1], x, self.weights, self.activations, zs, ys, dzs, None, self.dweights, self.dbiases)
        squares = (norms_of(self.weights, None, 2.0) ** 2).sum() if l2 else None
        if l2 and weight:
            for w, dw in zip(self.weights, self.dweights, strict=True):
                dw += w.dtype.type(l2 / weight) * w
        return parts, scale, squares, ys


def carve(array, shapes):
    """Arrays of these shapes, one after the other in a flat one, and what is left of it."""
    found = []
    for rows, columns in shapes:
        found.append(array[: rows * columns].reshape(rows, columns))
        array = array[rows * columns :]
    return found, array


def run_step(chain, x, target, update, step, record, before, row_weights, l2, health, batch):
    """A step that does nothing to params and state where `before` (1,) is not OK; its status (1,). record lies on the device.

    health is a Watch, of which row `batch` is written, or None. Nothing waits for a row that lies on the device.
    """
    xp = device.xp
    optimizer, state, hyper, clip_norm, masks, constraint = update
    parts, scale, squares, outputs = chain.gradients(x, target, row_weights, l2)
    seen, status = xp.empty(1, np.int64), xp.empty(1, np.int64)
    launch(leave_mean, x.dtype, 1, parts.size, scale, parts, before, seen, record)
    if l2:
        record[2:3] = squares
    watched = health is not None and step % health.every == 0
    lists = constraint is not None and constraint.kind != types.MAX_VALUE
    params, grads = [chain.params], [chain.grads]
    moved = None
    if watched or lists:
        # what is of an array by itself needs them one by one, in the order in which they lie
        pairs = zip(chain.weights, chain.biases, chain.dweights, chain.dbiases, chain.layers.tolist(), strict=True)
        every = [
            (offset, a, da, layer)
            for layer, (w, b, dw, db, (_, _, at, b_at, _)) in enumerate(pairs)
            for offset, a, da in ((at, w, dw), (b_at, b, db))
            if a is not None
        ]
        order = sorted(range(len(every)), key=lambda i: every[i][0])
        params, grads, owners = ([every[i][k] for i in order] for k in (1, 2, 3))
        moved = xp.empty((len(every), 2)) if watched else None
        if lists:
            widths = np.asarray(constraint.widths if type(constraint.widths) is np.ndarray else constraint.widths.get())
            constraint = types.Constraint(constraint.kind, constraint.limit, widths[order])
    update_all(
        params, grads, optimizer, state, hyper, step + 1, clip_norm, masks, constraint, record[1:2], status, moved, seen
    )
    if watched:
        row = health.rows[batch]
        there = row if type(row) is xp.ndarray else xp.empty(row.shape)
        look(chain, health.bands, outputs, there)
        leave_ratios(constant(np.array(owners, np.int64)), moved, status, there)
        if there is not row:
            give(there, row)
    return status


def look(chain, bands, outputs, row):
    """What the layers' gradients and outputs look like, to row (L, 9), which lies on the device."""
    pairs = zip(chain.dweights, chain.dbiases, strict=True)
    gradients = [[a.reshape(-1) for a in pair if a is not None] for pair in pairs]
    array_health([device.xp.concatenate(g) if len(g) > 1 else g[0] for g in gradients], row[:, :4])
    output_health(outputs, constant(bands), row[:, 4:8])


def dense_chain_step(
    x, target, layers, parameters, loss, params, grads, work, optimizer, state, hyper, clip_norm, masks, constraint,
    step, record, row_weights=None, l2=0.0, health=None, updates=None,
):  # fmt: skip
    """The update after `step` others; record (2,) = mean loss and norm, or (3,) with l2. health: a names.Watch, or None.
    updates (1,), int64, or None: one is added to it with the launch, whatever comes of it.

    Returns OK, BAD_LABEL or NONFINITE, as an array () on the device.
    """
    chain = Chain(layers, parameters, loss, params, grads, work)
    update = optimizer, state, hyper, clip_norm, masks, constraint
    there = record if type(record) is device.xp.ndarray else device.xp.zeros(record.shape)
    before = device.xp.zeros(1, np.int64)
    status = run_step(chain, flat(x), flat(target), update, step, there, before, row_weights, l2, health, 0)
    count(updates, status)
    if there is not record:
        give(there, record)
    return status.reshape(())


def dense_chain_epoch(
    x, target, order, batch_size, rates, layers, parameters, loss, params, grads, work, optimizer, state, hyper,
    clip_norm, masks, constraint, step, record, row_weights=None, l2=0.0, health=None, updates=None,
):  # fmt: skip
    """A step on each batch of rows order[i : i + batch_size] at its rate of rates (n_batches,), which goes before hyper's.

    x may be names.Nonzeros, of which an array is made. record (n_batches, 2), or 3 with l2; health: a names.Watch, or None.
    updates (1,), int64, or None: at the end the updates that were made are added, and meanwhile one with each launch.
    Returns (status, batches done), for which it waits once.
    """
    xp, starts = device.xp, range(0, len(order), batch_size)
    if not starts:
        return types.OK, 0
    if isinstance(x, types.Nonzeros):
        x = xp.asarray(x[:])
    chain = Chain(layers, parameters, loss, params, grads, work)
    rest, order = hyper.tolist()[1:], xp.asarray(order)
    there, statuses = xp.zeros((len(starts), record.shape[1])), [xp.zeros(1, np.int64)]

    def batch_of(start):
        rows = order[start : start + batch_size]
        taken = (xp.take(flat(a), rows, axis=0) for a in (x, target))
        return *taken, None if row_weights is None else xp.take(row_weights, rows)

    for batch, (start, rate) in enumerate(zip(starts, rates.tolist(), strict=False)):
        update = optimizer, state, np.array([rate, *rest]), clip_norm, masks, constraint
        batch_x, batch_target, weights = batch_of(start)
        asked = there[batch], statuses[-1], weights, l2, health, batch
        statuses.append(run_step(chain, batch_x, batch_target, update, step + batch, *asked))
        if updates is not None:
            updates += 1
    found = np.empty(len(statuses), np.int64)
    give(xp.concatenate(statuses), found)
    failed = np.flatnonzero(found)
    done = int(failed[0]) - 1 if len(failed) else len(starts)
    if updates is not None:
        updates -= len(starts) - done
    values = np.empty(there.shape)
    give(there, values)
    # of batches after one that failed there is nothing to tell
    whole = values[: done + 1]
    record[: done + 1] = whole if type(record) is np.ndarray else xp.asarray(whole)
    if done == len(starts):
        return types.OK, done
    batch_x, batch_target, weights = batch_of(starts[done])
    chain.gradients(batch_x, batch_target, weights, l2)
    return int(found[done + 1]), done
