"""RecurrentOperator: the PyTorch operator of a recurrent layer, its derivative and its fake. lstm.py, lstm_variants.py and gru.py have one
each.
"""

from typing import Any

import torch
from torch.autograd import Function

from fastgrad.torch.ops.recurrent_layer import Layer
from fastgrad.torch.registration import (
    Operator,
    autocast_dtype,
    refuse_second_derivative,
    refuse_tangents,
    skips_dispatcher,
)
from fastgrad.torch.tensors import has_saved_tensor_hooks

Tensor = torch.Tensor


class RecurrentOperator:
    """The operator of a cell's Layer. Its arguments are those of a Call, each state alone; it returns y and the end states."""

    def __init__(self, name: str, layer: type[Layer], arguments: str) -> None:
        """arguments: the operator's, as a schema of torch.library has them: x, weights, tensors that may be None, and numbers."""
        self.layer, self.op, self.state_count = layer, layer.op, len(layer.states)
        # tensors that may be None: the states, of rows batch_sizes and order, and of a variant the keys
        self.tensor_count = arguments.count("Tensor? ")
        ends = "".join(f", Tensor? d{name[0]}_n" for name in layer.states)
        results = ", ".join(["Tensor"] * (self.state_count + 2))
        self.forward = Operator(f"{name}({arguments}, bool keep) -> ({results})", self._run, self._fake)
        self.backward = Operator(
            f"{name}_backward(Tensor? dy{ends}, {arguments}, Tensor saved, bool wants_dx) -> Tensor[]",
            self._run_backward,
            self._fake_backward,
        ).without_derivative()
        self.forward.set_derivative(self.save, self._differentiate)

    def __call__(self, *arguments: Any) -> tuple[Tensor, ...]:
        call = self.layer.call(arguments)
        x, weights, states = call.x, call.weights, call.states
        keep = torch.is_grad_enabled()
        refuse_tangents(self.op, x, *states, *weights)
        if not skips_dispatcher(self.op, x):
            y, *ends, _ = self.forward.op(x, list(weights), *arguments[2:], keep)
            dtype = autocast_dtype(x)
            if dtype is None:
                return y, *ends
            # PyTorch's gates are products, the last state is carried on in the dtype it began with, and h is their product or the
            # projection's
            of_last = torch.promote_types(dtype, x.dtype if states[-1] is None else states[-1].dtype)
            of_h = dtype if call.projects else of_last
            return y.to(of_h), *(end.to(of_h) for end in ends[:-1]), ends[-1].to(of_last)
        if keep:
            return _Recurrent.apply(x, self, len(weights), *weights, *arguments[2:])
        return self.layer(call).forward(False)[:-1]

    def save(self, ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        x, weights, *others, _ = inputs
        count = self.tensor_count
        ctx.save_for_backward(x, output[-1], *others[:count], *weights)
        ctx.form = others[count:]
        ctx.set_materialize_grads(False)

    def gradients(self, ctx: Any, upstream: tuple) -> tuple[Any, list[Any], list[Tensor]]:
        """dx, and those of the initial states and of the weights."""
        x, saved, *tensors = ctx.saved_tensors
        count = self.state_count
        states, optional, weights = tensors[:count], tensors[: self.tensor_count], tensors[self.tensor_count :]
        wants_dx = ctx.needs_input_grad[0]
        # the arrays of the forward serve one backward: see dense.py
        layer = ctx.__dict__.pop("layer", None)
        if layer is not None:
            gradients = layer.backward(upstream, saved, wants_dx)
        else:
            # upstream gradients may be missing, so that it is x that says who is to be called
            direct = skips_dispatcher(self.op, x) and not torch.is_grad_enabled()
            run = self.backward.run if direct else self.backward.op
            gradients = run(*upstream, x, weights, *optional, *ctx.form, saved, wants_dx)
        dx = gradients.pop(0) if wants_dx else None
        dstates = [None if h is None else dh for h, dh in zip(states, gradients, strict=False)]
        return dx, dstates, gradients[count:]

    def _run(self, *arguments: Any) -> tuple[Tensor, ...]:
        *call, keep = arguments
        return self.layer(self.layer.call(call)).forward(keep)

    def _run_backward(self, *arguments: Any) -> list[Tensor]:
        upstream, (*call, saved, wants_dx) = arguments[: self.state_count + 1], arguments[self.state_count + 1 :]
        return self.layer(self.layer.call(call)).backward(upstream, saved, wants_dx)

    def _fake(self, *arguments: Any) -> tuple[Tensor, ...]:
        *flat, keep = arguments
        call = self.layer.call(flat)
        x, weights, (h_0, *_), batch_sizes, order, directions, *_ = call
        hidden, width = weights[0].shape[0] // self.layer.gates, weights[1].shape[1]
        if batch_sizes is None:
            n, steps, _ = x.shape
            rows, y = n * steps, x.new_empty(steps, n, directions * width).transpose(0, 1)
        else:
            # how many sequences there are is in the values of batch_sizes, which a fake has not
            if h_0 is None and order is None:
                raise NotImplementedError(
                    f"{self.op}: a compiled call of a PackedSequence needs states, or enforce_sorted=False"
                )
            n = order.shape[0] if h_0 is None else h_0.shape[1]  # type: ignore[union-attr]
            rows, y = x.shape[0], x.new_empty(x.shape[0], directions * width)
        ends = [x.new_empty(directions, n, size) for size in (width, hidden)[: self.state_count]]
        saved = x.new_empty(directions * (self.layer.buffer_size(call, rows, hidden) + rows * width) if keep else 0)
        return y, *ends, saved

    def _fake_backward(self, *arguments: Any) -> list[Tensor]:
        *call, _, wants_dx = arguments[self.state_count + 1 :]
        x, weights, _, batch_sizes, *_ = self.layer.call(call)
        _, *ends, _ = self._fake(*call, False)
        dweights = (w.new_empty(w.shape[::-1]).t() if w.dim() == 2 else torch.empty_like(w) for w in weights)
        gradients = [*ends, *dweights]
        if not wants_dx:
            return gradients
        by_step = batch_sizes is None
        dx = x.new_empty(x.shape[1], x.shape[0], x.shape[2]).transpose(0, 1) if by_step else torch.empty_like(x)
        return [dx, *gradients]

    def _differentiate(self, ctx: Any, *upstream: Any) -> tuple:
        dx, dstates, dweights = self.gradients(ctx, upstream[:-1])
        # none of the other tensors, the form and keep
        return dx, dweights, *dstates, *[None] * (self.tensor_count - self.state_count + len(ctx.form) + 1)


class _Recurrent(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, operator: RecurrentOperator, weight_count: int, *others: Any) -> tuple:
        arguments = x, others[:weight_count], *others[weight_count:]
        layer = operator.layer(operator.layer.call(arguments))
        output = layer.forward(True)
        if not has_saved_tensor_hooks():
            ctx.layer = layer
        operator.save(ctx, (*arguments, True), output)
        ctx.operator = operator
        return output[:-1]

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> tuple:  # type: ignore[override]
        operator = ctx.operator
        refuse_second_derivative(operator.op)
        dx, dstates, dweights = operator.gradients(ctx, upstream)
        others = operator.tensor_count - operator.state_count + len(ctx.form)
        return dx, None, None, *dweights, *dstates, *[None] * others
