"""One layer of an LSTM, in one direction or both: the operator. The module is in recurrent.py."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.autograd import Function

from fastgrad.core import check
from fastgrad.core.allocator import empty
from fastgrad.core.backend import kernels
from fastgrad.core.errstate import silent
from fastgrad.functional.lstm_weights import LSTMWeights, like
from fastgrad.functional.packing import PackedBatch, pack, packed_batch, unpack
from fastgrad.torch.registration import Operator, low, plain, refuse_second, refuse_tangents
from fastgrad.torch.tensors import array, integers, offloaded

Tensor = torch.Tensor
OP = "lstm"


class Form(NamedTuple):
    """What a layer is made of: 1 or 2 directions, biases, a projection; and whether there will be a way back."""

    directions: int
    bias: bool
    projects: bool
    keep: bool = True

    @property
    def each(self) -> int:
        """Tensors of a direction: weight_ih, weight_hh, bias_ih, bias_hh, weight_hr."""
        return 2 + 2 * self.bias + self.projects


def lstm(
    x: Tensor,
    weights: Sequence[Tensor],
    h_0: Tensor | None = None,
    c_0: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    order: Tensor | None = None,
    *,
    directions: int = 1,
    bias: bool = True,
    projects: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer over x (N, T, C), or over the rows (R, C) of a PackedSequence with its batch_sizes (T,).

    weights: of each of the directions weight_ih (4H, C), weight_hh (4H, P), bias_ih and bias_hh (4H,) with bias, and weight_hr (P, H) if it
    projects, as PyTorch has them. States h_0 (D, N, P) and c_0 (D, N, H) are 0 if not given; order (N,): of packed rows, which
    sequence of the states comes first, second, ... Returns y (N, T, D P), or (R, D P), and h_n and c_n like the states.
    """
    form = Form(directions, bias, projects, torch.is_grad_enabled())
    refuse_tangents(OP, x, h_0, c_0, *weights)
    if not plain(OP, x):
        y, h_n, c_n, _ = _forward.op(x, list(weights), h_0, c_0, batch_sizes, order, *form)
        dtype = low(x)
        if dtype is None:
            return y, h_n, c_n
        # PyTorch's gates are products, c is carried on in the dtype it began with, and h is their product or the projection's
        of_c = torch.promote_types(dtype, x.dtype if c_0 is None else c_0.dtype)
        of_h = dtype if projects else of_c
        return y.to(of_h), h_n.to(of_h), c_n.to(of_c)
    if form.keep:
        return _Lstm.apply(x, h_0, c_0, batch_sizes, order, form, *weights)
    return _run(x, weights, h_0, c_0, batch_sizes, order, *form)[:3]


class _Layer:
    """The arrays of one call, checked."""

    def __init__(
        self, x: Tensor, weights: Sequence[Tensor], h_0: Any, c_0: Any, batch_sizes: Any, order: Any, form: Form
    ) -> None:
        xs = array(OP, "x", x)
        self.batch = _batch(xs, batch_sizes, order)
        self.xs = pack(xs, self.batch) if batch_sizes is None else check.contiguous(xs)
        if len(weights) != form.directions * form.each:
            raise ValueError(f"{OP}: weights must have length {form.directions * form.each}, got {len(weights)}")
        parts = [weights[i : i + form.each] for i in range(0, len(weights), form.each)]
        self.weights = [_weights(part, xs, form) for part in parts]
        first = self.weights[0]
        self.hidden, self.width = first.w_ih.shape[1] // 4, len(first.w_hh)
        n = self.batch.shape[0]
        self.h_0 = _state("h_0", h_0, "(D, N, P)", (form.directions, n, self.width), xs.dtype)
        self.c_0 = _state("c_0", c_0, "(D, N, H)", (form.directions, n, self.hidden), xs.dtype)

    def columns(self, way: int) -> slice:
        """A direction's part of the rows."""
        return slice(way * self.width, (way + 1) * self.width)

    def saved(self, flat: np.ndarray, way: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """gates (R, 4H), c and tanh_c (R, H) of a direction."""
        rows, hidden = len(self.xs), self.hidden
        part = flat[6 * rows * hidden * way : 6 * rows * hidden * (way + 1)]
        gates, c, tanh_c = np.split(part, [4 * rows * hidden, 5 * rows * hidden])
        return gates.reshape(rows, 4 * hidden), c.reshape(rows, hidden), tanh_c.reshape(rows, hidden)

    def size(self) -> int:
        """Values of what is saved: of each direction its gates, c and tanh c, and the outputs of all."""
        return len(self.weights) * len(self.xs) * (6 * self.hidden + self.width)

    def outputs(self, flat: np.ndarray) -> np.ndarray:
        """h (R, D P), a copy of y's rows: PyTorch lets y be written to."""
        rows, columns = len(self.xs), len(self.weights) * self.width
        return flat[flat.size - rows * columns :].reshape(rows, columns)


def _batch(x: np.ndarray, batch_sizes: Tensor | None, order: Tensor | None) -> PackedBatch:
    if batch_sizes is None:
        check.array(OP, "x", x, "(N, T, C)", (None, None, None))
        return packed_batch(OP, x.shape[:2], None)
    # copies before they are looked at: another thread may write to what the caller has
    sizes = integers(OP, "batch_sizes", batch_sizes).astype(np.int64)
    if len(sizes) and (sizes[-1] < 1 or (np.diff(sizes) > 0).any()):
        raise ValueError(f"{OP}: batch_sizes must be at least 1 and not rise from step to step")
    check.array(OP, "x", x, "(R, C)", (int(sizes.sum()), None))
    n = int(sizes[0]) if len(sizes) else 0
    found = np.arange(n) if order is None else integers(OP, "order", order).astype(np.int64)
    if order is not None and not np.array_equal(np.sort(found), np.arange(n)):
        raise ValueError(f"{OP}: order must have each of 0..{n - 1} once, got {found.shape} integers")
    return PackedBatch(found, np.append(0, np.cumsum(sizes)), (n, len(sizes)), False)


def _weights(part: Sequence[Tensor], x: np.ndarray, form: Form) -> LSTMWeights:
    """A direction's, in our layout: w_ih and w_hh as turned views, which kernels copy into panels from where they lie."""
    w_ih, w_hh, *others = part
    named = {"weight_ih": w_ih, "weight_hh": w_hh}
    named |= dict(zip(("bias_ih", "bias_hh"), others, strict=False)) if form.bias else {}
    named |= {"weight_hr": others[-1]} if form.projects else {}
    columns = w_ih.shape[0]
    width = others[-1].shape[0] if form.projects else columns // 4
    forms: dict[str, tuple[str, tuple[int, ...]]] = {
        "weight_ih": ("(4H, C)", (columns // 4 * 4, x.shape[-1])),
        "weight_hh": ("(4H, P)" if form.projects else "(4H, H)", (columns, width)),
        "bias_ih": ("(4H,)", (columns,)),
        "bias_hh": ("(4H,)", (columns,)),
        "weight_hr": ("(P, H)", (width, columns // 4)),
    }
    for name, w in named.items():
        check.array(OP, name, array(OP, name, w), *forms[name], x.dtype)
    x_turned, h_turned = (w.detach().contiguous().numpy().T for w in (w_ih, w_hh))
    b = (others[0].detach() + others[1].detach()).numpy() if form.bias else None
    w_proj = others[-1].detach().t().contiguous().numpy() if form.projects else None
    return LSTMWeights(x_turned, h_turned, b, None, w_proj)


def _state(name: str, value: Tensor | None, form: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    if value is None:
        return np.zeros(shape, dtype)
    return check.contiguous(check.array(OP, name, array(OP, name, value), form, shape, dtype))


def _run(
    x: Tensor,
    weights: Sequence[Tensor],
    h_0: Tensor | None,
    c_0: Tensor | None,
    batch_sizes: Tensor | None,
    order: Tensor | None,
    directions: int,
    bias: bool,
    projects: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, h_n, c_n, and of each direction its gates, c and tanh c, and a copy of y, if there will be a way back."""
    a = _Layer(x, weights, h_0, c_0, batch_sizes, order, Form(directions, bias, projects))
    return _computed(a, batch_sizes is not None, keep)


def _computed(a: _Layer, packed: bool, keep: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The forward: what `_run` returns."""
    directions = len(a.weights)
    rows, dtype = len(a.xs), a.xs.dtype
    h = empty((rows, directions * a.width), dtype)
    h_n, c_n = empty(a.h_0.shape, dtype), empty(a.c_0.shape, dtype)
    saved = empty((a.size() if keep else 0,), dtype)
    for way, w in enumerate(a.weights):
        if keep:
            room: Any = a.saved(saved, way)
        else:
            room = empty((rows, 4 * a.hidden), dtype), None, None
        kernels().lstm_forward(
            a.xs, *w, a.h_0[way], a.c_0[way], a.batch.order, a.batch.offsets, way == 1, *room, h[:, a.columns(way)],
            h_n[way], c_n[way],
        )  # fmt: skip
    if keep:
        np.copyto(a.outputs(saved), h)
    y = h if packed else unpack(h, a.batch)
    return torch.from_numpy(y), torch.from_numpy(h_n), torch.from_numpy(c_n), torch.from_numpy(saved)


def _run_backward(
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    x: Tensor,
    weights: Sequence[Tensor],
    h_0: Tensor | None,
    c_0: Tensor | None,
    batch_sizes: Tensor | None,
    order: Tensor | None,
    directions: int,
    bias: bool,
    projects: bool,
    saved: Tensor,
    wants_dx: bool,
) -> list[Tensor]:
    """dx if wanted, dh_0, dc_0, and the gradients of the weights in their order."""
    a = _Layer(x, weights, h_0, c_0, batch_sizes, order, Form(directions, bias, projects))
    return _back(a, dy, dh_n, dc_n, batch_sizes, saved, wants_dx)


@silent
def _back(
    a: _Layer,
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    batch_sizes: Tensor | None,
    saved: Tensor,
    wants_dx: bool,
) -> list[Tensor]:
    """The way back: what `_run_backward` returns."""
    dtype, flat = a.xs.dtype, array(OP, "saved", saved)
    h = a.outputs(flat)
    dh = None if dy is None else _rows(array(OP, "dy", dy), a.batch, batch_sizes)
    ends = [None if d is None else check.contiguous(array(OP, "dh_n", d)) for d in (dh_n, dc_n)]
    dh_0, dc_0 = empty(a.h_0.shape, dtype), empty(a.c_0.shape, dtype)
    dxs: list[Any] = [empty(a.xs.shape, dtype) if wants_dx else None for _ in a.weights]
    made: list[np.ndarray] = []
    for way, w in enumerate(a.weights):
        gates, c, tanh_c = a.saved(flat, way)
        columns, d = a.columns(way), like(w)
        kernels().lstm_backward(
            None if dh is None else dh[:, columns], *(None if end is None else end[way] for end in ends), a.xs, w.w_ih, w.w_hh,
            None, w.w_proj, a.h_0[way], a.c_0[way], a.batch.order, a.batch.offsets, way == 1, gates, c, tanh_c, h[:, columns],
            empty(gates.shape, dtype), dxs[way], *d, dh_0[way], dc_0[way], None, False,
        )  # fmt: skip
        made += [d.w_ih.T, d.w_hh.T]
        made += [d.b, d.b.copy()] if d.b is not None else []
        made += [d.w_proj.T] if d.w_proj is not None else []
    if wants_dx:
        if len(dxs) == 2:
            np.add(dxs[0], dxs[1], out=dxs[0])
        made.insert(0, unpack(dxs[0], a.batch) if batch_sizes is None else dxs[0])
    made[wants_dx:wants_dx] = [dh_0, dc_0]
    return [torch.from_numpy(d) for d in made]


def _rows(values: np.ndarray, batch: PackedBatch, batch_sizes: Tensor | None) -> np.ndarray:
    return pack(values, batch) if batch_sizes is None else check.contiguous(values)


def _fake(
    x: Tensor,
    weights: Any,
    h_0: Any,
    c_0: Any,
    batch_sizes: Any,
    order: Any,
    directions: int,
    bias: Any,
    projects: Any,
    keep: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    hidden, width = weights[0].shape[0] // 4, weights[1].shape[1]
    if batch_sizes is None:
        n, steps, _ = x.shape
        rows, y = n * steps, x.new_empty(steps, n, directions * width).transpose(0, 1)
    else:
        # how many sequences there are is in the values of batch_sizes, which a fake has not
        if h_0 is None and order is None:
            raise NotImplementedError(
                f"{OP}: a compiled call of a PackedSequence needs states, or enforce_sorted=False"
            )
        n = h_0.shape[1] if h_0 is not None else order.shape[0]
        rows, y = x.shape[0], x.new_empty(x.shape[0], directions * width)
    saved = x.new_empty(directions * rows * (6 * hidden + width) if keep else 0)
    return y, x.new_empty(directions, n, width), x.new_empty(directions, n, hidden), saved


def _fake_backward(
    dy: Any, dh_n: Any, dc_n: Any, x: Tensor, weights: Any, h_0: Any, c_0: Any, batch_sizes: Any, order: Any, directions: int,
    bias: Any, projects: Any, saved: Any, wants_dx: bool,
) -> list[Tensor]:  # fmt: skip
    _, h_n, c_n, _ = _fake(x, weights, h_0, c_0, batch_sizes, order, directions, bias, projects, False)
    made = [h_n, c_n, *(w.new_empty(w.shape[::-1]).t() if w.dim() == 2 else torch.empty_like(w) for w in weights)]
    if not wants_dx:
        return made
    by_step = batch_sizes is None
    return [x.new_empty(x.shape[1], x.shape[0], x.shape[2]).transpose(0, 1) if by_step else torch.empty_like(x), *made]


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    x, weights, h_0, c_0, batch_sizes, order, *form = inputs
    ctx.save_for_backward(x, h_0, c_0, batch_sizes, order, output[3], *weights)
    ctx.form = form[:3]
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dy: Any, dh_n: Any, dc_n: Any, wants_dx: bool) -> tuple[Any, Any, Any, list[Tensor]]:
    """dx, dh_0, dc_0, and those of the weights."""
    x, h_0, c_0, batch_sizes, order, saved, *weights = ctx.saved_tensors
    # the arrays of the forward serve one backward: see dense.py
    layer = ctx.__dict__.pop("layer", None)
    if layer is not None:
        made = _back(layer, dy, dh_n, dc_n, batch_sizes, saved, wants_dx)
    else:
        arguments = dy, dh_n, dc_n, x, weights, h_0, c_0, batch_sizes, order, *ctx.form, saved, wants_dx
        # upstream gradients may be missing, so that it is x that says who is to be called
        made = _backward.run(*arguments) if plain(OP, x) and not torch.is_grad_enabled() else _backward.op(*arguments)
    dx = made.pop(0) if wants_dx else None
    dh_0, dc_0, *dweights = made
    return dx, None if h_0 is None else dh_0, None if c_0 is None else dc_0, dweights


def _differentiate(ctx: Any, dy: Any, dh_n: Any, dc_n: Any, dsaved: Any) -> tuple:
    dx, dh_0, dc_0, dweights = _gradients(ctx, dy, dh_n, dc_n, ctx.needs_input_grad[0])
    return dx, dweights, dh_0, dc_0, *[None] * 6


_forward = Operator(
    f"{OP}(Tensor x, Tensor[] weights, Tensor? h_0, Tensor? c_0, Tensor? batch_sizes, Tensor? order, int directions, bool bias,"
    " bool projects, bool keep) -> (Tensor, Tensor, Tensor, Tensor)",
    _run,
    _fake,
)
_backward = Operator(
    f"{OP}_backward(Tensor? dy, Tensor? dh_n, Tensor? dc_n, Tensor x, Tensor[] weights, Tensor? h_0, Tensor? c_0, Tensor? batch_sizes,"
    " Tensor? order, int directions, bool bias, bool projects, Tensor saved, bool wants_dx) -> Tensor[]",
    _run_backward,
    _fake_backward,
).final()
_forward.differentiable(_save, _differentiate)


class _Lstm(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, h_0: Any, c_0: Any, batch_sizes: Any, order: Any, form: Form, *weights: Tensor
    ) -> tuple:
        inputs = x, weights, h_0, c_0, batch_sizes, order, *form
        layer = _Layer(*inputs[:6], form)
        output = _computed(layer, batch_sizes is not None, form.keep)
        if not offloaded():
            ctx.layer = layer
        _save(ctx, inputs, output)
        return output[:3]

    @staticmethod
    def backward(ctx: Any, dy: Any, dh_n: Any, dc_n: Any) -> tuple:  # type: ignore[override]
        refuse_second(OP)
        dx, dh_0, dc_0, dweights = _gradients(ctx, dy, dh_n, dc_n, ctx.needs_input_grad[0])
        return dx, dh_0, dc_0, None, None, None, *dweights
