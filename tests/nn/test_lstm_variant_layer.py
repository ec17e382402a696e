"""The LSTM layer with layer norm, zoneout and recurrent dropout: against fg.lstm and central differences, masks, files, conversion."""

import copy

import numpy as np
import pytest
from arrays import assert_is_gradient, bits, with_threads
from lstms import lstm_layer, random_states, sequences

import fastgrad as fg
from fastgrad.core.backend import kernels

pytestmark = [pytest.mark.cuda, pytest.mark.emulated(1)]

NORMS = ("gamma_x", "gamma_h", "gamma_c", "beta_c")
VARIANTS = {
    "layer_norm": {"layer_norm": True},
    "zoneout": {"zoneout": (0.2, 0.3)},
    "recurrent_dropout": {"recurrent_dropout": 0.4},
    "all": {"layer_norm": True, "zoneout": (0.2, 0.3), "recurrent_dropout": 0.4},
}


def variant_layer(dtype="float64", **options):
    """A layer whose norms are not at their initial values."""
    layer = lstm_layer(dtype, **options)
    rng = np.random.default_rng(8)
    for name, array in layer.parameters().items():
        if name.rpartition(".")[2] in NORMS:
            array += 0.2 * rng.standard_normal(array.shape)
    return layer


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_prediction_is_the_function_without_a_key(in_force, dtype, variant):
    layer = variant_layer(dtype, **VARIANTS[variant])
    x, (h_0, c_0) = sequences(dtype), random_states(layer)
    w = {name.removeprefix("0."): array for name, array in layer.parameters().items()}
    norms = tuple(w[name] for name in NORMS) if layer.layer_norm else None
    options = {"zoneout": layer.zoneout, "recurrent_dropout": layer.recurrent_dropout, "layer_norm": norms}
    (y, *_), _ = fg.lstm(x, w["w_ih"], w["w_hh"], w["b"], h_0=h_0[0], c_0=c_0[0], lengths=[4, 0, 7, 1], **options)
    found, _ = layer.run(x, (h_0, c_0), [4, 0, 7, 1])
    assert bits(found) == bits(y)


@pytest.mark.parametrize("variant", ["zoneout", "all"])
@pytest.mark.parametrize("n", [4, 40])
def test_evaluation_keeps_nothing_for_backward(in_force, dtype, monkeypatch, variant, n):
    """It has the bits of a run that does. 40 sequences: past the threading threshold, and several rows of a thread."""
    layer, x = variant_layer(dtype, num_layers=2, bidirectional=True, **VARIANTS[variant]), sequences(dtype, n)
    lengths, state, buffers = np.arange(n) % 8, random_states(layer, n), []
    forward = kernels().lstm_variant_forward

    def seen(*arguments):
        buffers.append(arguments[5])
        return forward(*arguments)

    monkeypatch.setattr(kernels(), "lstm_variant_forward", seen)
    y, _ = layer.run(x, state, lengths)
    assert len(buffers) == 4
    assert all(a is None for saved in buffers for name, a in saved._asdict().items() if name not in ("gates", "h"))
    kept, _ = layer.forward(x, False, lengths=lengths, state=state)
    assert all(a is not None for saved in buffers[4:] for a in saved[: 4 if variant == "zoneout" else 9])
    assert bits(y) == bits(kept)


@pytest.mark.emulated(0)
# the pools are those of every recurrent layer
@pytest.mark.parametrize(("variant", "pool"), list(zip(VARIANTS, (None, "last", "mean", None), strict=True)))
def test_gradients_in_training_are_central_differences(in_force, variant, pool):
    """Of two layers in two directions with lengths, each with masks of its own; every pass begins with the same generator."""
    layer = variant_layer(num_layers=2, bidirectional=True, pool=pool, **VARIANTS[variant])
    generators = copy.deepcopy([g.bit_generator.state for g in layer._generators()])
    x, state, lengths = sequences(), random_states(layer), [4, 0, 7, 1]

    def forward():
        for g, start in zip(layer._generators(), generators, strict=True):
            g.bit_generator.state = start
        return layer.forward(x, True, lengths=lengths, state=state)

    y, backward = forward()
    dy = np.random.default_rng(4).standard_normal(y.shape)
    dx, analytic = backward(dy).copy(), layer.grads.copy()

    def objective():
        return float((dy * forward()[0]).sum())

    assert_is_gradient(analytic, objective, layer.params)
    assert_is_gradient(dx, objective, x)


@pytest.mark.parametrize("variant", ["zoneout", "recurrent_dropout"])
def test_masks_are_for_training_alone_and_from_the_seed(in_force, dtype, variant):
    layer, twin = (variant_layer(dtype, bidirectional=True, **VARIANTS[variant]) for _ in range(2))
    x = sequences(dtype)
    first, _ = layer.forward(x, True)
    second, _ = layer.forward(x, True)
    assert bits(first) != bits(second)
    assert bits(twin.forward(x, True)[0]) == bits(first)
    assert bits(layer.forward(x, False)[0]) == bits(layer.predict(x)) == bits(twin.predict(x))


@pytest.mark.parametrize("variant", ["zoneout", "all"])
def test_masks_are_the_same_on_any_number_of_threads(cpu, dtype, variant):
    x = np.random.default_rng(2).standard_normal((60, 9, 3)).astype(dtype)

    def train():
        layer = fg.nn.LSTM(3, 40, dtype=dtype, seed=1, **VARIANTS[variant])
        y, backward = layer.forward(x, True)
        return [bits(y), bits(backward(np.ones_like(y))), bits(layer.grads)]

    first, *others = with_threads(train)
    assert all(other == first for other in others)


def test_names_shapes_and_initial_values(dtype):
    layer = lstm_layer(dtype, bidirectional=True, layer_norm=True)
    shapes = {name: array.shape for name, array in layer.parameters().items() if name.startswith("0.reverse.")}
    assert shapes == {
        f"0.reverse.{name}": shape
        for name, shape in {
            "w_ih": (3, 20), "w_hh": (5, 20), "b": (20,), "gamma_x": (20,), "gamma_h": (20,), "gamma_c": (5,), "beta_c": (5,),
        }.items()
    }  # fmt: skip
    for name, array in layer.parameters().items():
        if name.rpartition(".")[2] in NORMS:
            np.testing.assert_array_equal(array, 0 if name.endswith("beta_c") else 1)


def test_saved_and_loaded_a_trainer_goes_on_with_the_same_masks(tmp_path, dtype):
    def trainer():
        layers = lstm_layer(dtype, pool="last", **VARIANTS["all"]), fg.nn.Dense(5, 2, "softmax", dtype=dtype)
        return fg.Trainer(fg.nn.Sequential(*layers), optimizer=fg.optim.Adam(0.01))

    x, target = sequences(dtype, n=8), np.arange(8) % 2
    whole, first, second = trainer(), trainer(), trainer()
    for _ in range(3):
        whole.step(x, target), first.step(x, target)
    fg.save(tmp_path / "file", first)
    fg.load(tmp_path / "file", second)
    for _ in range(2):
        whole.step(x, target), second.step(x, target)
    assert bits(second.model.params) == bits(whole.model.params)


# emulated, its kernels are held against the reference, which learns
@pytest.mark.emulated(0)
def test_training_lowers_the_loss(in_force):
    model = fg.nn.Sequential(
        lstm_layer("float32", pool="last", **VARIANTS["all"]), fg.nn.Dense(5, 2, "softmax"), seed=0
    )
    trainer, x = fg.Trainer(model, optimizer=fg.optim.Adam(0.02)), sequences("float32", n=16)
    target = (x[:, -1, 0] > 0).astype(np.int64)
    losses = [float(trainer.step(x, target)) for _ in range(40)]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


ERRORS = {
    "a projection": ({"layer_norm": True, "proj_size": 2}, "come without a projection"),
    "peepholes": ({"zoneout": (0.1, 0.1), "peephole": True}, "come without peepholes"),
    "zoneout of 1": ({"zoneout": (1.0, 0.1)}, r"LSTM: zoneout\[0\] must be at least 0 and below 1, got 1"),
    "dropout of 1": ({"recurrent_dropout": 1.0}, "LSTM: recurrent_dropout must be at least 0 and below 1, got 1"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_an_option_out_of_range_is_named(case):
    options, text = ERRORS[case]
    with pytest.raises(ValueError, match=text):
        lstm_layer(**options)


@pytest.mark.parametrize("variant", ["layer_norm", "zoneout", "recurrent_dropout"])
def test_other_libraries_have_no_equal(tmp_path, variant):
    layer, name = lstm_layer("float32", **VARIANTS[variant]), "recurrent_dropout of g" if "drop" in variant else variant
    for library, convert in (
        ("PyTorch", fg.convert.to_torch),
        ("Keras", fg.convert.to_keras),
        ("ONNX", fg.convert.to_onnx),
    ):
        with pytest.raises(ValueError, match=f"the layer has {name}, which {library}'s LSTM has not"):
            convert(layer)
    pytest.importorskip("onnx")
    with pytest.raises(ValueError, match=f"has {name}, which ONNX's LSTM has not"):
        fg.export_onnx(layer, tmp_path / "model.onnx")
