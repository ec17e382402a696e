"""Training steps of a dense chain, without a wait for the device; formulas and layout: kernels/reference/training_step.py.

Launches of a step: at most three a layer beside the GEMMs; loss and its gradient; the mean of the losses; the squares of the gradients; the
update, which clips.

Whether a label was bad, and whether the norm is finite, is known on the device alone. A step writes a status there. The next step of an
epoch does not update if that status is not OK. So an epoch waits once, at its end. It then recomputes the gradients of a batch that failed,
so that the caller can see which were not finite.

A record, or rows of health, that lies on the device is written there. Intermediate arrays lie in `work`, all but the status.
"""

from typing import Any, NamedTuple

import numpy as np

from .. import types
from ..reference.dense import layer_views
from ..types import Chain, ChainGradients, ChainSaved
from .clip import norms_of
from .dense import dense_chain_backward, dense_chain_forward
from .engine import device
from .engine.device import constant, fetch, flat
from .health import array_health, output_health, write_update_ratios
from .loss import write_loss
from .optim import count, on_host, update_all


class Batch(NamedTuple):
    """x (N, C), the target, and row_weights (N,) or None."""

    x: Any
    target: Any
    row_weights: Any


class NetViews:
    """A net's arrays, layer by layer, as views into the flat ones."""

    def __init__(self, net):
        self.table, parameters, self.loss, self.params, self.grads, self.work = net
        self.weights, self.biases, self.activations = layer_views(self.table, parameters, self.params)
        self.dweights, self.dbiases, _ = layer_views(self.table, parameters, self.grads)
        if self.loss.is_fused_with(self.activations[-1]):
            self.activations[-1] = types.ACTIVATIONS["identity"]

    def work_views(self, rows):
        """For so many rows: the arrays that a forward saves, every layer's dz, and the rest of `work`."""
        sizes = [(rows, w.shape[1]) for w in self.weights]
        ys, rest = views(self.work, sizes)
        zs, rest = views(rest, sizes)
        dzs, rest = views(rest, sizes)
        zs = [z if f.needs_input else y for f, y, z in zip(self.activations, ys, zs, strict=True)]
        return ChainSaved(zs, ys), dzs, rest

    def gradients(self, batch, l2, record, before, status, mean=True, sums=None):
        """Compute the gradients, and write status and record[0] as loss_sums has them: (sum of squares of all w or None, outputs)."""
        x, target, row_weights = batch
        saved, dzs, rest = self.work_views(len(x))
        chain, y, dy = Chain(x, self.weights, self.biases, self.activations, None), saved.outputs[-1], dzs[-1]
        dense_chain_forward(chain, saved)
        (losses,), _ = views(rest, [(len(x), 1 if self.loss.by_row else y.shape[1])])
        if self.loss.by_row:
            losses = losses[:, 0]
        sums = device.xp.empty(3) if sums is None else sums
        count = write_loss(
            y, target, self.loss, losses, dy, row_weights, mean=mean, before=before, status=status, record=record, sums=sums
        )  # fmt: skip
        dense_chain_backward(dy, chain, saved, ChainGradients(dzs, None, self.dweights, self.dbiases))
        squares = (norms_of(self.weights, None, 2.0) ** 2).sum() if l2 else None
        if l2 and len(x):
            decay = l2 / len(x) if mean else l2
            if count is not None:
                # rows without any weight have no penalty
                decay = device.xp.where(count == 0, 0.0, l2 / device.xp.where(count == 0, 1.0, count) if mean else l2)
            for w, dw in zip(self.weights, self.dweights, strict=True):
                dw += device.xp.asarray(decay, w.dtype) * w
        return squares, saved.outputs


def views(array, shapes):
    """Views of these shapes, one after the other in a flat array, and the rest of that array."""
    matrices = []
    for rows, columns in shapes:
        matrices.append(array[: rows * columns].reshape(rows, columns))
        array = array[rows * columns :]
    return matrices, array


def run_step(net, batch, rule, step, record, before, *, l2, watch, sums=None):
    """A step that does nothing to params and state where `before` (1,) is not OK; its status (1,). record lies on the device.

    net: NetViews; sums (3,): see loss_gradient; watch: its first row is written. Nothing waits for a row that lies on the device.
    """
    xp, constraint = device.xp, rule.constraint
    loss_status, status = xp.empty(1, np.int64), xp.empty(1, np.int64)
    squares, outputs = net.gradients(batch, l2, record, before, loss_status, sums=sums)
    if l2:
        record[2:3] = squares
    measured = watch is not None and step % watch.every == 0
    groups = rule.groups
    by_array = groups is not None or (constraint is not None and constraint.kind != types.MAX_VALUE)
    params, grads, moved = [net.params], [net.grads], None
    if measured or by_array:
        # what is of an array by itself needs them one by one, in the order in which they lie
        pairs = zip(net.weights, net.biases, net.dweights, net.dbiases, net.table.tolist(), strict=True)
        arrays = [
            (offset, a, da, layer)
            for layer, (w, b, dw, db, (_, _, at, b_at, _)) in enumerate(pairs)
            for offset, a, da in ((at, w, dw), (b_at, b, db))
            if a is not None
        ]
        order = sorted(range(len(arrays)), key=lambda i: arrays[i][0])
        params, grads, owners = ([arrays[i][k] for i in order] for k in (1, 2, 3))
        moved = xp.empty((len(arrays), 2)) if measured else None
        if constraint is not None and constraint.kind != types.MAX_VALUE:
            constraint = constraint._replace(widths=on_host(constraint.widths)[order])
        if groups is not None:
            groups = on_host(groups)[order]
    rule = rule._replace(constraint=constraint, groups=groups)
    update_all(params, grads, rule, step + 1, record[1:2], status, moved, loss_status)
    if measured:
        row = watch.rows[0]
        on_gpu = row if type(row) is xp.ndarray else xp.empty(row.shape)
        measure_health(net, watch.bands, outputs, on_gpu)
        write_update_ratios(constant(np.array(owners, np.int64)), moved, status, on_gpu)
        if on_gpu is not row:
            fetch(on_gpu, row)
    return status


def measure_health(net, bands, outputs, row):
    """Write the health of the layers' gradients and outputs to row (L, 9), which lies on the device."""
    pairs = zip(net.dweights, net.dbiases, strict=True)
    gradients = [[a.reshape(-1) for a in pair if a is not None] for pair in pairs]
    array_health([device.xp.concatenate(g) if len(g) > 1 else g[0] for g in gradients], row[:, :4])
    output_health(outputs, constant(bands), row[:, 4:8])


def dense_chain_gradients(x, target, net, record, *, row_weights=None, l2=0.0, mean=True, counts=None):
    """grads = the gradient of the mean loss, or of the sum: a step without its update.

    record (1,) = the loss, or with l2 (2,), and the sum of squares of every w. x may be Nonzeros, of which an array is made.
    counts (2,), or None. Returns OK or BAD_LABEL, as an array () on the device.
    """
    xp = device.xp
    x = xp.asarray(x[:]) if isinstance(x, types.Nonzeros) else flat(x)
    on_gpu = record if type(record) is xp.ndarray else xp.zeros(record.shape)
    before, status, sums = xp.zeros(1, np.int64), xp.empty(1, np.int64), xp.empty(3)
    batch = Batch(x, flat(target), row_weights)
    squares, _ = NetViews(net).gradients(batch, l2, on_gpu, before, status, mean, sums)
    if l2:
        on_gpu[1:2] = squares
    if on_gpu is not record:
        fetch(on_gpu, record)
    if counts is not None:
        fetch(sums[1:], counts)
    return status.reshape(())


def dense_chain_step(
    x, target, net, rule, step, record, *, row_weights=None, l2=0.0, watch=None, updates=None, counts=None
):
    """Training step number `step`, counted from 0; record (2,) = mean loss and norm, or (3,) with l2.

    updates (1,), int64, or None: one is added to it with the launch, whatever the status. counts (2,), or None.

    Returns OK, BAD_LABEL or NONFINITE, as an array () on the device.
    """
    on_gpu = record if type(record) is device.xp.ndarray else device.xp.zeros(record.shape)
    before, sums = device.xp.zeros(1, np.int64), device.xp.empty(3)
    batch = Batch(flat(x), flat(target), row_weights)
    status = run_step(NetViews(net), batch, rule, step, on_gpu, before, l2=l2, watch=watch, sums=sums)
    count(updates, status)
    if on_gpu is not record:
        fetch(on_gpu, record)
    if counts is not None:
        fetch(sums[1:], counts)
    return status.reshape(())


def dense_chain_epoch(
    x, target, batches, net, rule, step, record, *, row_weights=None, l2=0.0, watch=None, updates=None, counts=None
):
    """A step on each of the batches; record (n_batches, 2), or 3 with l2; counts (n_batches, 2), or None. The rate of a batch
    replaces the rule's.

    x may be Nonzeros, of which an array is made. updates (1,), int64, or None: one is added with each launch; at the end it is
    corrected to the number of updates that were applied.
    Returns (status, batches done), for which it waits once.
    """
    xp, (order, batch_size, rates) = device.xp, batches
    starts = range(0, len(order), batch_size)
    if not starts:
        return types.OK, 0
    if isinstance(x, types.Nonzeros):
        x = xp.asarray(x[:])
    net_views, hyper, order = NetViews(net), rule.hyper.reshape(-1, 7).copy(), xp.asarray(order)
    records, statuses = xp.zeros((len(starts), record.shape[1])), [xp.zeros(1, np.int64)]
    sums = xp.zeros((len(starts), 3))

    def batch_of(start):
        rows = order[start : start + batch_size]
        pair = (xp.take(flat(a), rows, axis=0) for a in (x, target))
        return Batch(*pair, None if row_weights is None else xp.take(row_weights, rows))

    for i, (start, rate) in enumerate(zip(starts, rates.tolist(), strict=False)):
        hyper[:, 0] = rate
        batch_rule, batch_watch = rule._replace(hyper=hyper), watch and watch.after(i)
        before = statuses[-1]
        status = run_step(
            net_views, batch_of(start), batch_rule, step + i, records[i], before, l2=l2, watch=batch_watch, sums=sums[i]
        )
        statuses.append(status)
        if updates is not None:
            updates += 1
    outcomes = np.empty(len(statuses), np.int64)
    fetch(xp.concatenate(statuses), outcomes)
    failed = np.flatnonzero(outcomes)
    done = int(failed[0]) - 1 if len(failed) else len(starts)
    if updates is not None:
        updates -= len(starts) - done
    # batches after one that failed have no record
    for values, array in ((records, record), (sums[:, 1:], counts)):
        if array is not None:
            on_host = np.empty(values.shape)
            fetch(values, on_host)
            array[: done + 1] = on_host[: done + 1] if type(array) is np.ndarray else values[: done + 1]
    if done == len(starts):
        return types.OK, done
    net_views.gradients(batch_of(starts[done]), l2, xp.empty(1), xp.zeros(1, np.int64), xp.empty(1, np.int64))
    return int(outcomes[done + 1]), done
