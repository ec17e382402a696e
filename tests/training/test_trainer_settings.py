"""Settings of a Trainer that are assigned: they are the next step's, or refused."""

import numpy as np
import pytest
from arrays import bits
from error_messages import refuses
from trainers import data, model

import fastgrad as fg
from fastgrad.optim import SGD, Adam


def settings_of(form, **settings):
    return fg.Trainer(model(form), optimizer=SGD(0.1), **settings)


@pytest.mark.parametrize("form", ["chain", "sequential"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("optimizer", SGD(1e-3, weight_decay=0.1)),
        ("optimizer", SGD(fg.schedule.Exponential(0.1, 0.5))),
        ("clip_norm", 1e-3),
        ("constraint", fg.optim.MaxValue(0.1)),
        ("reduce", lambda values: None),
    ],
)
def test_a_setting_that_is_assigned_is_the_next_steps(in_force, form, name, value):
    x, y = data()
    given, assigned = (settings_of(form, **({} if name == "optimizer" else {name: None})) for _ in range(2))
    for trainer in (given, assigned):
        trainer.step(x, y)
    # a trainer that was made with it, of the same parameters and as many updates
    made = fg.Trainer(given.model, **({"optimizer": SGD(0.1)} | {name: value}))
    made.step_count = 1
    setattr(assigned, name, value)
    for trainer in (made, assigned):
        trainer.step(x, y)
        trainer.fit(x, y, batch_size=8)
    assert getattr(assigned, name) is value or getattr(assigned, name) == value
    assert bits(assigned.model.params) == bits(made.model.params)
    assert assigned.step_count == made.step_count


@pytest.mark.parametrize("form", ["chain", "sequential"])
def test_a_loss_a_pruning_and_a_seed_that_are_assigned_are_the_next_steps(in_force, form):
    x, y = data("mse")
    trainer, made = settings_of(form), fg.Trainer(model(form), "mse", SGD(0.1))
    trainer.loss = "mse"
    assert trainer.step(x, y) == made.step(x, y)
    trainer.pruning = fg.GradualPruning(0.5, 0, 4, 1)
    assert not trainer.model.masks()
    trainer.step(x, y)
    assert trainer.model.masks()
    trainer.seed = 9
    assert trainer.rng.integers(1000) == np.random.Generator(np.random.PCG64(9)).integers(1000)


def test_an_optimizer_goes_on_with_the_state_that_there_is(in_force):
    x, y = data()
    trainer, whole = (fg.Trainer(model(), optimizer=Adam(0.01)) for _ in range(2))
    for _ in range(2):
        whole.step(x, y)
        trainer.step(x, y)
        trainer.optimizer = Adam(0.01)
    assert bits(trainer.model.params) == bits(whole.model.params)
    state = trainer.state
    trainer.state = np.zeros_like(state)
    assert trainer.state is state
    assert not state.any()


def test_settings_that_cannot_be_are_refused_and_change_nothing(in_force):
    trainer = fg.Trainer(model(), optimizer=Adam(0.01), clip_norm=2.0)

    def assign(name, value):
        return lambda: setattr(trainer, name, value)

    message = (
        "Trainer: optimizer must be Adam with 2 values of state a parameter, as the one before, whose state goes on, "
        "got SGD with 0; another kind needs a new Trainer"
    )
    refuses(ValueError, message, assign("optimizer", SGD(0.1)))
    refuses(TypeError, "Trainer: optimizer must be one of fastgrad.optim, got str", assign("optimizer", "adam"))
    refuses(ValueError, "Trainer: clip_norm must be above 0 and finite, got -1", assign("clip_norm", -1))
    refuses(TypeError, "Trainer: clip_norm must be a number, got ndarray", assign("clip_norm", np.array([1.0, 2.0])))
    refuses(TypeError, "Trainer: clip_norm must be a number, got ndarray", assign("clip_norm", np.array(np.inf)))
    message = (
        "Trainer: loss must be one of cross_entropy, binary_cross_entropy, mse, poisson_nll, mae, huber; got 'hinge'"
    )
    refuses(ValueError, message, assign("loss", "hinge"))
    message = "Trainer: constraint must be MaxValue or MaxNorm of fastgrad.optim, got float"
    refuses(TypeError, message, assign("constraint", 1.0))
    refuses(TypeError, "Trainer: pruning must be a GradualPruning, got float", assign("pruning", 0.5))
    refuses(TypeError, "Trainer: reduce must be callable, got int", assign("reduce", 3))
    refuses(ValueError, "Trainer: step_count must be an integer of at least 0, got -5", assign("step_count", -5))
    shape = trainer.state.shape
    message = f"Trainer: state must be (S, P) = ({shape[0]}, {shape[1]}), got (1, {shape[1]})"
    refuses(ValueError, message, assign("state", trainer.state[:1]))
    with pytest.raises(TypeError, match="Trainer: state must be float32"):
        trainer.state = trainer.state.astype("f8")
    with pytest.raises(AttributeError):
        trainer.model = model()
    assert (trainer.clip_norm, trainer.loss, trainer.constraint, trainer.reduce) == (2.0, "cross_entropy", None, None)
    assert trainer.step_count == 0


@pytest.mark.parametrize(("seed", "error"), [(-1, ValueError), (1.5, TypeError), ("0", TypeError)])
def test_a_bad_seed_is_refused_and_changes_nothing(seed, error):
    trainer = fg.Trainer(fg.nn.Dense(4, 3, seed=0), seed=5)
    with pytest.raises(error, match="Trainer: seed must be an integer of at least 0, got "):
        trainer.seed = seed
    assert trainer.seed == 5
