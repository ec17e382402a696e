"""scikit-learn: a step is MLPClassifier.partial_fit on one batch; Fit is its fit. It has neither clipping nor logits."""

import warnings

import numpy as np
from sklearn.neural_network import MLPClassifier
from sklearn.neural_network._stochastic_optimizers import AdamOptimizer, SGDOptimizer

from bench.peers import Runner, UnsupportedWorkload


def setup(threads):
    """NumPy's BLAS takes its number of threads from the environment."""


def build(net, x, y):
    """A fitted classifier with the first weights of `net`; labels that its data lack are classes all the same."""
    if net.clip_norm is not None:
        raise UnsupportedWorkload("no clipping")
    model = MLPClassifier(net.sizes[1:-1], activation=net.activation, solver=net.optimizer, alpha=0, momentum=0,
                          learning_rate_init=net.lr, batch_size=net.batch, nesterovs_momentum=False)  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.partial_fit(x, np.ravel(y).astype("i8"), classes=np.arange(max(2, net.sizes[-1])))
    return model


class Step(Runner):
    def __init__(self, net):
        self.net = net
        self.inputs = [(x, np.ravel(y).astype("i8")) for x, y in net.batches()]
        self.model = build(net, *self.inputs[0])

    def restart(self):
        model = self.model
        weights, biases = map(list, zip(*self.net.parameters(), strict=True))
        model.coefs_, model.intercepts_ = weights, biases
        if self.net.optimizer == "adam":
            model._optimizer = AdamOptimizer(weights + biases, self.net.lr)
        else:
            model._optimizer = SGDOptimizer(weights + biases, self.net.lr, momentum=0, nesterov=False)

    def call(self, x, y):
        self.model.partial_fit(x, y)
        return self.model.loss_


class Fit(Runner):
    def __init__(self, fit):
        self.fit, self.rows = fit, fit.rows()

    def call(self):
        with warnings.catch_warnings():
            # so few epochs do not converge
            warnings.simplefilter("ignore")
            return MLPClassifier(**self.fit.settings()).fit(*self.rows).loss_curve_


class Forward(Runner):
    def __init__(self, net):
        self.inputs = [(x,) for x, _ in net.batches()]
        model = build(net, *net.batches()[0])
        model.coefs_, model.intercepts_ = map(list, zip(*net.parameters(), strict=True))
        self.call = model.predict_proba
