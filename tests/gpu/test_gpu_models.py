"""Models and trainers on a GPU, which is fakegpu.py's: the numbers of the reference, what waits, and how many launches a step takes."""

import copy

import numpy as np
import pytest

import fastgrad as fg
from fastgrad.core import device

pytest.importorskip("numba_cuda", reason="needs the extra [cuda]")

from fakegpu import FakeArray

SIZES, ROWS = [6, 5, 4, 3], 20


def data(seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((ROWS, SIZES[0]), np.float32), rng.integers(0, SIZES[-1], ROWS)


def chain():
    return fg.nn.DenseChain(SIZES, "tanh", "softmax", seed=0)


def layers():
    return fg.nn.Sequential(fg.nn.Dense(6, 5, "tanh"), fg.nn.BatchNorm(5, "relu"), fg.nn.Dense(5, 3, "softmax"), seed=0)


def trained(model, x, y):
    """(losses of steps, history, the model) of a few steps and epochs."""
    trainer = fg.Trainer(model, optimizer=fg.optim.Adam(0.01), clip_norm=0.5)
    losses = [trainer.step(x, y) for _ in range(3)]
    history = trainer.fit(x, y, epochs=2, batch_size=8, validation=(x, y))
    return [float(loss) for loss in losses], history, trainer


@pytest.mark.parametrize("make", [chain, layers])
def test_training_gives_the_references_numbers(fake_gpu, make):
    """With data of the host or of the GPU; parameters and state are there."""
    x, y = data()
    with fg.use_backend("numpy"):
        losses, history, expected = trained(make(), x, y)
        probabilities = expected.predict(x)
    for given in ((x, y), (fake_gpu.array(x), fake_gpu.array(y))):
        found, seen, trainer = trained(make().to("cuda"), *given)
        np.testing.assert_allclose(found, losses, rtol=1e-5)
        for name in ("loss", "grad_norm", "val_loss", "val_accuracy"):
            np.testing.assert_allclose(getattr(seen, name), getattr(history, name), rtol=1e-4)
        assert isinstance(trainer.model.params, FakeArray)
        assert isinstance(trainer.state, FakeArray)
        np.testing.assert_allclose(trainer.model.params.get(), expected.model.params, rtol=1e-4, atol=1e-5)
        for ours, wanted in zip(trainer.model.statistics().values(), expected.model.statistics().values(), strict=True):
            np.testing.assert_allclose(ours.get(), wanted, rtol=1e-4, atol=1e-6)
    assert type(trainer.predict(x)) is np.ndarray
    np.testing.assert_allclose(trainer.predict(x), probabilities, rtol=1e-4)
    assert isinstance(trainer.predict(fake_gpu.array(x)), FakeArray)
    assert type(trainer.model.predict(x, batch_size=7)) is np.ndarray


@pytest.mark.parametrize("pool", ["last", "mean"])
def test_a_pool_over_sequences_gives_the_references_numbers(fake_gpu, pool):
    rng = np.random.default_rng(0)
    x, y, lengths = rng.standard_normal((5, 7, 3), np.float32), rng.integers(0, 4, 5), np.array([7, 1, 0, 4, 7])

    def losses(backend):
        model = fg.nn.Sequential(fg.nn.LSTM(3, 6, pool=pool), fg.nn.Dense(6, 4, "softmax"), seed=0)
        trainer = fg.Trainer(model.to(backend))
        return [float(trainer.step(x, y, lengths=lengths)) for _ in range(3)]

    with fg.use_backend("numpy"):
        expected = losses("cpu")
    np.testing.assert_allclose(losses("cuda"), expected, rtol=1e-5)


@pytest.mark.parametrize("make", [chain, layers])
def test_a_step_waits_for_nothing_but_the_loss_on_request(fake_gpu, make):
    x, y = (fake_gpu.array(a) for a in data())
    trainer = fg.Trainer(make().to("cuda"), clip_norm=1.0)
    trainer.step(x, y)
    with fake_gpu.counted() as counts:
        loss = trainer.step(x, y)
    assert counts["waits"] == counts["copies"] == 0
    with fake_gpu.counted() as counts:
        assert loss > 0
        assert float(loss) == loss
    # whether the step was made, and its loss
    assert counts["waits"] == 2


def test_an_epoch_of_a_chain_waits_once_whatever_its_length(fake_gpu):
    x, y = (fake_gpu.array(a) for a in data())
    trainer = fg.Trainer(chain().to("cuda"), clip_norm=1.0)
    waits = []
    for batch_size in (10, 2):
        # labels are looked at before, for which fit waits too
        with fake_gpu.counted() as counts:
            trainer.fit(x, y, batch_size=batch_size)
        waits.append(counts["waits"])
    assert waits[0] == waits[1] <= 4


def test_launches_of_a_step(fake_gpu):
    """At most three a layer and three products, and four for loss and update: the loss, its sums, the norm and the update."""
    x, y = (fake_gpu.array(a) for a in data())
    trainer = fg.Trainer(chain().to("cuda"), optimizer=fg.optim.Adam(), clip_norm=1.0)
    trainer.step(x, y)
    fake_gpu.launches.clear()
    with fake_gpu.counted() as counts:
        trainer.step(x, y)
    names = [name for name, _ in fake_gpu.launches]
    of_layers = [name for name in names if name.endswith("_tiles") or name == "add_rows"]
    assert [name for name in names if name not in of_layers] == [
        "cross_entropy_rows",
        "loss_sums",
        "square_chunks",
        "update_chunks",
    ]
    depth = len(SIZES) - 1
    assert len(of_layers) <= 3 * depth
    # x needs no gradient
    assert counts["products"] == 3 * depth - 1


@pytest.mark.parametrize("make", [chain, layers])
@pytest.mark.parametrize("bad", ["label", "nan"])
def test_a_step_that_fails_changes_nothing_and_tells_when_its_loss_is_read(fake_gpu, make, bad):
    x, y = data()
    model = make().to("cuda")
    trainer = fg.Trainer(model, optimizer=fg.optim.SGD(0.1, momentum=0.9))
    trainer.step(x, y)
    x[3, 2], y[5] = (np.nan, y[5]) if bad == "nan" else (x[3, 2], 3)
    kept = [a.get() for a in (model.params, trainer.state, *model.statistics().values())]
    loss = trainer.step(x, y)
    for before, after in zip(kept, (model.params, trainer.state, *model.statistics().values()), strict=True):
        np.testing.assert_array_equal(after.get(), before)
    message = "Trainer.step: the gradient is not finite in .*; no update was made"
    kind = FloatingPointError
    if bad == "label":
        kind, message = ValueError, r"Trainer.step: y must be in 0..2, got 3 at index 5"
    with pytest.raises(kind, match=message):
        float(loss)
    assert float(trainer.step(*data())) > 0


@pytest.mark.parametrize("make", [chain, layers])
def test_an_epoch_stops_at_the_batch_that_fails(fake_gpu, make):
    """The updates before it stay, as on the host, and those after it are not made."""
    x, y = data()
    x[9, 0] = np.inf
    found = []
    for place in ("cpu", "cuda"):
        with fg.use_backend("numpy"):
            trainer = fg.Trainer(make().to(place))
            with pytest.raises(FloatingPointError, match=r"Trainer.fit: epoch 1, batch 3: .*no update was made"):
                trainer.fit(x, y, batch_size=4, shuffle=False)
            assert trainer.step_count == 2
            found.append([device.to_host(a) for a in (trainer.model.params, trainer.state)])
    for here, on_gpu in zip(*found, strict=True):
        np.testing.assert_allclose(on_gpu, here, rtol=1e-4, atol=1e-6)


def test_a_trainer_moves_its_model_where_cuda_is_in_force(fake_gpu):
    """And the program stays as it is: arrays of NumPy go in and come out."""
    x, y = data()
    with fg.use_backend("cuda"):
        trainer = fg.Trainer(chain())
        assert isinstance(trainer.model.params, FakeArray)
        trainer.fit(x, y, batch_size=10)
        assert type(trainer.predict(x)) is np.ndarray
        assert trainer.evaluate(x, y)[0] > 0
        fresh = chain()
        assert type(fresh.params) is np.ndarray
        assert type(fresh.predict(x)) is np.ndarray


def test_a_trainer_follows_its_model(fake_gpu):
    x, y = data()
    with fg.use_backend("numpy"):
        trainer, other = fg.Trainer(chain()), fg.Trainer(chain())
        for place in ("cpu", "cuda", "cpu"):
            trainer.model.to(place)
            assert trainer.step(x, y) == pytest.approx(other.step(x, y), rel=1e-5)
            assert type(trainer.state) is type(trainer.model.params)
        np.testing.assert_allclose(trainer.model.params, other.model.params, rtol=1e-4, atol=1e-5)


def test_moving_takes_all_of_a_model_along(fake_gpu, tmp_path):
    model = layers()
    model.forward(np.ones((4, 6), np.float32) * np.arange(4, dtype=np.float32)[:, None], training=True)
    with fg.use_backend("numpy"):
        masks = fg.prune(model, 0.5)
    before = {name: a.copy() for name, a in [*model.parameters().items(), *model.statistics().items()]}
    assert model.to("cuda") is model
    assert model.to("cuda") is model
    for part in (model, *model.layers):
        arrays = [part.params, part.grads, *part.masks().values(), *part.statistics().values()]
        assert all(isinstance(a, FakeArray) for a in arrays)
    fg.save(tmp_path / "model.safetensors", model)
    loaded = layers().to("cuda")
    fg.load(tmp_path / "model.safetensors", loaded)
    copied = copy.deepcopy(loaded)
    for other in (model.to("cpu"), loaded.to("cpu"), copied.to("cpu")):
        for name, a in [*other.parameters().items(), *other.statistics().items()]:
            np.testing.assert_array_equal(a, before[name])
        for name, mask in other.masks().items():
            np.testing.assert_array_equal(mask, masks[name])


def test_what_a_move_refuses(fake_gpu):
    model = layers()
    with pytest.raises(ValueError, match=r"Model.to: the model is part of a Sequential; move that"):
        model.layers[0].to("cuda")
    with pytest.raises(ValueError, match=r"Model.to: backend must be one of cpu, cuda; got 'gpu'"):
        model.to("gpu")
    with pytest.raises(ValueError, match=r"Sequential: layers\[0\] is on a GPU; make the model of parts that are not"):
        fg.nn.Sequential(fg.nn.Dense(2, 2).to("cuda"))
    with pytest.raises(
        TypeError, match="DenseChain: x must be on GPU 0 like the call's other arrays, got a NumPy array"
    ):
        chain().to("cuda").forward(np.ones((2, 6), np.float32))
    with pytest.raises(TypeError, match=r"DenseChain.predict: x must be a NumPy array like the call's other arrays"):
        chain().predict(fake_gpu.array(np.ones((2, 6), np.float32)))


def test_without_a_gpu_a_model_stays_where_it_is(monkeypatch):
    monkeypatch.setattr(device, "missing", lambda: "missing an NVIDIA driver")
    device.cuda_device.cache_clear()
    model = chain()
    with pytest.raises(fg.BackendError, match="missing an NVIDIA driver"):
        model.to("cuda")
    assert not model.on_gpu
