"""The PyTorch operator lstm: one layer in one direction or both, its derivative and its fake. The module is in lstm_module.py."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd import Function

from fastgrad.kernels.types import lstm_buffer_size
from fastgrad.torch.ops.lstm_layer import OP, Call, Layer
from fastgrad.torch.registration import (
    Operator,
    autocast_dtype,
    refuse_second_derivative,
    refuse_tangents,
    skips_dispatcher,
)
from fastgrad.torch.tensors import has_saved_tensor_hooks

Tensor = torch.Tensor


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
    """One layer of an LSTM in one direction or both, as torch.nn.LSTM computes it.

    c_t = f c_{t-1} + i g, h_t = o tanh(c_t), with the gates i, f, g, o of x_t and h_{t-1}; H units, and P = H, or with a
    projection the width of h.

    Args:
        x: Sequences (N, T, C), or with batch_sizes the rows (R, C) of a PackedSequence; float32 or float64.
        weights: Of each direction weight_ih (4H, C), weight_hh (4H, P), with bias bias_ih and bias_hh (4H,), and with
            projects weight_hr (P, H).
        h_0: The initial h, (D, N, P) with D directions; None is 0.
        c_0: The initial c, (D, N, H); None is 0.
        batch_sizes: Of packed rows the number of sequences at each step, (T,), integers that do not rise.
        order: Of packed rows which sequence of the states comes first, second, ...: (N,) integers; None is 0, 1, 2, ...
        directions: 1, or 2 with the reverse direction.
        bias: Whether weights has biases.
        projects: Whether weights has projections.

    Returns:
        y (N, T, D P), or (R, D P) of packed rows, h_n (D, N, P) and c_n (D, N, H), differentiable by x, weights, h_0 and
        c_0.

    Raises:
        ValueError: A shape does not fit.
        TypeError: An argument is no tensor of a dtype that is taken, or dtypes are mixed.
        NotImplementedError: The call is inside torch.func's transforms, or has tangents.

    Example:
        >>> x, weights = torch.zeros(2, 5, 3), [torch.zeros(16, 3), torch.zeros(16, 4)]
        >>> y, h_n, c_n = fgt.lstm(x, weights, bias=False)
        >>> y.shape, c_n.shape
        (torch.Size([2, 5, 4]), torch.Size([1, 2, 4]))

    References:
        Hochreiter & Schmidhuber 1997, "Long Short-Term Memory".
    """
    call = Call(x, weights, h_0, c_0, batch_sizes, order, directions, bias, projects)
    keep = torch.is_grad_enabled()
    refuse_tangents(OP, x, h_0, c_0, *weights)
    if not skips_dispatcher(OP, x):
        y, h_n, c_n, _ = _forward.op(x, list(weights), *call[2:], keep)
        dtype = autocast_dtype(x)
        if dtype is None:
            return y, h_n, c_n
        # PyTorch's gates are products, c is carried on in the dtype it began with, and h is their product or the projection's
        of_c = torch.promote_types(dtype, x.dtype if c_0 is None else c_0.dtype)
        of_h = dtype if projects else of_c
        return y.to(of_h), h_n.to(of_h), c_n.to(of_c)
    if keep:
        return _Lstm.apply(x, h_0, c_0, batch_sizes, order, call[6:], *weights)
    y, h_n, c_n, _ = Layer(call).forward(False)
    return y, h_n, c_n


def _run(*arguments: Any) -> tuple[Tensor, ...]:
    *call, keep = arguments
    return Layer(Call(*call)).forward(keep)


def _run_backward(dy: Any, dh_n: Any, dc_n: Any, *arguments: Any) -> list[Tensor]:
    *call, saved, wants_dx = arguments
    return Layer(Call(*call)).backward(dy, dh_n, dc_n, saved, wants_dx)


def _fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, weights, h_0, _, batch_sizes, order, directions, _, _, keep = arguments
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
    saved = x.new_empty(directions * (lstm_buffer_size(rows, hidden) + rows * width) if keep else 0)
    return y, x.new_empty(directions, n, width), x.new_empty(directions, n, hidden), saved


def _fake_backward(dy: Any, dh_n: Any, dc_n: Any, *arguments: Any) -> list[Tensor]:
    *call, _, wants_dx = arguments
    x, weights, _, _, batch_sizes, *_ = call
    _, h_n, c_n, _ = _fake(*call, False)
    gradients = [h_n, c_n, *(w.new_empty(w.shape[::-1]).t() if w.dim() == 2 else torch.empty_like(w) for w in weights)]
    if not wants_dx:
        return gradients
    by_step = batch_sizes is None
    dx = x.new_empty(x.shape[1], x.shape[0], x.shape[2]).transpose(0, 1) if by_step else torch.empty_like(x)
    return [dx, *gradients]


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    x, weights, h_0, c_0, batch_sizes, order, *form, _ = inputs
    ctx.save_for_backward(x, h_0, c_0, batch_sizes, order, output[3], *weights)
    ctx.form = form
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dy: Any, dh_n: Any, dc_n: Any) -> tuple[Any, Any, Any, list[Tensor]]:
    """dx, dh_0, dc_0, and those of the weights."""
    x, h_0, c_0, batch_sizes, order, saved, *weights = ctx.saved_tensors
    wants_dx = ctx.needs_input_grad[0]
    # the arrays of the forward serve one backward: see dense.py
    layer = ctx.__dict__.pop("layer", None)
    if layer is not None:
        gradients = layer.backward(dy, dh_n, dc_n, saved, wants_dx)
    else:
        arguments = dy, dh_n, dc_n, x, weights, h_0, c_0, batch_sizes, order, *ctx.form, saved, wants_dx
        # upstream gradients may be missing, so that it is x that says who is to be called
        run = _backward.run if skips_dispatcher(OP, x) and not torch.is_grad_enabled() else _backward.op
        gradients = run(*arguments)
    dx = gradients.pop(0) if wants_dx else None
    dh_0, dc_0, *dweights = gradients
    return dx, None if h_0 is None else dh_0, None if c_0 is None else dc_0, dweights


def _differentiate(ctx: Any, dy: Any, dh_n: Any, dc_n: Any, dsaved: Any) -> tuple:
    dx, dh_0, dc_0, dweights = _gradients(ctx, dy, dh_n, dc_n)
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
).without_derivative()
_forward.set_derivative(_save, _differentiate)


class _Lstm(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, h_0: Any, c_0: Any, batch_sizes: Any, order: Any, form: Any, *weights: Any
    ) -> tuple:
        call = Call(x, weights, h_0, c_0, batch_sizes, order, *form)
        layer = Layer(call)
        output = layer.forward(True)
        if not has_saved_tensor_hooks():
            ctx.layer = layer
        _save(ctx, (*call, True), output)
        return output[:3]

    @staticmethod
    def backward(ctx: Any, dy: Any, dh_n: Any, dc_n: Any) -> tuple:  # type: ignore[override]
        refuse_second_derivative(OP)
        dx, dh_0, dc_0, dweights = _gradients(ctx, dy, dh_n, dc_n)
        return dx, dh_0, dc_0, None, None, None, *dweights
