"""fg.load with strict=False, which takes what a file and a model have in common, and files of other floating dtypes."""

import json
import struct

import numpy as np
import pytest
import safetensors.numpy
from arrays import bits
from error_messages import refuses

import fastgrad as fg
from fastgrad.nn import BatchNorm, Dense, Dropout, Sequential

pytestmark = pytest.mark.usefixtures("numpy_backend")
X, Y = np.random.default_rng(0).standard_normal((12, 4), np.float32), np.arange(12) % 3


def backbone(seed=0, **options):
    return Sequential(Dense(4, 6, "relu", **options), BatchNorm(6, **options), seed=seed)


def whole(seed=0):
    return Sequential(Dense(4, 6, "relu"), BatchNorm(6), Dropout(0.5), Dense(6, 3), seed=seed)


def everything(model):
    return {name: bits(a) for name, a in {**model.parameters(), **model.statistics(), **model.masks()}.items()}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file"


def test_what_the_file_has_not_stays_and_is_listed(path):
    small, large = backbone(1), whole(2)
    fg.save(path, small)
    before, head = everything(large), everything(large.layers[3])
    refuses(ValueError, f"load: {path}: the file has no 3.w, 3.b", fg.load, path, large)
    assert everything(large) == before
    names = fg.load(path, large, strict=False)
    assert names == (["3.w", "3.b"], [])
    assert (names.missing, names.unexpected) == names
    assert everything(large.layers[0]) == everything(small.layers[0])
    assert everything(large.layers[1]) == everything(small.layers[1])
    assert everything(large.layers[3]) == head


def test_what_the_model_has_not_is_left_out_and_listed(path):
    small, large = backbone(1), whole(2)
    fg.save(path, fg.Trainer(large))
    refuses(ValueError, f"load: {path}: the model has no 3.b, 3.w", fg.load, path, small)
    assert fg.load(path, small, strict=False) == ([], ["3.b", "3.w"])
    assert everything(small.layers[0]) == everything(large.layers[0])
    assert fg.load(path, whole(3)) == fg.load(path, whole(3), strict=False) == ([], [])


def test_another_shape_is_an_error_all_the_same(path):
    fg.save(path, backbone(1))
    other = Sequential(Dense(4, 5), BatchNorm(5))
    before = everything(other)
    refuses(ValueError, f"load: {path}: 0.w must be (4, 5), got (4, 6)", fg.load, path, other, strict=False)
    assert everything(other) == before


def test_masks_of_arrays_that_the_file_has_not_stay(path):
    small, large = backbone(1), whole(2)
    fg.prune(large, 0.5)
    head = large.masks()["3.w"].copy()
    fg.save(path, small)
    fg.load(path, large, strict=False)
    assert large.masks()["0.w"].all()
    np.testing.assert_array_equal(large.masks()["3.w"], head)
    fg.prune(small, 0.25)
    fg.save(path, small)
    fg.load(path, large, strict=False)
    np.testing.assert_array_equal(large.masks()["0.w"], small.masks()["0.w"])
    np.testing.assert_array_equal(large.masks()["3.w"], head)
    fg.load(path, other := whole(4), strict=False)
    assert other.masks()["3.w"].all()
    fg.save(path, backbone(1))
    fg.load(path, small)
    assert small.masks() == {}


def test_a_trainer_reads_a_models_file_and_keeps_its_own_state(path):
    trainer = fg.Trainer(whole(1), seed=1)
    trainer.fit(X, Y, 2, 4, validation=(X, Y))
    state, losses, generator = trainer.state.copy(), list(trainer.val_losses), trainer.rng.bit_generator.state
    fg.save(path, whole(2))
    message = f"load: {path}: the file has no optimizer.state, optimizer.step"
    refuses(ValueError, message, fg.load, path, trainer)
    assert fg.load(path, trainer, strict=False) == (["optimizer.state", "optimizer.step"], [])
    assert everything(trainer.model) == everything(whole(2))
    assert bits(trainer.state) == bits(state)
    assert (trainer.step_count, trainer.val_losses, trainer.rng.bit_generator.state) == (6, losses, generator)


def test_a_trainers_file_of_another_model_does_not_fit_its_state(path):
    fg.save(path, fg.Trainer(backbone(1)))
    trainer = fg.Trainer(whole(2))
    before = everything(trainer.model)
    message = f"load: {path}: optimizer.state must be (2, 63), got (2, 42)"
    refuses(ValueError, message, fg.load, path, trainer, strict=False)
    assert everything(trainer.model) == before


@pytest.mark.parametrize("stored", ["float16", "float32", "float64"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_other_floats_are_read_into_the_models(path, dtype, stored):
    values = {name: a.astype(stored) for name, a in {**backbone(1).parameters(), **backbone(1).statistics()}.items()}
    values["0.b"][:2] = np.nan, np.inf
    safetensors.numpy.save_file(values, path)
    model = backbone(2, dtype=dtype)
    fg.load(path, model)
    for name, array in {**model.parameters(), **model.statistics()}.items():
        assert bits(array) == bits(values[name].astype(dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bfloat16_is_read_without_another_package(path, dtype):
    upper = np.array([0x3F80, 0xC020, 0x7F80, 0x7FC0, 0x0001, 0x8000], "<u2")
    header = {
        "w": {"dtype": "BF16", "shape": [3, 2], "data_offsets": [8, 20]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    }
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + np.array([5, 6], "<f4").tobytes() + upper.tobytes())
    layer = Dense(3, 2, dtype=dtype)
    fg.load(path, layer)
    expected = np.array([[1, -2.5], [np.inf, np.nan], [2.0**-133, -0.0]], dtype)
    np.testing.assert_array_equal(layer.w, expected)
    assert np.signbit(layer.w[2, 1])
    assert layer.b.tolist() == [5, 6]


def test_a_trainers_state_is_converted_too(path):
    double = fg.Trainer(backbone(1, dtype="float64"), "mse")
    double.step(X.astype("float64"), np.ones((12, 6)))
    fg.save(path, double)
    single = fg.Trainer(backbone(2), "mse")
    fg.load(path, single)
    assert bits(single.state) == bits(double.state.astype("float32"))
    assert bits(single.model.params) == bits(double.model.params.astype("float32"))
    assert single.step_count == 1


def test_what_a_dtype_does_not_hold_changes_nothing(path):
    model = backbone(1)
    values = {name: a.astype("float64") for name, a in {**model.parameters(), **model.statistics()}.items()}
    values["1.running_var"][3] = 1e39
    safetensors.numpy.save_file(values, path)
    before = everything(model)
    refuses(ValueError, f"load: {path}: 1.running_var has a value that is infinite in float32", fg.load, path, model)
    values["1.running_var"] = np.ones(6, np.int32)
    safetensors.numpy.save_file(values, path)
    refuses(TypeError, f"load: {path}: 1.running_var must be float32, got I32", fg.load, path, model)
    assert everything(model) == before
