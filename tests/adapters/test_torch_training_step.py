"""fgt.training_step beside PyTorch's own loop: parameters, losses and the optimizer's state; what may change between steps; refusals."""

import copy
import math
import threading

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch_steps import ADAM, ADAMW, OPTIMIZERS, SGD, Pair, Written, batches, network  # noqa: E402

import fastgrad as fg  # noqa: E402
import fastgrad.torch as fgt  # noqa: E402

LOSSES = {
    "cross_entropy": nn.CrossEntropyLoss(),
    "probabilities": F.cross_entropy,
    "binary": nn.BCEWithLogitsLoss(),
    "probability": nn.BCELoss(),
    "mse": F.mse_loss,
    "poisson": nn.PoissonNLLLoss(),
    "mae": nn.L1Loss(),
    "huber": nn.HuberLoss(delta=0.3),
    "huber function": F.huber_loss,
}
ACTIVATIONS = [
    nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(0.2), nn.Sigmoid(), nn.Tanh(), nn.ELU(0.7), nn.SELU(), nn.GELU(), nn.GELU("tanh"), nn.SiLU(),
    nn.Softmax(-1), nn.Softmax(1), nn.Identity(),
]  # fmt: skip


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


OPTIONS = {
    "weight": lambda w: nn.CrossEntropyLoss(w),
    "smoothing": lambda w: nn.CrossEntropyLoss(label_smoothing=0.1),
    "all": lambda w: nn.CrossEntropyLoss(w, ignore_index=2, label_smoothing=0.1),
    "-100": lambda w: nn.CrossEntropyLoss(),
    "probabilities": lambda w: nn.CrossEntropyLoss(w, label_smoothing=0.1),
    "binary": lambda w: nn.BCEWithLogitsLoss(pos_weight=w),
    "binary of one weight": lambda w: nn.BCEWithLogitsLoss(pos_weight=w[:1]),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_of_a_loss_is_pytorchs(in_force, name, dtype):
    """In one call, and with two groups, whose step has several."""
    kind = "probabilities" if name == "probabilities" else "binary" if "binary" in name else "cross_entropy"
    loss = OPTIONS[name](torch.tensor([0.5, 2, 1, 0], dtype=dtype))
    for groups in (list, lambda params: [{"params": p} for p in params]):
        pair = Pair(network(dtype=dtype), ADAM, {"lr": 0.01}, loss, 1.0, groups)
        for x, y in batches(10, kind, dtype):
            if name == "-100":
                y[::3] = -100
            pair.run([(x, y)])
        pair.check()


def test_options_are_those_of_the_beginning_and_fastgrads_losses_are_taken():
    weight = torch.tensor([0.5, 2, 1, 3], dtype=torch.float64)
    pair = Pair(network(), ADAM, {"lr": 0.01}, nn.CrossEntropyLoss(weight.clone(), label_smoothing=0.1))
    changed = nn.CrossEntropyLoss(weight, label_smoothing=0.1)
    for loss in (changed, fg.loss.CrossEntropy(weight.tolist(), -100, 0.1)):
        other = Pair(network(), ADAM, {"lr": 0.01}, pair.loss)
        other.step = fgt.training_step(other.models[0], loss, other.optimizers[0])
        with torch.no_grad():
            weight.zero_()
        other.run(batches(5))
        other.check()
        weight[:] = torch.tensor([0.5, 2, 1, 3])


def test_where_all_is_ignored_the_loss_is_0_and_nothing_moves():
    model = network()
    before = copy.deepcopy(model.state_dict())
    step = fgt.training_step(model, nn.CrossEntropyLoss(), SGD(model.parameters(), lr=0.1))
    x, y = next(iter(batches(1)))
    assert step(x, torch.full_like(y, -100)) == 0
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())
    with pytest.raises(ValueError, match=r"training_step: y must be in 0\.\.3, got -99 at index 0"):
        step(x, torch.full_like(y, -99))


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


def test_a_model_of_fastgrad_and_images_that_are_flattened(in_force):
    torch.manual_seed(0)
    pair = Pair(nn.Sequential(nn.Flatten(), fgt.MLP([12, 8, 3], "tanh")), *OPTIMIZERS["adam"])
    for rows in (5, 9, 5):
        x, y = torch.randn(rows, 3, 2, 2), torch.randint(0, 3, (rows,))
        # the last one is like the one before, which skips the full check
        pair.run([(x.to(memory_format=torch.channels_last), y), (x, y), (x, y)])
    pair.check()


def test_batches_of_any_size_and_layout():
    pair = Pair(network(), *OPTIMIZERS["adam"])
    for rows in (17, 1, 40, 3):
        (x, y), *_ = batches(1, rows=rows)
        odd = torch.cat([y, y])[::2]
        pair.run([(x, y), (x, odd), (x.t().contiguous().t(), y), (torch.cat([x, x])[::2], odd)])
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
    "evaluation": lambda model: model.eval(),
}


@pytest.mark.parametrize("change", CHANGES)
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
    for ours, theirs in zip(*(m.parameters() for m in pair.models), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_another_list_of_a_groups_parameters_is_seen(optimizer):
    pair = Pair(network(), *OPTIMIZERS[optimizer])
    pair.run(batches(3))
    for o in pair.optimizers:
        group = o.param_groups[0]
        group["params"] = group["params"][1:]
    pair.run(batches(3))
    for ours, theirs in zip(*(m.parameters() for m in pair.models), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


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


def last_apart(parameters):
    *others, last = parameters
    return [{"params": others, "lr": 0.1}, {"params": [last]}]


def test_an_update_that_overflows_leaves_other_groups_their_gradients(in_force):
    """PyTorch's optimizer makes the update of one group, and none from gradients that lie in the others."""
    pair = Pair(network(dtype=torch.float32), SGD, {"lr": 1e38}, loss=F.mse_loss, groups=last_apart)
    kept = torch.ones(9)
    pair.models[0][0].bias.grad = kept
    pair.run([(x, 1e3 * y) for x, y in batches(1, "mse", torch.float32)])
    assert pair.models[0][0].bias.grad is kept
    torch.testing.assert_close(*(m[0].bias for m in pair.models))


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
    for wrong in (y.clamp(max=1) - 1, y + 1, torch.full_like(y, -99)):
        with pytest.raises(ValueError, match=r"training_step: y must be in 0\.\.3, got"):
            pair.step(x, wrong)
    for name, value in pair.models[0].state_dict().items():
        assert torch.equal(value, before[name])
    pair.run([(x, y)])
    pair.check()
