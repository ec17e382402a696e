"""Dropout: its share, its gradients, the same values on every backend, and the layer in a net."""

import copy

import numpy as np
import pytest
from arrays import bits, unwritten, with_threads

import fastgrad as fg
from fastgrad.kernels import reference
from fastgrad.nn import Dense, Dropout, Sequential

pytestmark = pytest.mark.cuda

KEY = 0xFEDCBA9876543210


def splitmix(key, count):
    """SplitMix64 in Python's integers, as Steele, Lea & Flood print it."""
    found, seed = [], key
    for _ in range(count):
        seed = (seed + 0x9E3779B97F4A7C15) % 2**64
        z = (seed ^ seed >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        found.append(z ^ z >> 31)
    return found


def test_the_first_numbers_from_zero_are_the_published_ones():
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC, 0x1B39896A51A8749B]
    assert splitmix(0, 5) == expected


@pytest.mark.pairwise
@pytest.mark.parametrize("size", [0, 1, 7, 64, 1001, 200_003])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.999])
def test_a_value_is_kept_where_its_number_is_large(backend, dtype, rate, size, rng):
    x, y = rng.standard_normal(size).astype(dtype), unwritten(size, dtype)
    backend.dropout_forward(x, rate, KEY, y)
    few = min(size, 1001)
    kept = np.array(splitmix(KEY, few), np.uint64) >= int(rate * 2**64)
    np.testing.assert_array_equal(y[:few], np.where(kept, x[:few] * dtype.type(1 / (1 - rate)), 0))
    expected = unwritten(size, dtype)
    reference.dropout_forward(x, rate, KEY, expected)
    np.testing.assert_array_equal(y, expected)


def test_a_share_is_dropped_and_the_mean_stays(backend, dtype):
    y = unwritten((1000, 500), dtype)
    backend.dropout_forward(np.ones_like(y), 0.25, 5, y)
    assert sorted(set(y.ravel().tolist())) == [0, dtype.type(1 / 0.75)]
    assert np.count_nonzero(y) / y.size == pytest.approx(0.75, abs=5 * np.sqrt(0.75 * 0.25 / y.size))
    # rows and columns are dropped apart from each other, and from those of the next key
    assert np.abs(np.corrcoef(y[:, :8].T) - np.eye(8)).max() < 0.2
    assert np.abs(np.corrcoef(y[:8]) - np.eye(8)).max() < 0.25
    other = unwritten(y.shape, dtype)
    backend.dropout_forward(np.ones_like(y), 0.25, 6, other)
    assert abs(np.corrcoef(y.ravel(), other.ravel())[0, 1]) < 0.01


def test_it_may_run_in_place_and_nan_stays(backend, dtype, rng):
    x = rng.standard_normal(999).astype(dtype)
    x[:500:7] = np.nan
    y = unwritten(x.shape, dtype)
    backend.dropout_forward(x, 0.5, KEY, y)
    assert np.isnan(y[:500:7]).all()
    backend.dropout_forward(x, 0.5, KEY, x)
    assert bits(x) == bits(y)


def test_the_same_on_any_number_of_threads(backend):
    x = np.ones((300, 1024), np.float32)

    def dropped():
        y = unwritten(x.shape, x.dtype)
        backend.dropout_forward(x, 0.3, KEY, y)
        return bits(y)

    assert len(set(with_threads(dropped))) == 1


def test_the_layer_drops_in_training_only_and_takes_its_mask_back(in_force, dtype, rng):
    x, dy = (rng.standard_normal((4, 5, 6, 3)).astype(dtype) for _ in range(2))
    layer = Dropout(0.5, seed=3)
    for y in (layer.predict(x), layer.forward(x)[0]):
        np.testing.assert_array_equal(y, x)
    y, backward = layer.forward(x, training=True)
    kept = y != 0
    assert 0.2 < kept.mean() < 0.8
    np.testing.assert_array_equal(y, np.where(kept, 2 * x, 0))
    np.testing.assert_array_equal(backward(dy), np.where(kept, 2 * dy, 0))


def test_masks_come_from_the_seed_and_are_new_for_each_forward(in_force):
    x = np.ones((20, 50), np.float32)
    layer, same, other = (Dropout(0.5, seed=seed) for seed in (1, 1, 2))
    runs = [[bits(net.forward(x, True)[0]) for _ in range(3)] for net in (layer, same, other)]
    assert runs[0] == runs[1] != runs[2]
    assert len(set(runs[0])) == 3
    twin = copy.deepcopy(layer)
    assert bits(twin.forward(x, True)[0]) == bits(layer.forward(x, True)[0])


def test_backends_train_a_net_alike(rng):
    x, y = rng.standard_normal((64, 6)), rng.integers(0, 3, 64)
    found = []
    for backend in ("numpy", "cpu"):
        with fg.use_backend(backend):
            layers = Dense(6, 20, "tanh", dtype="float64"), Dropout(0.3), Dense(20, 3, "softmax", dtype="float64")
            model = Sequential(*layers, seed=1)
            fg.Trainer(model, loss="cross_entropy", optimizer=fg.optim.SGD(0.1)).fit(x, y, epochs=3, batch_size=16)
            found.append(model.params.copy())
    np.testing.assert_allclose(*found, rtol=1e-12)


def test_a_failed_step_draws_the_same_mask_again():
    x, bad, good = np.ones((8, 4), np.float32), np.full(8, 9), np.zeros(8, np.int64)
    losses = []
    for fails in (False, True):
        model = Sequential(Dense(4, 8, "relu"), Dropout(0.5), Dense(8, 3, "softmax"), seed=2)
        trainer = fg.Trainer(model, loss="cross_entropy", optimizer=fg.optim.SGD(0.1))
        if fails:
            with pytest.raises(ValueError, match=r"in 0\.\.2"):
                trainer.step(x, bad)
        losses.append(trainer.step(x, good))
    assert losses[0] == losses[1]


@pytest.mark.parametrize("rate", [-0.1, 1, 1.5, np.nan])
def test_a_rate_outside_of_0_to_1_is_refused(rate):
    with pytest.raises(ValueError, match="Dropout: rate must be at least 0 and below 1"):
        Dropout(rate)
