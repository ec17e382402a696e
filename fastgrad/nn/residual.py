"""Residual: the block y = act(body(x) + shortcut(x)). The body's last layer adds the shortcut in its own call, if it can."""

import numpy as np

from fastgrad.core import check
from fastgrad.core.allocator import empty
from fastgrad.core.backend import kernels
from fastgrad.core.errstate import silent
from fastgrad.kernels.types import Activation
from fastgrad.nn import summary
from fastgrad.nn.children import check_children
from fastgrad.nn.container import Container, Sequential
from fastgrad.nn.context import IDENTITY, Backward, ForwardContext, activation_name, before_loss
from fastgrad.nn.model import Model
from fastgrad.nn.residual_layer import ResidualLayer, ResidualLayerBackward

# the step of the shortcut, beside those of the body, which count from 0
SHORTCUT = -1


class Residual(Container):
    """A residual block: layers whose input is added to their output.

    y = act(body(x) + shortcut(x))

    A body's last layer without an activation adds the shortcut and applies act in its own call. Body and shortcut may
    be layers of rows or of images, without an LSTM or a GRU. Parameters are named "body.w", or "body.0.w", ... of a
    Sequential, and "shortcut.w".

    Args:
        body: The layers, a model whose outputs are like its inputs, or like those of shortcut.
        shortcut: A model of x; None is x itself.
        activation: The activation act, a name or a pair of a name and its parameter.
        seed: The seed by which layers that have none draw their initial weights; None as 0.

    Raises:
        ValueError: The widths of body and shortcut differ, one has an LSTM or a GRU, is part of a model or on a GPU,
            or the activation is unknown.
        TypeError: body or shortcut is no model of fg.nn, or they are of different dtypes.

    Example:
        >>> block = fg.nn.Residual(fg.nn.Sequential(fg.nn.Dense(4, 4, "relu"), fg.nn.Dense(4, 4)), activation="relu")
        >>> block.predict(np.zeros((2, 4), np.float32)).shape
        (2, 4)

    References:
        He et al. 2015, "Deep Residual Learning for Image Recognition", eq. 1 and 2.
    """

    def __init__(
        self,
        body: Model,
        shortcut: Model | None = None,
        activation: str | tuple[str, float] = "identity",
        *,
        seed: int | None = None,
    ) -> None:
        op = type(self).__name__
        self.output = check.activation(op, activation)
        children = {"body": body} | ({} if shortcut is None else {"shortcut": shortcut})
        check_children(op, children)
        for name, child in children.items():
            if child.recurrent:
                raise ValueError(f"{op}: {name} must be without an LSTM or a GRU")
        widths = [body.n_out, body.n_in if shortcut is None else shortcut.n_out]
        if None not in widths and widths[0] != widths[1]:
            hint = "; a layer as shortcut makes them equal" if shortcut is None else ""
            raise ValueError(f"{op}: body makes {widths[0]} columns and shortcut {widths[1]}{hint}")
        if shortcut is not None and None not in (body.n_in, shortcut.n_in) and body.n_in != shortcut.n_in:
            raise ValueError(f"{op}: shortcut must take {body.n_in} columns as body, got {shortcut.n_in}")
        super().__init__(children, seed)
        self.body, self.shortcut = body, shortcut
        self.n_in, self.n_out = (
            next((n for n in (getattr(child, name) for child in children.values()) if n is not None), None)
            for name in ("n_in", "n_out")
        )
        self.keeps_width, self.pools = all(child.keeps_width for child in children.values()), body.pools

    @property
    def _body_plan(self) -> tuple[list[Model], ResidualLayer | None]:
        """(the steps of the body, the layer after them that adds the shortcut); None if no layer can add it."""
        steps = self.body._plan if isinstance(self.body, Sequential) else [self.body]
        last = steps[-1]
        return (steps[:-1], last) if isinstance(last, ResidualLayer) and last.output == IDENTITY else (steps, None)

    def _forward(self, x: np.ndarray, context: ForwardContext) -> tuple[np.ndarray, None, Backward]:
        dx, activation = context.want_dx, before_loss(self.output, context.logits)
        context, (steps, last) = context._replace(logits=False), self._body_plan
        added, shortcut_backward = x, None
        if self.shortcut is not None:
            added, _, shortcut_backward = self._inside(SHORTCUT, self.shortcut._forward, x, context)
        h, backwards = x, []
        for i, step in enumerate(steps):
            h, _, step_backward = self._inside(i, step._forward, h, context)
            backwards.append(step_backward)
            context = context._replace(want_dx=True)
        if last is None:
            y, sum_backward = self._sum(h, added, activation)
        else:
            y, sum_backward = self._inside(len(steps), last._forward_residual, h, context, activation, added)

        @silent
        def backward(dy: np.ndarray) -> np.ndarray:
            d, dadded = sum_backward(dy)
            for step_backward in reversed(backwards):
                d = step_backward(d)
            if shortcut_backward is not None:
                dadded = shortcut_backward(dadded)
            # d is memory of the body or of the sum, which nothing else reads
            return np.add(d, dadded, out=d) if dx else dy

        return y, None, backward

    def _infer(self, x: np.ndarray, context: ForwardContext) -> tuple[np.ndarray, None]:
        activation = before_loss(self.output, context.logits)
        context, (steps, last) = context._replace(logits=False), self._body_plan
        added = x if self.shortcut is None else self._inside(SHORTCUT, self.shortcut._infer, x, context)[0]
        h = x
        for i, step in enumerate(steps):
            h, _ = self._inside(i, step._infer, h, context)
        if last is None:
            y, _ = self._sum(h, added, activation)
        else:
            y, _ = self._inside(len(steps), last._forward_residual, h, context, activation, added)
        return y, None

    def _rows(self, name: str, shape: summary.Shape) -> tuple[list[summary.Row], summary.Shape]:
        rows, shapes = [], []
        for key, child in self.children.items():
            child_rows, child_shape = child._rows(summary.join(name, key), shape)
            rows += child_rows
            shapes.append(child_shape)
        settings = {"activation": activation_name(self.output)}
        # the sum has no parameters of its own
        return [summary.Row(name, summary.call(type(self), settings), shapes[0], 0), *rows], shapes[0]

    def _path(self, step: int) -> str:
        if step == SHORTCUT:
            return ".shortcut"
        return ".body" + (self.body._path(step) if isinstance(self.body, Sequential) else "")

    @silent
    def _sum(
        self, h: np.ndarray, added: np.ndarray, activation: Activation
    ) -> tuple[np.ndarray, ResidualLayerBackward]:
        """act(h + added), after a body whose last layer cannot add."""
        op, ops = type(self).__name__, kernels(h)
        added = check.array(op, "shortcut", added, "like the body's output", h.shape, h)
        z = np.add(h, added, out=empty(h.shape, h))
        y = empty(h.shape, h) if activation.needs_input else z
        rows = -1, h.shape[-1]
        ops.activation_forward(z.reshape(rows), y.reshape(rows), activation)

        def backward(dy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            dy, dz = check.upstream(op, dy, y), empty(h.shape, h)
            dy, z_rows, y_rows, dz_rows = (a.reshape(rows) for a in (dy, z, y, dz))
            ops.activation_backward(dy, z_rows, y_rows, dz_rows, activation)
            return dz, dz

        return y, backward
