"""Groups of an optimiser by patterns of names, in Trainer and Updater, against PyTorch's param_groups; frozen batch norms; resumed fits."""

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
from arrays import bits
from error_messages import refuses

import fastgrad as fg
from fastgrad.nn import BatchNorm, Dense, DenseChain, Dropout, Residual, Sequential
from fastgrad.nn.context import activation_name
from fastgrad.optim import SGD, Adagrad, Adam, AdamW, RMSprop
from fastgrad.schedule import Exponential, Rates, Schedule, Steps, WarmUp

pytestmark = pytest.mark.cuda

RNG = np.random.default_rng(2)
X, Y = RNG.standard_normal((40, 4)), RNG.integers(0, 3, 40)
GROUPS = {"*.b": {"weight_decay": 0.0}, "0.*": {"lr": 0.003}, "3.w": {"frozen": True}, "0.b": {"lr": 0.02}}


def chain(dtype="float64"):
    layers = [Dense(4, 8, "tanh", dtype=dtype), Dense(8, 8, "relu", dtype=dtype), Dense(8, 8, dtype=dtype)]
    return Sequential(*layers, Dense(8, 3, dtype=dtype), seed=1)


def layers(dtype="float64", dropout=0.0):
    middle = [BatchNorm(8, "relu", dtype=dtype), Dropout(dropout)]
    return Sequential(Dense(4, 8, dtype=dtype), *middle, Dense(8, 3, dtype=dtype), seed=1)


def in_pytorch(torch, model):
    """The model in PyTorch, and its parameters by our names."""
    modules, named = [], {}
    for i, layer in enumerate(model.layers):
        if isinstance(layer, Dense):
            module = torch.nn.Linear(layer.n_in, layer.n_out, dtype=torch.float64)
            module.weight.data, module.bias.data = torch.tensor(layer.w.T.copy()), torch.tensor(layer.b.copy())
            named |= {f"{i}.w": module.weight, f"{i}.b": module.bias}
        elif isinstance(layer, BatchNorm):
            module = torch.nn.BatchNorm1d(layer.n_in, dtype=torch.float64)
            named |= {f"{i}.gamma": module.weight, f"{i}.beta": module.bias}
        else:
            module = torch.nn.Identity()
        name = activation_name(layer.output)
        activations = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU, "identity": torch.nn.Identity}
        modules += [module, activations[name]()]
    return torch.nn.Sequential(*modules), named


def torch_step(torch, optimizer, named, lr):
    """PyTorch's optimizer with the groups of GROUPS, written out."""
    groups = []
    for name, p in named.items():
        own = {"lr": lr, "weight_decay": 0.0 if name.endswith(".b") else optimizer.weight_decay}
        if name == "3.w":
            p.requires_grad_(False)
            continue
        if name.startswith("0."):
            own["lr"] = 0.02 if name == "0.b" else 0.003
        groups.append({"params": [p], **own})
    match optimizer:
        case AdamW():
            return torch.optim.AdamW(groups, lr, optimizer.betas, optimizer.eps)
        case Adam():
            return torch.optim.Adam(groups, lr, optimizer.betas, optimizer.eps, amsgrad=optimizer.amsgrad)
        case SGD():
            return torch.optim.SGD(groups, lr, optimizer.momentum, nesterov=optimizer.nesterov)
        case Adagrad():
            return torch.optim.Adagrad(groups, lr, eps=optimizer.eps)
        case RMSprop():
            return torch.optim.RMSprop(groups, lr, optimizer.alpha, optimizer.eps, momentum=optimizer.momentum)


LR = Exponential(0.05, 0.9)
# without eps the gradient of a bias before a batch norm, 0 but for rounding, would make steps
OPTIMIZERS = {
    "sgd": SGD(LR, weight_decay=0.1, groups=GROUPS),
    "momentum": SGD(LR, 0.9, weight_decay=0.1, groups=GROUPS),
    "nesterov": SGD(LR, 0.9, True, weight_decay=0.1, groups=GROUPS),
    "adam": Adam(LR, eps=1e-3, weight_decay=0.1, groups=GROUPS),
    "adamw": AdamW(LR, eps=1e-3, weight_decay=0.1, groups=GROUPS),
    "adagrad": Adagrad(LR, 1e-3, weight_decay=0.1, groups=GROUPS),
    "rmsprop": RMSprop(LR, eps=1e-3, weight_decay=0.1, momentum=0.5, groups=GROUPS),
}


@pytest.mark.parametrize("fits", [False, True])
@pytest.mark.parametrize("make", [chain, layers])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_and_fits_match_param_groups_of_pytorch(in_force, name, make, fits, torch):
    """With a schedule, and with clipping by a norm without what is frozen."""
    model, optimizer = make(), OPTIMIZERS[name]
    theirs, named = in_pytorch(torch, model)
    step = torch_step(torch, optimizer, named, LR.lr)
    schedule = torch.optim.lr_scheduler.ExponentialLR(step, LR.factor)
    trainer = fg.Trainer(model, optimizer=optimizer, clip_norm=0.3)
    state, names = trainer.state.copy(), list(model.parameters())
    losses = []
    for _ in range(2):
        for first in range(0, 40, 8):
            step.zero_grad()
            loss = torch.nn.functional.cross_entropy(
                theirs(torch.tensor(X[first : first + 8])), torch.tensor(Y[first : first + 8])
            )
            loss.backward()
            losses.append(float(loss.detach()))
            torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.3)
            step.step()
            schedule.step()
    if fits:
        history = trainer.fit(X, Y, epochs=2, batch_size=8, shuffle=False)
        np.testing.assert_allclose(history.loss, np.reshape(losses, (2, 5)).mean(axis=1), rtol=1e-9)
        # the rate of the optimiser itself
        assert history.learning_rate == [LR.rate(step, []) for step in (4, 9)]
    else:
        for i in range(10):
            first = 8 * i % 40
            assert float(trainer.step(X[first : first + 8], Y[first : first + 8])) == pytest.approx(losses[i], rel=1e-9)
    for parameter, p in named.items():
        ours = model.parameters()[parameter]
        np.testing.assert_allclose(ours.T, p.detach().numpy(), rtol=1e-8, atol=1e-10, err_msg=parameter)
    assert bits(model.parameters()["3.w"]) == bits(make().parameters()["3.w"])
    sizes = [a.size for a in model.parameters().values()]
    at = sum(sizes[: names.index("3.w")])
    frozen = slice(at, at + sizes[names.index("3.w")])
    assert bits(trainer.state[:, frozen]) == bits(state[:, frozen])


@pytest.mark.parametrize("make", [chain, layers])
def test_a_schedule_of_one_rate_has_the_bits_of_that_rate(in_force, make):
    """A group's rate is what PyTorch's LambdaLR makes of it."""
    one, other = (fg.Trainer(make(), optimizer=Adam(lr, groups={"0.*": {"lr": 0.5}})) for lr in (0.25, Steps(0.25, 99)))
    for trainer in (one, other):
        trainer.fit(X, Y, batch_size=16, epochs=2)
        trainer.step(X, Y)
    assert bits(one.model.params) == bits(other.model.params)


def test_a_group_follows_a_warm_up_to_its_own_rate(numpy_backend):
    """So its rate is half of the optimiser's at every update."""
    rates = WarmUp(4, Exponential(0.2, 0.5))
    trainer = fg.Trainer(chain(), optimizer=SGD(rates, groups={"0.*": {"lr": 0.1}}))
    for _ in range(6):
        expected = rates.rate(trainer.step_count, [])
        trainer.step(X, Y)
        np.testing.assert_allclose(trainer._rule.hyper[:, 0], [expected, expected / 2], rtol=1e-12)


def test_a_rate_of_0_leaves_parameters_and_moves_their_state(in_force):
    model = chain()
    before = {name: bits(a) for name, a in model.parameters().items()}
    trainer = fg.Trainer(model, optimizer=AdamW(0.0, groups={"1.*": {"lr": 0.1}}))
    trainer.step(X, Y)
    after = {name: bits(a) for name, a in model.parameters().items()}
    assert [name for name in before if before[name] != after[name]] == ["1.w", "1.b"]
    assert trainer.state.all(axis=0).mean() > 0.8


def test_each_setting_is_that_of_the_last_pattern_that_has_it(numpy_backend):
    groups = {
        "*": {"lr": 0.5, "weight_decay": 0.25},
        "?.b": {"weight_decay": 0.0},
        "[01].*": {"lr": 0.1, "frozen": True},
    }
    trainer = fg.Trainer(chain(), optimizer=AdamW(1.0, groups=groups | {"1.*": {"frozen": False}}))
    rule = trainer._rule
    settings = {
        name: None if group == -1 else rule.hyper[group, [0, 4]].tolist()
        for name, group in zip(trainer.model.parameters(), rule.groups.tolist(), strict=True)
    }
    assert settings == {
        "0.w": None, "0.b": None, "1.w": [0.1, 0.25], "1.b": [0.1, 0.0], "2.w": [0.5, 0.25], "2.b": [0.5, 0.0],
        "3.w": [0.5, 0.25], "3.b": [0.5, 0.0],
    }  # fmt: skip
    assert rule.hyper[0, [0, 4]].tolist() == [1.0, 0.01]


FROZEN = {"all": {"1.*": {"frozen": True}}, "parameters": {"1.gamma": {"frozen": True}, "1.beta": {"frozen": True}}}


@pytest.mark.parametrize("fits", [False, True])
@pytest.mark.parametrize("what", FROZEN)
def test_a_batch_norm_is_frozen_as_in_pytorch(in_force, what, fits, torch):
    """All of it by its layer's name; and gamma and beta alone, whose statistics go on."""
    model = layers()
    warm = fg.Trainer(model, optimizer=SGD(0.1))
    warm.fit(X, Y, batch_size=8, epochs=2)
    theirs, named = in_pytorch(torch, model)
    norm = theirs[2]
    norm.weight.data, norm.bias.data = (torch.tensor(model.parameters()[name].copy()) for name in ("1.gamma", "1.beta"))
    norm.running_mean[:], norm.running_var[:] = (torch.tensor(a.copy()) for a in model.statistics().values())
    if what == "all":
        norm.eval()
    step = torch.optim.SGD([p for name, p in named.items() if name[0] != "1"], 0.1)
    before = {name: bits(a) for name, a in {**model.parameters(), **model.statistics()}.items() if name[0] == "1"}
    trainer = fg.Trainer(model, optimizer=SGD(0.1, groups=FROZEN[what]))
    for first in range(0, 40, 8):
        rows = slice(first, first + 8)
        step.zero_grad()
        loss = torch.nn.functional.cross_entropy(theirs(torch.tensor(X[rows])), torch.tensor(Y[rows]))
        loss.backward()
        step.step()
        if not fits:
            assert float(trainer.step(X[rows], Y[rows])) == pytest.approx(float(loss.detach()), rel=1e-10)
    if fits:
        trainer.fit(X, Y, batch_size=8, shuffle=False)
    for name, p in named.items():
        np.testing.assert_allclose(model.parameters()[name].T, p.detach().numpy(), rtol=1e-9, atol=1e-12)
    after = {**model.parameters(), **model.statistics()}
    np.testing.assert_allclose(after["1.running_mean"], norm.running_mean.numpy(), rtol=1e-10)
    same = {name for name in before if before[name] == bits(after[name])}
    assert same == ({*before} if what == "all" else {"1.gamma", "1.beta"})


def test_a_batch_norm_in_a_block_is_frozen_by_its_path(in_force):
    body = Sequential(Dense(4, 4, dtype="float64"), BatchNorm(4, dtype="float64"))
    model = Sequential(
        Residual(body, activation="relu"), BatchNorm(4, dtype="float64"), Dense(4, 3, dtype="float64"), seed=0
    )
    before = {name: bits(a) for name, a in {**model.parameters(), **model.statistics()}.items()}
    fg.Trainer(model, optimizer=Adam(0.1, groups={"0.body.1.*": {"frozen": True}})).fit(X, Y)
    after = {name: bits(a) for name, a in {**model.parameters(), **model.statistics()}.items()}
    names = {f"0.body.1.{name}" for name in ("gamma", "beta", "running_mean", "running_var")}
    assert {name for name in before if before[name] == after[name]} == names


def test_a_batch_of_one_row_is_enough_where_batch_norms_are_frozen(in_force):
    model = layers()
    refuses_one = fg.Trainer(model)
    with pytest.raises(ValueError, match="too few for a batch norm"):
        refuses_one.fit(X[:9], Y[:9], batch_size=8)
    trainer = fg.Trainer(model, optimizer=Adam(groups=FROZEN["all"]))
    trainer.fit(X[:9], Y[:9], batch_size=8)
    assert trainer.step_count == 2


def test_groups_may_be_assigned_between_steps(in_force):
    """A layer that is frozen at first, and then trained."""
    model = layers()
    trainer = fg.Trainer(model, optimizer=Adam(0.1, groups={"0.*": {"frozen": True}, **FROZEN["all"]}))
    before = {name: bits(a) for name, a in {**model.parameters(), **model.statistics()}.items()}
    trainer.step(X, Y)
    optimizer = trainer.optimizer
    with pytest.raises(ValueError, match=r"optimizer.groups\['4.\*'\] must match one of 0.w, 0.b, 1.gamma"):
        trainer.optimizer = Adam(0.1, groups={"4.*": {"frozen": True}})
    assert trainer.optimizer is optimizer
    trainer.step(X, Y)
    now = {name: bits(a) for name, a in {**model.parameters(), **model.statistics()}.items()}
    assert {name for name in before if before[name] != now[name]} == {"3.w", "3.b"}
    trainer.optimizer = Adam(0.1)
    trainer.step(X, Y)
    now = {name: bits(a) for name, a in {**model.parameters(), **model.statistics()}.items()}
    assert not {name for name in before if before[name] == now[name]}


def test_constraints_and_pruning_leave_what_is_frozen(in_force):
    model = chain()
    masks = fg.prune(model, amount=0.5)
    model.parameters()["0.w"][...] = 7.0
    before = bits(model.parameters()["0.w"])
    optimizer = Adam(0.1, groups={"0.w": {"frozen": True}})
    for constraint in (fg.optim.MaxValue(0.1), fg.optim.MaxNorm(0.1), fg.optim.MaxNorm(0.1, per="all")):
        trainer = fg.Trainer(model, optimizer=optimizer, constraint=constraint)
        trainer.step(X, Y)
        trainer.fit(X, Y, batch_size=20)
        assert bits(model.parameters()["0.w"]) == before
        assert np.abs(model.parameters()["1.w"]).max() <= 0.1 + 1e-12
    assert "0.w" in model.masks()
    assert masks is not None


@pytest.mark.parametrize("make", [chain, lambda dtype: layers(dtype, 0.3)], ids=["chain", "layers"])
@pytest.mark.parametrize("batches", [False, True])
def test_a_resumed_fit_has_the_bits_of_one_that_was_never_stopped(in_force, make, batches, tmp_path):
    """With groups, early stopping, dropout, a schedule, and arrays or an iterator."""
    x, path = X.astype(np.float32), tmp_path / "run.safetensors"
    groups = {"*.b": {"weight_decay": 0.0}, "0.*": {"lr": 0.02}, "3.b": {"frozen": True}}
    if make is not chain:
        groups["1.*"] = {"frozen": True}

    def trainer():
        rates = fg.schedule.ReduceOnPlateau(0.05, patience=0)
        return fg.Trainer(make("float32"), optimizer=AdamW(rates, groups=groups), clip_norm=0.5, seed=4)

    def fit(trainer, epochs, **more):
        data = (lambda epoch: ((x[i : i + 9], Y[i : i + 9]) for i in range(0, 36, 9)), None) if batches else (x, Y)
        validation = x[:10], Y[:10]
        return trainer.fit(*data, epochs=epochs, batch_size=9, validation=validation, patience=2, **more)

    whole, stopped, resumed = (trainer() for _ in range(3))
    expected = fit(whole, 6)
    fit(stopped, 2, checkpoint=path)
    found = fit(resumed, 6, checkpoint=path, resume=True)
    assert (found.loss, found.val_loss, found.learning_rate) == (
        expected.loss,
        expected.val_loss,
        expected.learning_rate,
    )
    for name in ("params", "grads"):
        assert bits(getattr(resumed.model, name)) == bits(getattr(whole.model, name))
    assert bits(resumed.state) == bits(whole.state)
    assert [bits(a) for a in resumed.model.statistics().values()] == [
        bits(a) for a in whole.model.statistics().values()
    ]


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))], ids=["copy", "pickle"]
)
@pytest.mark.parametrize("make", [chain, layers])
def test_copies_have_groups_of_their_own(in_force, make, copied):
    trainer = fg.Trainer(make(), optimizer=Adam(Exponential(0.1, 0.9), groups={**GROUPS, "1.*": {"frozen": True}}))
    trainer.fit(X, Y)
    other = copied(trainer)
    for each in (trainer, other):
        each.fit(X, Y)
        each.step(X, Y)
    assert bits(other.model.params) == bits(trainer.model.params)
    assert other._rule.hyper is not trainer._rule.hyper
    assert other.optimizer == trainer.optimizer


def test_pickles_of_optimisers_and_updaters_without_groups_load(in_force):
    optimizer = Adam(0.1)
    del vars(optimizer)["groups"]
    assert pickle.loads(pickle.dumps(optimizer)) == Adam(0.1)
    updater = fg.Updater([np.ones(3)], optimizer)
    old = vars(updater).copy()
    for name in ("_groups", "_has_schedule"):
        del old[name]
    other = fg.Updater.__new__(fg.Updater)
    other.__setstate__(copy.deepcopy(old))
    for each in (updater, other):
        each.step([np.ones(3)])
    assert bits(other.params[0]) == bits(updater.params[0])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_updater_takes_the_numbers_of_its_arrays_as_names(in_force, name, torch):
    shapes = [(4, 8), (8,), (3,), (8, 3)]
    params = [RNG.standard_normal(shape) for shape in shapes]
    named = {
        name: torch.nn.Parameter(torch.tensor(p)) for name, p in zip(["0.w", "0.b", "3.b", "3.w"], params, strict=True)
    }
    optimizer = OPTIMIZERS[name]
    step = torch_step(torch, optimizer, named, LR.lr)
    schedule = torch.optim.lr_scheduler.ExponentialLR(step, LR.factor)
    groups = {
        "0": {"lr": 0.003},
        "1": {"lr": 0.02, "weight_decay": 0.0},
        "2": {"weight_decay": 0},
        "3": {"frozen": True},
    }
    ours = copy.copy(optimizer)
    object.__setattr__(ours, "groups", groups)
    updater = fg.Updater(params, ours, clip_norm=2.0)
    before = bits(params[3])
    for _ in range(8):
        grads = [RNG.standard_normal(shape) for shape in shapes]
        for p, grad in zip(named.values(), grads, strict=True):
            p.grad = torch.tensor(grad) if p.requires_grad else None
        norm = torch.nn.utils.clip_grad_norm_(named.values(), 2.0)
        step.step()
        schedule.step()
        assert float(updater.step(grads)) == pytest.approx(float(norm), rel=1e-10)
    for p, theirs in zip(params, named.values(), strict=True):
        np.testing.assert_allclose(p, theirs.detach().numpy(), rtol=1e-10, atol=1e-12)
    assert bits(params[3]) == before
    message = "Updater: optimizer.groups['w'] must match one of 0, 1, 2, 3"
    refuses(ValueError, message, fg.Updater, params, SGD(0.1, groups={"w": {"lr": 0.0}}))


# one for each kind of state, with masks a kernel each
MASKED = {name: OPTIMIZERS[name] for name in ("sgd", "nesterov", "adam", "adagrad", "rmsprop")}
MASKED["amsgrad"] = replace(OPTIMIZERS["adam"], amsgrad=True)


@pytest.mark.emulated(0)
@pytest.mark.parametrize("name", MASKED)
def test_an_updater_prunes_and_limits_groups_as_a_loop_in_pytorch(in_force, name, torch):
    """Clip, step, zeros where the mask has False, and last the norms of the columns, or of all weights, that are not frozen."""
    shapes = [(4, 8), (8,), (3,), (8, 3), (2, 19)]
    groups = {
        "0": {"lr": 0.003},
        "1": {"lr": 0.02, "weight_decay": 0.0},
        "2": {"weight_decay": 0},
        "3": {"frozen": True},
    }
    for per, limit in (("unit", 1.2), ("all", 4.0)):
        params, masks = [RNG.standard_normal(s) for s in shapes], [RNG.random(s) < 0.6 for s in shapes]
        names = "0.w", "0.b", "3.b", "3.w", "5.w"
        named = {name: torch.nn.Parameter(torch.tensor(p)) for name, p in zip(names, params, strict=True)}
        step = torch_step(torch, MASKED[name], named, LR.lr)
        schedule = torch.optim.lr_scheduler.ExponentialLR(step, LR.factor)
        ours = replace(MASKED[name], groups=groups)
        updater = fg.Updater(params, ours, 2.0, masks, fg.optim.MaxNorm(limit, per))
        limited = 0
        for _ in range(4):
            grads = [RNG.standard_normal(shape) for shape in shapes]
            for p, grad in zip(named.values(), grads, strict=True):
                p.grad = torch.tensor(grad) if p.requires_grad else None
            torch.nn.utils.clip_grad_norm_(named.values(), 2.0)
            step.step()
            schedule.step()
            trained = [(p.data, torch.tensor(m)) for p, m in zip(named.values(), masks, strict=True) if p.requires_grad]
            for p, mask in trained:
                p *= mask
            weights = [p for p, _ in trained if p.ndim == 2]
            norms = [p.norm(dim=0) for p in weights]
            if per == "all":
                norms = [torch.cat(norms).norm()] * len(weights)
            for p, norm in zip(weights, norms, strict=True):
                limited += int((norm > limit).sum())
                p *= (limit / norm).clamp(max=1)
            updater.step(grads)
            for p, theirs in zip(params, named.values(), strict=True):
                np.testing.assert_allclose(p, theirs.detach().numpy(), rtol=1e-10, atol=1e-12)
        assert limited


def test_errors_say_what_a_group_may_have(numpy_backend):
    def fails(kind, message, groups):
        refuses(kind, message, Adam, groups=groups)

    fails(TypeError, "Adam: groups must be a dictionary of settings by pattern, got list", [{"lr": 0.1}])
    fails(TypeError, "Adam: a pattern in groups must be a str, got int", {0: {"lr": 0.1}})
    fails(TypeError, "Adam: groups['*'] must be a dictionary of settings, got float", {"*": 0.1})
    message = "Adam: a setting in groups['*.b'] must be one of lr, weight_decay, frozen; got 'decay'"
    fails(ValueError, message, {"*.b": {"decay": 0}})
    fails(ValueError, "Adam: lr in groups['*'] must be at least 0 and finite, got -1", {"*": {"lr": -1}})
    fails(TypeError, "Adam: frozen in groups['*'] must be True or False, got int", {"*": {"frozen": 1}})
    with pytest.raises(TypeError, match=r"lr in groups\['\*'\] must be a number, got Exponential"):
        Adam(groups={"*": {"lr": Exponential(0.1, 0.9)}})


def test_a_pattern_that_meets_nothing_lists_the_names(numpy_backend):
    names = "0.w, 0.b, 1.gamma, 1.beta, 3.w, 3.b"
    message = "Trainer: optimizer.groups['2.*'] must match one of "
    refuses(ValueError, message + names, fg.Trainer, layers(), optimizer=SGD(0.1, groups={"2.*": {"lr": 0.0}}))
    # a rate is no setting of statistics, which may be frozen
    rates = SGD(0.1, groups={"1.running_*": {"lr": 0.0}})
    refuses(ValueError, message.replace("2.*", "1.running_*") + names, fg.Trainer, layers(), optimizer=rates)
    frozen, statistics = SGD(0.1, groups={"2.*": {"frozen": True}}), ", 1.running_mean, 1.running_var"
    refuses(ValueError, message + names + statistics, fg.Trainer, layers(), optimizer=frozen)


def test_a_schedule_that_begins_with_0_has_no_rate_to_follow(numpy_backend):
    class Growing(Schedule):
        def rate(self, step, losses):
            return 0.01 * step

    for schedule in (Growing(), Rates([0.0, 0.1])):
        message = (
            f"Trainer: lr of a group follows the schedule from its first rate, and {type(schedule).__name__} begins with 0; "
            "WarmUp grows from 0"
        )
        refuses(ValueError, message, fg.Trainer, chain(), optimizer=SGD(schedule, groups={"0.*": {"lr": 0.1}}))
        fg.Trainer(chain(), optimizer=SGD(schedule, groups={"0.*": {"frozen": True}})).step(X, Y)


def test_a_dictionary_of_groups_is_copied(numpy_backend):
    groups = {"0.*": {"lr": 0.1}}
    optimizer = SGD(0.1, groups=groups)
    groups["0.*"]["lr"] = 5.0
    assert optimizer.groups == {"0.*": {"lr": 0.1}}
    assert "groups={'0.*': {'lr': 0.1}}" in repr(fg.Trainer(chain(), optimizer=optimizer))


@pytest.mark.parametrize(
    "make", [lambda: DenseChain([4, 6, 3], dtype="float64", seed=1), layers], ids=["chain", "layers"]
)
def test_one_process_with_reduce_has_groups_too(in_force, make):
    """And processes whose groups differ do not agree, which the checksum of settings tells."""
    groups, sums = {"*.b": {"frozen": True}}, []
    one = fg.Trainer(make(), optimizer=Adam(0.1, groups=groups))
    other = fg.Trainer(make(), optimizer=Adam(0.1, groups=groups), reduce=lambda values: sums.append(values.copy()))
    third = fg.Trainer(
        make(), optimizer=Adam(0.1, groups={"*.w": {"frozen": True}}), reduce=lambda a: sums.append(a.copy())
    )
    for trainer in (one, other, third):
        trainer.step(X, Y)
    np.testing.assert_allclose(other.model.params, one.model.params, rtol=1e-10)
    assert bits(sums[0][-33:]) != bits(sums[1][-33:])
