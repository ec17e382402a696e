"""Descent: the state of the solvers sgd and adam, kept from epoch to epoch and from one partial_fit to the next."""

from typing import Any

import numpy as np
from sklearn.neural_network._stochastic_optimizers import AdamOptimizer, SGDOptimizer

from fastgrad.optim import SGD, Adam
from fastgrad.sklearn.problem import Problem


class Descent:
    """Moments and the number of updates. `schedule`, an optimiser of scikit-learn, has the learning rate and decides when to stop."""

    def __init__(self, estimator: Any, problem: Problem) -> None:
        e = estimator
        if e.solver == "sgd":
            settings = e.learning_rate_init, e.learning_rate, e.momentum, e.nesterovs_momentum, e.power_t
            self.schedule: Any = SGDOptimizer([], *settings)
        else:
            self.schedule = AdamOptimizer([], e.learning_rate_init, e.beta_1, e.beta_2, e.epsilon)
        # the number of updates, to which the kernels add
        self.count, self.rate = np.zeros(1, np.int64), self.schedule.learning_rate
        self.optimizer = self._optimizer(problem)
        size = self.optimizer.state_rows, problem.chain.params.size
        self.state = np.zeros(size, problem.chain.dtype)  # (S, P)

    def epoch(self, problem: Problem, order: np.ndarray, batch_size: int) -> tuple[int, int, np.ndarray]:
        """See Problem.epoch."""
        chain = problem.chain
        if self.state.shape[1] != chain.params.size or self.state.dtype != chain.dtype:
            raise ValueError(
                f"{type(problem.estimator).__name__}: coefs_ and intercepts_ must be {self.state.shape[1]} values of {self.state.dtype}, "
                f"as in the partial_fit before, got {chain.params.size} of {chain.dtype}"
            )
        rate = self.schedule.learning_rate
        if rate != self.rate:
            # scikit-learn's velocity has the rates in it that it was made with
            self.state *= self.rate / rate
            self.rate, self.optimizer = rate, self._optimizer(problem)
        return problem.epoch(order, batch_size, self.optimizer, self.state, self.count)

    def _optimizer(self, problem: Problem) -> SGD | Adam:
        """fastgrad's optimiser. Its gradients are scikit-learn's, divided by gradient_factor.

        sgd makes up for the factor by its rate. Adam's update does not depend on it, except by eps, which is divided too.
        """
        s, factor = self.schedule, problem.link.gradient_factor
        if isinstance(s, SGDOptimizer):
            return SGD(s.learning_rate * factor, s.momentum, bool(s.nesterov and s.momentum))
        return Adam(s.learning_rate_init, (s.beta_1, s.beta_2), s.epsilon / factor, eps_hat=True)
