"""fgt.training_step beside PyTorch's own loop: parameters, losses and the optimizer's state; what may change between steps; refusals."""

import copy
import math
import re
import threading

import numpy as np
import pytest
from tolerances import relative

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import fastgrad as fg  # noqa: E402
import fastgrad.torch as fgt  # noqa: E402

SGD, ADAM, ADAMW, RMSPROP = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop
OPTIMIZERS = {
    "sgd": (SGD, {"lr": 0.1}),
    "sgd, decay": (SGD, {"lr": 0.1, "weight_decay": 0.01}),
    "momentum": (SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}),
    "nesterov": (SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    "adam": (ADAM, {"lr": 0.01}),
    "adam, decay": (ADAM, {"lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.1, "fused": True}),
    "amsgrad": (ADAM, {"lr": 0.01, "amsgrad": True}),
    "adamw": (ADAMW, {"lr": 0.01, "weight_decay": 0.2, "foreach": True}),
    "rmsprop": (RMSPROP, {"lr": 1e-3, "alpha": 0.9, "weight_decay": 0.01}),
    "rmsprop, momentum": (RMSPROP, {"lr": 1e-3, "momentum": 0.8}),
}
LOSSES = {
    "cross_entropy": nn.CrossEntropyLoss(),
    "probabilities": F.cross_entropy,
    "binary": nn.BCEWithLogitsLoss(),
    "probability": nn.BCELoss(),
    "mse": F.mse_loss,
    "poisson": nn.PoissonNLLLoss(),
}
ACTIVATIONS = [
    nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(0.2), nn.Sigmoid(), nn.Tanh(), nn.ELU(0.7), nn.SELU(), nn.GELU(), nn.GELU("tanh"), nn.SiLU(),
    nn.Softmax(-1), nn.Softmax(1), nn.Identity(),
]  # fmt: skip


def network(activation=None, last=(), dtype=torch.float64, bias=True):
    torch.manual_seed(0)
    layers = nn.Linear(6, 9), activation or nn.Tanh(), nn.Linear(9, 7, bias), copy.deepcopy(activation or nn.ReLU())
    return nn.Sequential(*layers, nn.Linear(7, 4), *last).to(dtype)


def batches(count, loss="cross_entropy", dtype=torch.float64, rows=17):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        x = torch.randn(rows, 6, dtype=dtype, generator=generator)
        y = torch.rand(rows, 4, dtype=dtype, generator=generator)
        if loss == "cross_entropy":
            y = torch.randint(0, 4, (rows,), generator=generator)
        yield x, y.softmax(1) if loss == "probabilities" else y


class Pair:
    """A model and its copy, each with an optimizer: one for the step, one for PyTorch's loop."""

    def __init__(self, model, kind, options, loss=None, clip_norm=None, groups=list):
        self.loss, self.clip_norm = loss or nn.CrossEntropyLoss(), clip_norm
        self.models = model, copy.deepcopy(model)
        self.optimizers = [kind(groups(m.parameters()), **options) for m in self.models]
        own = {fgt.Adam: ADAM, fgt.AdamW: ADAMW}.get(kind, kind)
        self.optimizers[1] = own(groups(self.models[1].parameters()), **options)
        self.step = fgt.training_step(model, self.loss, self.optimizers[0], clip_norm)
        self.losses = [], []

    def pytorch(self, x, y, which=1):
        model, optimizer = self.models[which], self.optimizers[which]
        optimizer.zero_grad()
        loss = self.loss(model(x), y)
        loss.backward()
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), self.clip_norm)
        optimizer.step()
        return loss.item()

    def run(self, data, between=lambda: None):
        for x, y in data:
            self.losses[0].append(self.step(x, y))
            self.losses[1].append(self.pytorch(x, y))
            between()

    def check(self):
        ours, theirs = (list(m.parameters()) for m in self.models)
        rel = relative("100_steps", ours[0].detach().numpy().dtype)
        close = {"rtol": rel, "atol": rel, "equal_nan": True}
        np.testing.assert_allclose(*self.losses, **close)
        for p, q in zip(ours, theirs, strict=True):
            torch.testing.assert_close(p, q, **close)
        states = [o.state_dict() for o in self.optimizers]
        assert [g["params"] for g in states[0]["param_groups"]] == [g["params"] for g in states[1]["param_groups"]]
        assert states[0]["state"].keys() == states[1]["state"].keys()
        for key, entry in states[1]["state"].items():
            assert states[0]["state"][key].keys() == entry.keys()
            for name, value in entry.items():
                torch.testing.assert_close(states[0]["state"][key][name], value, **close)


@pytest.mark.parametrize(("clip_norm", "dtype"), [(None, torch.float32), (0.3, torch.float64)])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_is_pytorchs(in_force, optimizer, clip_norm, dtype):
    kind, options = OPTIMIZERS[optimizer]
    pair = Pair(network(dtype=dtype), kind, options, clip_norm=clip_norm)
    pair.run(batches(20, dtype=dtype))
    pair.check()


@pytest.mark.parametrize("kind", [fgt.Adam, fgt.AdamW])
def test_fastgrads_optimizers_take_turns_with_the_step(kind):
    pair = Pair(network(), kind, {"lr": 0.02, "weight_decay": 0.1, "amsgrad": True})
    pair.run(batches(4))
    for x, y in batches(3, rows=5):
        pair.losses[0].append(pair.pytorch(x, y, 0))
        pair.losses[1].append(pair.pytorch(x, y))
    pair.run(batches(4))
    pair.check()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_is_pytorchs(loss, dtype):
    pair = Pair(
        network(last=[nn.Sigmoid()] * (loss == "probability"), dtype=dtype), ADAM, {"lr": 0.01}, LOSSES[loss], 1.0
    )
    pair.run(batches(20, loss, dtype))
    pair.check()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_every_activation_is_pytorchs(activation, dtype):
    pair = Pair(network(activation, [copy.deepcopy(activation)], dtype, bias=False), SGD, {"lr": 0.1}, F.mse_loss)
    pair.run(batches(20, "mse", dtype))
    pair.check()


def test_losses_by_name_are_the_trainers():
    """From the logits where the model ends in the loss's own activation."""
    for name, last, loss in (
        ("cross_entropy", nn.Softmax(-1), nn.CrossEntropyLoss()),
        ("binary_cross_entropy", nn.Sigmoid(), nn.BCEWithLogitsLoss()),
    ):
        pair = Pair(network(), ADAM, {"lr": 0.01}, loss)
        pair.models[0].append(last)
        pair.step = fgt.training_step(pair.models[0], name, pair.optimizers[0])
        pair.run(batches(5, "cross_entropy" if name == "cross_entropy" else "binary"))
        pair.check()


@pytest.mark.parametrize("kind", [SGD, ADAMW])
def test_schedulers_change_every_setting(kind):
    """OneCycleLR changes the momentum too, or the betas."""
    options = {"lr": 0.1, "momentum": 0.9} if kind is SGD else {"lr": 0.1}
    pair = Pair(network(), kind, options)
    schedulers = [torch.optim.lr_scheduler.OneCycleLR(o, 0.05, total_steps=20) for o in pair.optimizers]
    pair.run(batches(20), lambda: [s.step() for s in schedulers])
    pair.check()


def test_rates_may_be_tensors():
    pair = Pair(network(), ADAM, {"lr": torch.tensor(0.01, dtype=torch.float64)})
    pair.run(batches(4), lambda: [o.param_groups[0]["lr"].mul_(0.5) for o in pair.optimizers])
    pair.check()


@pytest.mark.parametrize("optimizer", ["momentum", "adam", "amsgrad", "rmsprop, momentum"])
def test_a_checkpoint_goes_on_in_pytorch_and_back(optimizer, tmp_path):
    kind, options = OPTIMIZERS[optimizer]
    pair = Pair(network(), kind, options, clip_norm=0.5)
    pair.run(batches(7))
    torch.save((pair.models[0].state_dict(), pair.optimizers[0].state_dict()), tmp_path / "checkpoint")
    # numbers and tensors alone
    weights, state = torch.load(tmp_path / "checkpoint", weights_only=True)
    # out, into a loop of PyTorch's
    fresh = Pair(network(), kind, options, clip_norm=0.5)
    for model, optimizer_ in zip(fresh.models, fresh.optimizers, strict=True):
        model.load_state_dict(weights)
        optimizer_.load_state_dict(copy.deepcopy(state))
    fresh.run(batches(7, rows=9))
    pair.run(batches(7, rows=9))
    fresh.check()
    pair.check()
    torch.testing.assert_close(fresh.models[1].state_dict(), pair.models[0].state_dict(), rtol=1e-9, atol=1e-9)
    # and back into a step that has run: its state is replaced
    pair.models[0].load_state_dict(weights)
    pair.optimizers[0].load_state_dict(state)
    for x, y in batches(7, rows=9):
        pair.step(x, y)
    torch.testing.assert_close(fresh.models[1].state_dict(), pair.models[0].state_dict(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "rmsprop"])
def test_steps_and_pytorchs_loop_take_turns(optimizer):
    pair = Pair(network(), *OPTIMIZERS[optimizer])
    pair.run(batches(5))
    for x, y in batches(5, rows=8):
        pair.losses[0].append(pair.pytorch(x, y, 0))
        pair.losses[1].append(pair.pytorch(x, y))
    pair.run(batches(5))
    pair.check()


def test_gradients_stay_and_autograd_is_told_of_the_writes():
    pair = Pair(network(), *OPTIMIZERS["adam"])
    model = pair.models[0]
    kept = torch.ones(9, dtype=torch.float64)
    model[0].bias.grad = kept
    (x, y), *_ = batches(1)
    y_before, version = model(x).sum(), model[0].weight._version
    assert isinstance(pair.step(x, y), float)
    assert model[0].bias.grad is kept
    assert kept.eq(1).all()
    assert model[0].weight.grad is None
    assert model[0].weight._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y_before.backward()


@pytest.mark.parametrize("clip_norm", [None, 0.3])
@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_groups_have_their_own_settings(in_force, optimizer, clip_norm):
    def groups(parameters):
        parameters = list(parameters)
        return [
            {"params": parameters[4:] + parameters[:1], "lr": 0.03, "weight_decay": 0.1},
            {"params": parameters[1:4]},
        ]

    pair = Pair(network(), *OPTIMIZERS[optimizer], clip_norm=clip_norm, groups=groups)
    pair.run(batches(8))
    pair.check()


@pytest.mark.parametrize("clip_norm", [None, 0.3])
def test_frozen_parameters_stay_and_begin_when_they_are_thawed(in_force, clip_norm):
    pair = Pair(network(), *OPTIMIZERS["adam"], clip_norm=clip_norm)
    before = pair.models[0][0].weight.clone()
    for model in pair.models:
        model[0].requires_grad_(False)
    pair.run(batches(5))
    assert torch.equal(pair.models[0][0].weight, before)
    pair.check()
    # their steps are fewer from now on
    for model in pair.models:
        model[0].requires_grad_(True)
    pair.run(batches(5))
    pair.check()
    assert pair.optimizers[0].state_dict()["state"][0]["step"] == 5


def test_parameters_that_the_optimizer_does_not_have_stay(in_force):
    pair = Pair(network(), *OPTIMIZERS["adam"], groups=lambda parameters: list(parameters)[2:])
    pair.run(batches(5))
    pair.check()
    for o, model in zip(pair.optimizers, pair.models, strict=True):
        o.add_param_group({"params": list(model.parameters())[:2]})
        model.zero_grad()
    pair.run(batches(5))
    pair.check()


class Written(nn.Module):
    """A forward as people write it."""

    def __init__(self):
        super().__init__()
        self.first, self.body = nn.Linear(6, 9), nn.Sequential(nn.Linear(9, 7), nn.GELU())
        self.last, self.slope = nn.Linear(7, 4), 0.1

    def forward(self, x):
        x = torch.flatten(x, 1)
        x = F.leaky_relu(self.first(x), self.slope)
        return self.last(self.body(x)).tanh()


def test_a_forward_is_traced_and_traced_again_when_an_attribute_changes():
    torch.manual_seed(0)
    pair = Pair(Written().double(), *OPTIMIZERS["adam"], loss=F.mse_loss)
    pair.run(batches(5, "mse"))
    for model in pair.models:
        model.slope = 0.5
    pair.run(batches(5, "mse"))
    for model in pair.models:
        model.body[1] = nn.ReLU()
    pair.run(batches(5, "mse"))
    pair.check()


@pytest.mark.parametrize(
    "make", [lambda m: fgt.accelerate(m) and m, lambda m: nn.Sequential(nn.Sequential(m[0], m[1]), *m[2:])]
)
def test_accelerated_and_nested_models(make):
    pair = Pair(make(network()), *OPTIMIZERS["adam"])
    pair.run(batches(5))
    pair.check()


def test_a_model_of_fastgrad_and_images_that_are_flattened():
    torch.manual_seed(0)
    pair = Pair(nn.Sequential(nn.Flatten(), fgt.MLP([12, 8, 3], "tanh")), *OPTIMIZERS["adam"])
    for rows in (5, 9, 5):
        x = torch.randn(rows, 3, 2, 2).to(memory_format=torch.channels_last)
        pair.run([(x, torch.randint(0, 3, (rows,)))])
    pair.check()


def test_batches_of_any_size_and_layout():
    pair = Pair(network(), *OPTIMIZERS["adam"])
    for rows in (17, 1, 40, 3):
        (x, y), *_ = batches(1, rows=rows)
        pair.run([(x, y), (x.t().contiguous().t(), y), (torch.cat([x, x])[::2], torch.cat([y, y])[::2])])
    pair.check()


def change_layers(model):
    model[1] = nn.SiLU()
    model[2] = nn.Linear(9, 7).double()
    model[2].load_state_dict({"weight": torch.full((7, 9), 0.1), "bias": torch.zeros(7)})


CHANGES = {
    "layers": change_layers,
    "a slope": lambda model: setattr(model[3], "negative_slope", 0.4),
    "values": lambda model: model.load_state_dict({k: v / 2 for k, v in model.state_dict().items()}),
    "data": lambda model: [setattr(p, "data", p.data.clone()) for p in model.parameters()],
    "data turned in place": lambda model: setattr(model[2].weight, "data", model[2].weight.data.t().contiguous().t()),
    "evaluation": lambda model: model.eval(),
}


@pytest.mark.parametrize("change", [c for c in CHANGES if c != "data turned in place"])
def test_changes_between_steps_are_seen(change):
    pair = Pair(network(nn.LeakyReLU(0.1)), *OPTIMIZERS["momentum"])
    for _ in range(2):
        pair.run(batches(3))
        for model in pair.models:
            CHANGES[change](model)
        if change == "layers":
            for o, model in zip(pair.optimizers, pair.models, strict=True):
                o.param_groups[0]["params"][:] = model.parameters()
    pair.run(batches(3))
    np.testing.assert_allclose(*pair.losses, rtol=1e-10)


def test_another_dtype_needs_other_data():
    pair = Pair(network(), *OPTIMIZERS["adam"])
    pair.run(batches(2))
    for model in pair.models:
        model.float()
    with pytest.raises(TypeError, match="training_step: x must be float32 like the model, got float64"):
        pair.step(*next(batches(1)))
    # PyTorch's own states stay double
    step = fgt.training_step(pair.models[0], pair.loss, ADAM(pair.models[0].parameters()))
    assert math.isfinite(step(*next(batches(1, dtype=torch.float32))))


def test_a_change_of_the_backend_between_steps():
    pair = Pair(network(), *OPTIMIZERS["adam"], clip_norm=0.2)
    for name in ("cpu", "numpy", "cpu"):
        with fg.use_backend(name):
            pair.run(batches(3))
    pair.check()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("clip_norm", [None, 0.3])
@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_gradients_that_are_not_finite_do_as_in_pytorch(in_force, optimizer, clip_norm, bad):
    pair = Pair(network(nn.ReLU()), *OPTIMIZERS[optimizer], loss=F.mse_loss, clip_norm=clip_norm)
    pair.run(batches(3, "mse"))
    (x, y), *_ = batches(1, "mse")
    y[3, 1] = bad
    pair.run([(x, y)])
    pair.run(batches(2, "mse"))
    pair.check()
    assert any(not p.isfinite().all() for p in pair.models[0].parameters())


def test_an_update_that_overflows_does_as_in_pytorch(in_force):
    """Kernels refuse it: PyTorch's optimizer makes it."""
    pair = Pair(network(dtype=torch.float32), SGD, {"lr": 1e38}, loss=F.mse_loss)
    data = [(x, 1e3 * y) for x, y in batches(1, "mse", torch.float32)]
    pair.run(data)
    ours, theirs = (torch.cat([p.detach().ravel() for p in m.parameters()]) for m in pair.models)
    assert torch.equal(ours.isfinite(), theirs.isfinite())
    assert not ours.isfinite().all()
    assert all(p.grad is None for p in pair.models[0].parameters())


def test_steps_under_no_grad_inference_mode_and_compile():
    pair = Pair(network(), *OPTIMIZERS["adam"])
    with torch.no_grad():
        pair.losses[0].append(pair.step(*next(batches(1))))
    pair.losses[1].append(pair.pytorch(*next(batches(1))))
    with torch.inference_mode():
        pair.losses[0].append(pair.step(*next(batches(1))))
    pair.losses[1].append(pair.pytorch(*next(batches(1))))
    pair.losses[0].append(torch.compile(pair.step, backend="eager")(*next(batches(1))))
    pair.losses[1].append(pair.pytorch(*next(batches(1))))
    pair.check()


def test_threads_take_turns():
    pair = Pair(network(), *OPTIMIZERS["adam"])
    x, y = next(batches(1))
    threads = [threading.Thread(target=lambda: [pair.step(x, y) for _ in range(50)]) for _ in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for _ in range(100):
        pair.pytorch(x, y)
    pair.check()


def test_a_step_that_fails_changes_nothing(in_force):
    pair = Pair(network(), *OPTIMIZERS["adam"])
    x, y = next(batches(1))
    before = copy.deepcopy(pair.models[0].state_dict())
    for wrong in (y.clamp(max=1) - 1, y + 1, torch.full_like(y, -100)):
        with pytest.raises(ValueError, match=r"training_step: y must be in 0\.\.3, got"):
            pair.step(x, wrong)
    for name, value in pair.models[0].state_dict().items():
        assert torch.equal(value, before[name])
    pair.run([(x, y)])
    pair.check()


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
        pair.run(batches(1))
    pair.check()


class Skips(Written):
    def forward(self, x):
        return self.last(self.body(self.first(x))) + x[:, :4]


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


LOSSES_REFUSED = [
    (nn.L1Loss(), ValueError, r"loss must be one of nn\.CrossEntropyLoss, .*; got L1Loss"),
    (F.l1_loss, ValueError, "got l1_loss"),
    (lambda y, t: (y - t).square().mean(), ValueError, "got <lambda>"),
    (3, ValueError, "got int"),
    ("l1", ValueError, "loss must be one of cross_entropy, .*; got 'l1'"),
    (nn.MSELoss(reduction="sum"), ValueError, "reduction of MSELoss must be 'mean', got 'sum'"),
    (nn.CrossEntropyLoss(torch.ones(4)), ValueError, "weight of CrossEntropyLoss must be None"),
    (nn.CrossEntropyLoss(label_smoothing=0.1), ValueError, "label_smoothing of CrossEntropyLoss must be 0.0, got 0.1"),
    (nn.BCELoss(), ValueError, "BCELoss needs a sigmoid as the last layer"),
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
    "2.weight: the parameter has no values or is not contiguous": lambda model, _: CHANGES["data turned in place"](model),
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
