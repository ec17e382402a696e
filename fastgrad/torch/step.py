"""`training_step`: forward, loss, backward, clipping and update of a PyTorch model by fastgrad's kernels, without autograd.

A step of a chain whose parameters are all trained, by one group of the optimizer, is one compiled call, dense_chain_step. It reads and
writes parameters and state where PyTorch has them. Any other step, and one whose gradients are not finite, takes dense_chain_gradients and
then an update for each group. What may have changed since the last call is compared first; the layers, the addresses and the state's
memory are read again where it has.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from fastgrad.core import check
from fastgrad.core.allocator import empty
from fastgrad.core.backend import kernels
from fastgrad.core.fork import give_lock
from fastgrad.functional.loss_arguments import checked_labels
from fastgrad.kernels import types
from fastgrad.kernels.types import Net, UpdateRule
from fastgrad.optim.setting import clip_norm_of
from fastgrad.torch.chain_model import OP, ChainModel
from fastgrad.torch.layers import GLOBAL_HOOKS
from fastgrad.torch.loss_rules import LossRule
from fastgrad.torch.object_snapshot import ObjectSnapshot
from fastgrad.torch.ops.clip import clip_gradients
from fastgrad.torch.optim_rules import GroupUpdate, OptimizerUpdates, check_optimizer, step_hooks
from fastgrad.torch.tensors import address_list, array, arrays, integers

Tensor = torch.Tensor


def training_step(
    model: nn.Module,
    loss: nn.Module | Callable[..., Any] | str,
    optimizer: torch.optim.Optimizer,
    clip_norm: float | None = None,
) -> "TrainingStep":
    """A whole training step of a PyTorch model in one call: forward, loss, backward, clipping and update, without autograd.

    `loss = step(x, y)` does to parameters and optimizer what `optimizer.zero_grad()`, `loss = criterion(model(x), y)`,
    `loss.backward()`, `clip_grad_norm_` and `optimizer.step()` do, and the two may take turns. It updates the
    parameters where they are, and the optimizer's state, of PyTorch's names and numbers: checkpoints, schedulers and
    evaluation go on as before. Gradients are not kept: `.grad` stays what it is.

    The model is a chain of nn.Linear and activations: an nn.Sequential, which may begin with nn.Flatten, or a module
    whose forward calls such layers, or functions of torch.nn.functional, in a row. Layers, parameters, hooks,
    requires_grad, the optimizer's groups with their lr and other settings, and its state are read at every call.

    Args:
        model: A torch.nn.Module with parameters of one dtype, float32 or float64, on the CPU.
        loss: nn.CrossEntropyLoss with its options, nn.BCEWithLogitsLoss with pos_weight, nn.BCELoss behind a sigmoid,
            nn.MSELoss, nn.L1Loss, nn.HuberLoss or nn.PoissonNLLLoss, of the mean, or the function of one; or a name or
            one of fg.loss as fg.Trainer takes it, from the logits where the model ends in softmax or sigmoid.
        optimizer: SGD without dampening, Adam, AdamW or RMSprop of torch.optim, not maximize, capturable,
            differentiable or centered; or fgt.Adam or fgt.AdamW.
        clip_norm: The largest norm of the gradient of all parameters, as torch.nn.utils.clip_grad_norm_ has it; None
            clips nothing.

    Returns:
        A function step(x, y). It takes x (N, C) and y as the loss has them: class numbers (N,) in int64, or values like
        the output. It returns the mean loss before the update, a float, 0 where all labels are ignored. A step whose
        gradients are NaN or infinite goes on as PyTorch's.

    Raises:
        ValueError: A layer, the loss or the optimizer, or a setting of these, is not among those above; a call raises
            it too after such a change, and for a shape or a class number that does not fit.
        TypeError: An argument is of another type, or in a call of another dtype than the model.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        >>> optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        >>> step = fgt.training_step(model, torch.nn.MSELoss(), optimizer, clip_norm=1.0)
        >>> x = torch.rand(64, 2)
        >>> losses = [step(x, x.sum(1, keepdim=True)) for _ in range(100)]
        >>> losses[-1] < losses[0] / 10
        True
    """
    return TrainingStep(model, loss, optimizer, clip_norm)


class TrainingStep:
    """What training_step returns. Threads that call it take turns."""

    lock: Any
    _running: bool
    _chain: ChainModel
    _updates: OptimizerUpdates | None = None
    # shapes of x and y in the last step; the largest number of rows so far
    _shapes: tuple
    _rows: int
    _net: Net
    # the update of all parameters, if one makes it: then a step is one call, by this rule
    _whole: GroupUpdate | None
    _rule: UpdateRule

    def __init__(self, model: nn.Module, loss: Any, optimizer: Any, clip_norm: float | None) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"{OP}: model must be a torch.nn.Module, got {type(model).__name__}")
        self._model, self._optimizer, self._clip_norm = model, optimizer, clip_norm_of(OP, clip_norm)
        self._loss_rule, self._record = LossRule(loss), np.zeros(2)
        give_lock(self)
        self._read_model()
        check_optimizer(optimizer)

    def __call__(self, x: Tensor, y: Tensor) -> float:
        """One update; the mean loss before it."""
        if torch.compiler.is_compiling():
            return _outside_traces(self, x, y)
        with self.lock:
            if self._running:
                raise RuntimeError(f"{OP}: a step is under way in this thread, which a signal's handler came out of")
            self._running = True
            try:
                return self._step(x, y)
            finally:
                self._running = False

    def _step(self, x: Tensor, y: Tensor) -> float:
        updates = self._updates
        if not (updates and self._snapshot.is_current() and updates.read_settings() and kernels() is self._kernels):
            self._read_model()
            # not before x and y are checked: a step that fails leaves no state
            self._arrays(x, y)
            self._read_optimizer()
        xs, ys = self._arrays(x, y)
        if len(xs) > self._rows:
            self._rows, size = len(xs), types.workspace_size(self._chain.sizes, len(xs))
            self._net = self._net._replace(work=empty((size,), self._dtype))
        update = self._whole
        if update is not None:
            status = self._kernels.dense_chain_step(
                xs, ys, self._net, self._rule, update.step_number, self._record, updates=update.block.updates
            )
            update.block.count_update()
        else:
            status = self._gradients(xs, ys)
        if status == types.BAD_LABEL:
            ignored = self._net.loss.ignore_index
            checked_labels(OP, "y", ys, (len(xs), self._chain.sizes[-1]), xs, ignore_index=ignored)
            raise ValueError(f"{OP}: y had a number that is no class")
        if update is None or status == types.NONFINITE:
            self._update_groups()
        torch.autograd.graph.increment_version(self._trained)
        # a scheduler asks for this before its own step
        self._optimizer._opt_called = True
        return self._record.item(0)

    def _read_model(self) -> None:
        """Read the layers of the model, and make the arrays that a step needs beside its parameters."""
        if any(GLOBAL_HOOKS):
            raise ValueError(f"{OP}: there are hooks on all modules, which are not called")
        chain = ChainModel(self._model)
        self._loss_rule.check_output(chain.activations[-1].code)
        self._chain, self._kernels, self._updates = chain, kernels(), None
        self._arrays_of_params = arrays(OP, "parameters", [p.detach() for p in chain.params])
        self._dtype = self._arrays_of_params[0].dtype
        size, self._shapes, self._rows = sum(p.numel() for p in chain.params), (None, None), 0
        grads = empty((size,), self._dtype)
        self._grads = _split(grads, chain.params)
        params = address_list(chain.params)
        self._is_direct = params is not None
        if not self._is_direct:
            grads, params = empty((size,), self._dtype), empty((size,), self._dtype)
        work = empty((0,), self._dtype)
        self._net = Net(chain.table, chain.parameters, self._loss_rule.over(chain.sizes[-1], work), params, grads, work)

    def _read_optimizer(self) -> None:
        """Read the groups and the state of the optimizer, and make what the state lacks."""
        model, params = self._chain, self._chain.params
        self._updates = optimizer = OptimizerUpdates(self._optimizer, params)
        hooks = [*model.hooks, *GLOBAL_HOOKS, *step_hooks(self._optimizer)]
        self._snapshot = ObjectSnapshot([*model.views, *optimizer.views], model.attributes, hooks, params)
        updates = optimizer.updates
        self._trained = [p for update in updates for p in update.params]
        is_one = self._is_direct and len(updates) == 1 and len(self._trained) == len(params)
        self._whole = updates[0] if is_one else None
        self._rule = updates[0].rule._replace(clip_norm=self._clip_norm)

    def _arrays(self, x: Tensor, y: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """x (N, C) and the targets as arrays. Those like the last ones skip the full check."""
        try:
            xs, ys = x.numpy(), y.numpy()
        except (AttributeError, TypeError, RuntimeError):
            return self._checked_arrays(x, y)
        if not (
            xs.shape == self._shapes[0]
            and ys.shape == self._shapes[1]
            and xs.dtype is self._dtype
            and ys.dtype is self._target_dtype
            and xs.flags.carray
            and ys.flags.carray
        ):
            return self._checked_arrays(x, y)
        return xs.reshape(len(xs), -1) if self._chain.flattens else xs, ys

    def _checked_arrays(self, x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
        xs = array(OP, "x", x)
        is_float = isinstance(y, Tensor) and y.is_floating_point()
        ys = array(OP, "y", y) if is_float or not self._net.loss.by_row else integers(OP, "y", y)
        if x.requires_grad or y.requires_grad:
            raise ValueError(f"{OP}: x and y must not require gradients: those of parameters alone are computed")
        shapes, (n_in, *_, n_out) = (xs.shape, ys.shape), self._chain.sizes
        if self._chain.flattens and xs.ndim > 1 and xs.size:
            xs = xs.reshape(len(xs), -1)
        xs = check.array(OP, "x", xs, "(N, C)", (None, n_in), self._dtype, of_model=True)
        if not len(xs):
            raise ValueError(f"{OP}: x must have at least one row, got {xs.shape}")
        if (loss := self._net.loss).by_row:
            if not is_float and y.dtype is not torch.int64:
                raise TypeError(f"{OP}: class numbers y must be torch.int64, got {y.dtype}")
            ignored = types.NO_LABEL if is_float and loss.ignore_index < 0 else loss.ignore_index
            ys = checked_labels(OP, "y", ys, (len(xs), n_out), self._dtype, values=False, ignore_index=ignored)
        else:
            ys = check.contiguous(check.array(OP, "y", ys, "(N, K)", (len(xs), n_out), self._dtype, of_model=True))
        self._shapes, self._target_dtype = shapes, ys.dtype
        return check.contiguous(xs), ys

    def _gradients(self, x: np.ndarray, y: np.ndarray) -> int:
        """The loss, to the record, and the gradients of all parameters; returns a status."""
        if self._is_direct:
            return self._kernels.dense_chain_gradients(x, y, self._net, self._record[:1])
        # backends that know weights (C_in, C_out) alone, one after the other
        params, grads = (_split(flat, self._chain.params, True) for flat in (self._net.params, self._net.grads))
        for p, values in zip(self._arrays_of_params, params, strict=True):
            values.numpy()[...] = p
        status = self._kernels.dense_chain_gradients(x, y, self._net, self._record[:1])
        for grad, values in zip(self._grads, grads, strict=True):
            grad.copy_(values)
        return status

    def _update_groups(self) -> None:
        """Clip the gradients, and update the parameters of each group."""
        assert self._updates is not None
        if self._clip_norm < math.inf:
            trained = [g for p, g in zip(self._chain.params, self._grads, strict=True) if p.requires_grad]
            clip_gradients(trained, self._clip_norm, 2.0, False)
        for update in self._updates.updates:
            params = [self._arrays_of_params[i] for i in update.indices]
            grads = [self._grads[i].numpy() for i in update.indices]
            status = self._kernels.update_arrays(
                params, grads, update.rule, update.step_number + 1, None, updates=update.block.updates
            )
            update.block.count_update()
            if status == types.NONFINITE:
                update.run_by_pytorch(self._optimizer, [self._grads[i] for i in update.indices])


def _split(flat: np.ndarray, params: list[Tensor], turned: bool = False) -> list[Tensor]:
    """Views into a flat array of the shapes of parameters; turned: of weights that lie there as (C_in, C_out)."""
    parts = zip(torch.from_numpy(flat).split([p.numel() for p in params]), params, strict=True)
    return [part.view(p.shape[::-1]).t() if turned else part.view(p.shape) for part, p in parts]


@torch._disable_dynamo
def _outside_traces(step: TrainingStep, x: Tensor, y: Tensor) -> float:
    return step(x, y)
