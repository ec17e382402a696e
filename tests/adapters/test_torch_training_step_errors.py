"""What fgt.training_step refuses: data, models, losses, optimizers, and what is added to them later."""

import re

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch_steps import ADAM, OPTIMIZERS, RMSPROP, SGD, Pair, Written, batches, network  # noqa: E402

import fastgrad as fg  # noqa: E402
import fastgrad.torch as fgt  # noqa: E402

X, Y = torch.zeros(3, 6, dtype=torch.float64), torch.zeros(3, dtype=torch.int64)


WRONG_DATA = [
    (X.float(), Y, TypeError, "x must be float64 like the model, got float32"),
    (X.numpy(), Y, TypeError, "x must be a tensor, got ndarray"),
    (X, [0, 0, 0], TypeError, "y must be a tensor, got list"),
    (X[0], Y, ValueError, r"x must be \(N, C\) = \(_, 6\), got \(6,\)"),
    (X[:, :5], Y, ValueError, r"x must be \(N, C\) = \(_, 6\), got \(3, 5\)"),
    (X[:0], Y[:0], ValueError, "x must have at least one row"),
    (X.clone().requires_grad_(), Y, ValueError, "x and y must not require gradients"),
    (X.to_sparse(), Y, TypeError, "x must be dense"),
    (X.to("meta"), Y, TypeError, "x must be on the CPU, got meta"),
    (X, Y[:2], ValueError, r"y must be integers \(3,\)"),
    (X, Y.int(), TypeError, "class numbers y must be torch.int64, got torch.int32"),
    (X, torch.zeros(3, 4), TypeError, "y must be float64, got float32"),
    (X, torch.zeros(3, 5, dtype=torch.float64), ValueError, r"y must be .*\(3, 4\), got \(3, 5\)"),
]


@pytest.mark.parametrize(("x", "y", "error", "message"), WRONG_DATA, ids=[w[3] for w in WRONG_DATA])
def test_wrong_data_is_refused(x, y, error, message):
    pair = Pair(network(), *OPTIMIZERS["adam"])
    for _ in range(2):
        with pytest.raises(error, match=f"training_step: {message}"):
            pair.step(x, y)
        # a step that fails leaves no state
        assert len(pair.optimizers[0].state) == len(pair.optimizers[1].state)
        # the next ones have the shapes of the last ones
        pair.run(batches(1, rows=3))
    pair.check()


class Skips(Written):
    def forward(self, x):
        return self.last(self.body(self.first(x))) + x[:, :4]


class Freezes(nn.Sequential):
    """A context of autograd, which the calls of layers do not tell."""

    def __init__(self, context):
        super().__init__(nn.Linear(6, 6), nn.Linear(6, 6))
        self.context = context

    def forward(self, x):
        with self.context:
            x = self[0](x)
        return self[1](x)


class Branches(Written):
    def forward(self, x):
        return self.first(x) if x.sum() > 0 else self.last(x)


class Linear(nn.Linear):
    pass


def shared():
    layer = nn.Linear(6, 6)
    return nn.Sequential(layer, nn.ReLU(), layer)


def hooked():
    model = network()
    model[2].register_forward_hook(lambda *_: None)
    return model


def patched():
    model = network()
    model[2].forward = lambda x: x
    return model


MODELS = [
    (nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Conv2d(1, 1, 1)), "2: Conv2d is no layer of a chain"),
    (nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.Dropout(0.5))), r"1\.0: Dropout is no layer of a chain"),
    (nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)), "1: BatchNorm1d is no layer of a chain"),
    (nn.Sequential(nn.ReLU(), nn.Linear(6, 6)), r"0: ReLU comes before the first nn\.Linear"),
    (nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Tanh()), r"2: Tanh is a second activation behind one nn\.Linear"),
    (nn.Sequential(nn.Linear(6, 6), nn.LeakyReLU(-1.0)), "1: LeakyReLU with these settings is no activation of a chain"),
    (nn.Sequential(nn.Flatten(0), nn.Linear(6, 6)), "0: Flatten must have start_dim 1"),
    (nn.Sequential(nn.Linear(6, 5), nn.Linear(6, 6)), "1: takes 6 columns, gets 5"),
    (nn.Sequential(nn.ReLU()), r"0: ReLU comes before the first nn\.Linear"),
    (nn.Sequential(), r"\(the model\): Sequential has no nn\.Linear"),
    (nn.LSTM(6, 6), r"\(the model\): LSTM is no layer of a chain"),
    (nn.Sequential(nn.Linear(6, 6, dtype=torch.float16)), "0: Linear is patched, parametrised or no dense float32"),
    (nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)), r"\(the model\): "),
    (Skips(), r"\(the model\): the forward of Skips calls getitem"),
    (Branches(), r"\(the model\): the forward of Branches cannot be traced"),
    (Freezes(torch.no_grad()), r"\(the model\): the forward of Freezes cannot be traced \(it calls layers without gradients\)"),
    (Freezes(torch.autocast("cpu", torch.bfloat16)), r"\(the model\): the forward of Freezes cannot be traced \(it turns autocast"),
    (Linear(6, 6), r"\(the model\): the forward of Linear reads weight, which takes something else"),
    (shared(), r"2\.weight: the parameter is shared with 0\.weight"),
    (hooked(), "2: Linear has hooks"),
    (patched(), "2: the forward of Linear has been replaced"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "message"), MODELS, ids=[m[1] for m in MODELS])
def test_a_model_that_is_no_chain_is_refused_by_the_name_of_the_layer(model, message):
    optimizer = SGD([*model.parameters(), nn.Parameter(torch.zeros(1))])
    with pytest.raises(ValueError, match=f"training_step: {message}"):
        fgt.training_step(model, nn.MSELoss(), optimizer)


def hooked_loss():
    loss = nn.MSELoss()
    loss.register_forward_hook(lambda *_: None)
    return loss


ONES = torch.ones(4, dtype=torch.float64)
LOSSES_REFUSED = [
    (nn.SmoothL1Loss(), ValueError, r"loss must be one of nn\.CrossEntropyLoss, .*; got SmoothL1Loss"),
    (F.smooth_l1_loss, ValueError, "got smooth_l1_loss"),
    (lambda y, t: (y - t).square().mean(), ValueError, "got <lambda>"),
    (3, ValueError, "got int"),
    ("l1", ValueError, "loss must be one of cross_entropy, .*; got 'l1'"),
    (nn.MSELoss(reduction="sum"), ValueError, "reduction of MSELoss must be 'mean', got 'sum'"),
    (nn.CrossEntropyLoss(torch.ones(4)), TypeError, "weight of CrossEntropyLoss must be float64 like the model"),
    (nn.CrossEntropyLoss(ONES[:3]), ValueError, r"weight of CrossEntropyLoss must be \(C,\) = \(4,\), got \(3,\)"),
    (nn.CrossEntropyLoss(-ONES), ValueError, "weight of CrossEntropyLoss must be at least 0 and finite, got -1.0"),
    (nn.CrossEntropyLoss(label_smoothing=2.0), ValueError, "label_smoothing must be at least 0 and at most 1, got 2.0"),
    (nn.BCEWithLogitsLoss(ONES), ValueError, "weight of BCEWithLogitsLoss must be None"),
    (nn.BCEWithLogitsLoss(pos_weight=ONES[:3]), ValueError, "pos_weight of BCEWithLogitsLoss must be .*got .3,."),
    (nn.HuberLoss(delta=0.0), ValueError, "delta must be above 0"),
    (fg.loss.CrossEntropy([1.0, 2.0]), ValueError, "the weights of CrossEntropy must be .*got .2,."),
    (nn.BCELoss(), ValueError, "BCELoss needs a sigmoid as the last layer"),
    (hooked_loss(), ValueError, "MSELoss has hooks, which are not called"),
]


@pytest.mark.parametrize(("loss", "error", "message"), LOSSES_REFUSED, ids=[w[2] for w in LOSSES_REFUSED])
def test_losses_that_are_refused(loss, error, message):
    model = network()
    with pytest.raises(error, match=f"training_step: .*{message}"):
        fgt.training_step(model, loss, SGD(model.parameters()))


def test_logits_are_not_taken_twice():
    for loss, last, name in (
        (nn.CrossEntropyLoss(), nn.Softmax(1), "softmax"),
        (nn.BCEWithLogitsLoss(), nn.Sigmoid(), "sigmoid"),
    ):
        model = network(last=[last])
        with pytest.raises(ValueError, match=f"takes logits, and the model ends in {name}"):
            fgt.training_step(model, loss, SGD(model.parameters()))


class OwnSGD(SGD):
    pass


def with_hook(parameters):
    optimizer = SGD(parameters)
    optimizer.register_step_post_hook(lambda *_: None)
    return optimizer


OPTIMIZERS_REFUSED = [
    (lambda p: torch.optim.Adagrad(p), ValueError, r"optimizer must be one of SGD, Adam, .*got torch\.optim\.adagrad\.Adagrad"),
    (lambda p: OwnSGD(p), ValueError, "got .*OwnSGD"),
    (lambda p: fg.optim.Adam(), TypeError, r"optimizer must be one of torch\.optim, got Adam"),
    (lambda p: SGD(p, momentum=0.9, dampening=0.1), ValueError, r"dampening of optimizer\.param_groups\[0\] must be 0"),
    (lambda p: ADAM(p, maximize=True), ValueError, "maximize of .* must be False"),
    (lambda p: ADAM(p, differentiable=True), ValueError, "differentiable of .* must be False"),
    (lambda p: RMSPROP(p, centered=True), ValueError, "centered of .* must be False"),
    (with_hook, ValueError, "optimizer has hooks on its step"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "error", "message"), OPTIMIZERS_REFUSED, ids=[w[2] for w in OPTIMIZERS_REFUSED])
def test_optimizers_that_are_refused(make, error, message):
    model = network()
    with pytest.raises(error, match=f"training_step: .*{message}"):
        fgt.training_step(model, nn.CrossEntropyLoss(), make(model.parameters()))


def test_other_arguments_that_are_refused():
    model = network()
    with pytest.raises(TypeError, match=r"training_step: model must be a torch\.nn\.Module, got function"):
        fgt.training_step(network, "mse", SGD(model.parameters()))
    with pytest.raises(ValueError, match="training_step: clip_norm must be above 0"):
        fgt.training_step(model, "mse", SGD(model.parameters()), clip_norm=-1.0)
    step = fgt.training_step(model, "mse", SGD([torch.zeros(1, requires_grad=True)]))
    with pytest.raises(ValueError, match="optimizer has no parameter of the model that requires a gradient"):
        step(*next(batches(1, "mse")))


REFUSED_LATER = {
    "2: Linear has hooks": lambda model, _: model[2].register_forward_pre_hook(lambda *_: None),
    "2: the forward of Linear has been replaced": lambda model, _: setattr(model[2], "forward", lambda x: x),
    "5: Dropout is no layer of a chain": lambda model, _: model.append(nn.Dropout()),
    "2.weight: the parameter has hooks": lambda model, _: model[2].weight.register_hook(lambda g: g),
    "2.weight: the parameter has no values or is not contiguous": lambda model, _: setattr(
        model[2].weight, "data", model[2].weight.data.t().contiguous().t()
    ),
    "2.weight: the parameter is a negated view": lambda model, _: setattr(
        model[2].weight, "data", torch._neg_view(model[2].weight.data.clone())
    ),
    "optimizer has hooks on its step": lambda _, optimizer: optimizer.register_step_pre_hook(lambda *_: None),
    "maximize of optimizer.param_groups[0] must be False": lambda _, optimizer: optimizer.param_groups[0].update(maximize=True),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED_LATER)
def test_what_is_added_later_is_refused_then(message):
    pair = Pair(network(), *OPTIMIZERS["adam"])
    pair.run(batches(2))
    REFUSED_LATER[message](pair.models[0], pair.optimizers[0])
    for _ in range(2):
        with pytest.raises(ValueError, match=re.escape(f"training_step: {message}")):
            pair.step(*next(batches(1)))


def test_hooks_on_all_modules_are_refused():
    pair = Pair(network(), *OPTIMIZERS["adam"])
    pair.run(batches(2))
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        with pytest.raises(ValueError, match="training_step: there are hooks on all modules"):
            pair.step(*next(batches(1)))
    finally:
        handle.remove()
    pair.run(batches(2))
    pair.check()
