"""Optimizer, the base class of the optimisers: settings, their checks, and the settings as kernels read them.

lr is a number or a schedule of fastgrad.schedule. weight_decay is an L2 term in the gradient. With decoupled, each update
subtracts lr weight_decay p from a parameter p, in place of that term (Loshchilov & Hutter 2019).
"""

from collections.abc import Sequence

import numpy as np

from fastgrad.core import check
from fastgrad.optim.group_settings import Groups, checked_groups
from fastgrad.schedule import Schedule, check_rate, rate_of


class Optimizer:
    """The base class of all optimisers, which are settings alone: the state is a Trainer's or an Updater's.

    Every optimiser has the settings `lr`, `weight_decay`, `decoupled` and `groups`. groups are settings of some
    parameters in place of the optimiser's: a dictionary of dictionaries by pattern. A pattern is compared with the names
    of a model's parameters as fg.save writes them, "0.w", "1.gamma": `*` is any text, `?` any one character, `[ab]` one
    of these. For an Updater the names are "0", "1", ..., the numbers of its arrays. The settings are:

    - `lr`, at least 0. With a schedule, the group's rate is the schedule's rate times lr / first, where first is the
      schedule's first rate after its warm-up (PyTorch's LambdaLR).
    - `weight_decay`, at least 0.
    - `frozen`, True or False: parameters that are frozen stay as they are, pruned and constrained or not, and so does
      their state. Their gradient is not in the norm that clip_norm limits, as with PyTorch's requires_grad = False.
      With lr = 0 the state is updated, and the gradient counts.

    Where several patterns match a name, each setting is that of the last one that has it. `frozen` may also match
    running statistics, "1.running_mean": that batch norm then normalises with its running statistics in training, as it
    does in evaluation, and updates neither. So {"1.*": {"frozen": True}} freezes all of a batch norm.

    Example:
        >>> isinstance(fg.optim.SGD(0.1), fg.optim.Optimizer)
        True
        >>> model = fg.nn.DenseChain([2, 3, 1], seed=0)
        >>> list(model.parameters())
        ['0.w', '0.b', '1.w', '1.b']
        >>> groups = {"*.b": {"weight_decay": 0.0}, "0.*": {"frozen": True}}
        >>> trainer = fg.Trainer(model, "mse", fg.optim.AdamW(groups=groups))
    """

    lr: float | Schedule
    weight_decay: float
    decoupled: bool
    groups: Groups | None
    code: int

    @property
    def state_rows(self) -> int:
        """The number of values of state for each parameter."""
        raise NotImplementedError

    @property
    def hyper(self) -> np.ndarray:
        """The settings as the kernels read them, without groups, float64 (7,); the first is the first update's rate."""
        raise NotImplementedError

    def rate(self, step: int, losses: Sequence[float] = ()) -> float:
        """The learning rate of one update.

        Args:
            step: The number of updates before this one, from 0.
            losses: The validation losses so far, which a schedule may look at.

        Returns:
            The rate.

        Raises:
            ValueError: The rate of the schedule is negative or not finite.
        """
        return rate_of(self.lr, step, losses)

    def _check(self, **numbers: float) -> None:
        """Raise for a setting that is no number from 0, or from 0 and below 1 where the name is that of a beta."""
        op = type(self).__name__
        # a copy of groups: the dictionaries are the caller's
        check.keep(self, lr=check_rate(op, "lr", self.lr), groups=checked_groups(op, self.groups))
        for name, value in {**numbers, "weight_decay": self.weight_decay}.items():
            check.number(op, name, value, below=1.0 if name.startswith(("betas", "alpha")) else np.inf)

    def _hyper(self, beta1: float, beta2: float, eps: float, form: bool) -> np.ndarray:
        rate = self.rate(0)
        return np.array([rate, beta1, beta2, eps, self.weight_decay, form, self.decoupled], np.float64)  # (7,)
