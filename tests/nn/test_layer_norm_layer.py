"""nn.LayerNorm: the function with parameters of its own, alone, in a Residual, trained, saved and watched."""

import numpy as np
import pytest
from arrays import bits

import fastgrad as fg
from fastgrad.health.verdict import model_traits
from fastgrad.nn import Dense, LayerNorm, Residual, Sequential


@pytest.mark.parametrize("shape", [(5, 4), (2, 3, 4), (2, 3, 5, 4)])
@pytest.mark.parametrize("training", [True, False])
def test_it_is_the_function(in_force, dtype, shape, training, rng):
    layer = LayerNorm(4, "relu", 1e-3, dtype=dtype)
    layer.params[...] = rng.standard_normal(8)
    x, dy = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
    y, backward = layer.forward(x, training=training)
    expected, expected_backward = fg.layer_norm(x, layer.gamma, layer.beta, eps=1e-3, activation="relu")
    dx, dgamma, dbeta = expected_backward(dy)
    assert [bits(y), bits(backward(dy))] == [bits(expected), bits(dx)]
    assert bits(layer.grads) == bits(np.concatenate([dgamma, dbeta]))


def test_in_a_residual_it_adds_the_shortcut(in_force, dtype, rng):
    body = Sequential(Dense(4, 4, dtype=dtype), LayerNorm(4, dtype=dtype), seed=0)
    x = rng.standard_normal((6, 4)).astype(dtype)
    y, _ = Residual(body, activation="relu").forward(x)
    np.testing.assert_allclose(y, np.maximum(body.forward(x)[0] + x, 0), rtol=1e-5, atol=1e-6)


def test_it_trains_is_saved_and_has_the_bits_of_a_row_alone(in_force, tmp_path, rng):
    def model(seed):
        return Sequential(Dense(6, 16), LayerNorm(16, "relu"), Dense(16, 3), seed=seed)

    x = rng.standard_normal((64, 6), np.float32)
    labels = np.argmax(x[:, :3], axis=1)
    trainer = fg.Trainer(model(0), optimizer=fg.optim.Adam(lr=0.01))
    losses = [trainer.step(x, labels) for _ in range(60)]
    assert losses[-1] < losses[0] / 3
    fg.save(tmp_path / "model.npz", trainer.model)
    other = model(1)
    fg.load(tmp_path / "model.npz", other)
    assert bits(other.predict(x)) == bits(trainer.model.predict(x))


def test_health_knows_it_for_a_norm(in_force, rng):
    model = Sequential(*(part for _ in range(3) for part in (Dense(8, 8), LayerNorm(8, "tanh"))), Dense(8, 2), seed=0)
    x, labels = rng.standard_normal((32, 8), np.float32), rng.integers(0, 2, 32)
    trainer = fg.Trainer(model, health=True)
    trainer.step(x, labels)
    assert "layers.1 " in str(trainer.health())
    traits = model_traits(model)
    assert [t.kind for t in traits] == ["Dense before a layer norm", "LayerNorm"] * 3 + ["Dense"]
    assert all(t.norm for t in traits)
