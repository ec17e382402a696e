"""NaN, infinities and numbers at a dtype's ends go through all there is without a NumPy warning, whatever np.seterr says."""

import contextlib

import numpy as np
import pytest

import fastgrad as fg
from fastgrad.kernels.types import ACTIVATIONS
from fastgrad.nn import GRU, LSTM, BatchNorm, Dense, DenseChain, Dropout, Residual, Sequential

# (model, optimizer) of a trainer
TRAINED = {
    "chain": lambda dtype: (DenseChain([3, 5, 4], dtype=dtype, seed=0), fg.optim.Adam()),
    "layers": lambda dtype: (
        Sequential(
            BatchNorm(3, dtype=dtype), Residual(Dense(3, 3, "relu", dtype=dtype)), Dense(3, 4, dtype=dtype), seed=0
        ),
        fg.optim.SGD(0.1, 0.9),
    ),
    "lstm": lambda dtype: (
        Sequential(LSTM(3, 4, bidirectional=True, pool="mean", dtype=dtype), Dense(8, 4, dtype=dtype), seed=0),
        fg.optim.RMSprop(),
    ),
}
KINDS = "huge", "largest", "nan", "infinite", "tiny"


@pytest.fixture(autouse=True)
def raising():
    """A warning would be an error under pytest, and here underflow is one too."""
    with np.errstate(all="raise"):
        yield


@pytest.fixture(params=KINDS)
def values(request, dtype):
    """Arrays of shapes."""
    info, rng = np.finfo(dtype), np.random.default_rng(0)

    def draw(*shape):
        a = rng.standard_normal(shape).astype(dtype)
        if request.param == "huge":
            return np.where(a > 0, info.max, -info.max) * dtype.type(0.6)
        if request.param == "largest":
            return np.full(shape, info.max, dtype)
        if request.param == "tiny":
            return np.where(a > 0, info.tiny, -info.tiny)
        if request.param == "nan":
            a.flat[::3] = np.nan
        else:
            a.flat[::2], a.flat[1::5] = np.inf, -np.inf
        return a

    return draw


def run(function, *arguments, upstream, **options):
    y, backward = function(*arguments, **options)
    return backward(upstream(*y.shape)) if isinstance(y, np.ndarray) else backward(*(upstream(*a.shape) for a in y))


def test_every_activation_in_dense_layers_convolutions_and_batch_norm(in_force, values):
    v = values
    for f in ACTIVATIONS:
        run(fg.dense, v(4, 3), v(3, 5), v(5), activation=f, residual=v(4, 5), upstream=v)
        run(fg.conv2d, v(2, 4, 4, 3), v(3, 3, 3, 4), v(4), activation=f, padding=1, upstream=v)
        for training in (True, False):
            settings = {"activation": f, "training": training}
            run(fg.batch_norm, v(4, 3), v(3), v(3), v(3), abs(v(3)), residual=v(4, 3), upstream=v, **settings)


def test_residuals_whose_sum_is_no_part_of_a_layer(in_force, values, dtype):
    for activation in ("relu", "tanh", "gelu"):
        body = Sequential(Dense(3, 4, activation, dtype=dtype), Dense(4, 3, "relu", dtype=dtype))
        for block in (
            Residual(body, activation=activation),
            Residual(Dense(3, 3, dtype=dtype), Dense(3, 3, dtype=dtype)),
        ):
            model = Sequential(block, Dropout(0.5), seed=0)
            for _ in range(2):
                run(model.forward, values(5, 3), True, upstream=values)
                model.predict(values(5, 3))
                model.params[...] = values(model.params.size)


@pytest.mark.pairwise
@pytest.mark.parametrize("pool", [None, "last", "mean"])
def test_lstms(in_force, values, dtype, pool):
    v = values
    options = {"bidirectional": True, "num_layers": 2, "dropout": 0.3, "peephole": True, "proj_size": 2}
    model = LSTM(3, 4, pool=pool, dtype=dtype, seed=0, **options)
    for _ in range(2):
        for lengths in (None, [2, 0, 5]):
            run(model.forward, v(3, 5, 3), True, lengths=lengths, upstream=v)
            model.run(v(3, 5, 3), lengths=lengths)
        model.params[...] = v(model.params.size)
    arrays = v(3, 5, 3), v(3, 16), v(4, 16), v(16)
    _, backward = fg.lstm(*arrays, h_0=v(3, 4), c_0=v(3, 4), cells=True)
    backward(v(3, 5, 4), v(3, 4), v(3, 4), step_norms=np.empty(5))
    run(fg.lstm_cell, v(3, 3), v(3, 4), v(3, 4), v(3, 16), v(4, 16), upstream=v)


@pytest.mark.parametrize("layer_norm", [True, False])
def test_lstm_variants(in_force, values, dtype, layer_norm):
    v = values
    options = {"zoneout": (0.2, 0.3), "recurrent_dropout": 0.4}
    model = LSTM(3, 4, 2, True, layer_norm=layer_norm, **options, dtype=dtype, seed=0)
    for _ in range(2):
        for lengths in (None, [2, 0, 5]):
            run(model.forward, v(3, 5, 3), True, lengths=lengths, upstream=v)
        model.params[...] = v(model.params.size)
    norms = (v(16), v(16), v(4), v(4)) if layer_norm else None
    _, backward = fg.lstm(v(3, 5, 3), v(3, 16), v(4, 16), v(16), layer_norm=norms, **options, key=1)
    backward(v(3, 5, 4), v(3, 4), v(3, 4), step_norms=np.empty(5))


@pytest.mark.pairwise
@pytest.mark.parametrize("reset_after", [True, False])
def test_grus(in_force, values, dtype, reset_after):
    v = values
    model = GRU(3, 4, 2, True, 0.3, reset_after, dtype=dtype, seed=0)
    for _ in range(2):
        for lengths in (None, [2, 0, 5]):
            run(model.forward, v(3, 5, 3), True, lengths=lengths, upstream=v)
        model.params[...] = v(model.params.size)
    arrays = v(3, 5, 3), v(3, 12), v(4, 12), v(12)
    _, backward = fg.gru(*arrays, h_0=v(3, 4), reset_after=reset_after)
    backward(v(3, 5, 4), v(3, 4), step_norms=np.empty(5))
    run(fg.gru_cell, v(3, 3), v(3, 4), v(3, 12), v(4, 12), reset_after=reset_after, upstream=v)


def test_layer_norms(in_force, values):
    v = values
    for activation in ("identity", "relu", "gelu"):
        run(fg.layer_norm, v(4, 7), v(7), v(7), activation=activation, residual=v(4, 7), upstream=v)


def test_pools_dropout_and_losses(in_force, values):
    v = values
    run(fg.max_pool2d, v(2, 4, 4, 3), 2, upstream=v)
    run(fg.avg_pool2d, v(2, 4, 4, 3), 3, stride=2, padding=1, include_pad=False, upstream=v)
    run(fg.global_avg_pool2d, v(2, 4, 4, 3), upstream=v)
    for reduction in ("mean", "none"):
        fg.cross_entropy(v(4, 3), np.zeros(4, np.int64), reduction)
        for loss in (fg.cross_entropy, fg.binary_cross_entropy, fg.mse, fg.poisson_nll):
            loss(v(4, 3), v(4, 3), reduction)


def test_clipping_pruning_and_health_of_arrays(in_force, values):
    v = values
    for most in (1e-300, 1.0, 1e300):
        for p in (0.5, 2, np.inf):
            for on_nonfinite in ("skip", "ignore"):
                fg.clip_grad_norm([v(4, 3), v(2)], most, p, on_nonfinite=on_nonfinite)
            fg.clip_grad_norm_each([v(4, 3), v(2)], most, p)
        fg.clip_grad_adaptive([v(4, 3)], [v(4, 3)], most, most)
        fg.clip_grad_value([v(4, 3)], most)
        for per in ("all", "array", "unit"):
            fg.project_weights([v(4, 3)], most, per)
        with contextlib.suppress(ValueError):  # NaN has no magnitude
            fg.prune([v(4, 3)], threshold=most)
    str(fg.health.of([v(4, 3), v(3)]))


@pytest.mark.pairwise
@pytest.mark.parametrize("reduce", [None, lambda values: None], ids=["alone", "reduced"])
@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy", "mse", "poisson_nll"])
@pytest.mark.parametrize("trained", TRAINED)
def test_trainers(in_force, values, dtype, trained, loss, reduce):
    v, (model, optimizer) = values, TRAINED[trained](dtype)
    trainer = fg.Trainer(model, loss, optimizer, clip_norm=1.0, health=True, reduce=reduce)
    x, y = v(6, 5, 3) if model.recurrent else v(6, 3), np.zeros(6, np.int64) if loss == "cross_entropy" else v(6, 4)
    with contextlib.suppress(FloatingPointError):
        trainer.fit(x, y, 2, 3, validation=(x, y))
    trainer.evaluate(x, y)
    trainer.predict(x)
    with contextlib.suppress(RuntimeError):  # no step could be looked at
        str(trainer.health())


def test_weights_that_a_dtype_cannot_hold(in_force):
    fg.init.constant((2, 2), 0, "float32", value=1e39)
    LSTM(2, 3, forget_bias=1e39)
    with pytest.raises(ValueError, match=r"Dense: init must return finite numbers \(2, 2\) of float32"):
        Dense(2, 2, init=("normal", 1e39))
    layer = LSTM(2, 3)
    largest = {k: np.full_like(a, np.finfo(np.float32).max) for k, a in fg.convert.to_torch(layer).items()}
    fg.convert.from_torch(layer, largest)
    assert np.isinf(layer.parameters()["0.b"]).all()


def test_a_schedule_past_all_numbers_is_the_error_of_a_schedule():
    with pytest.raises(
        ValueError, match="Exponential: the rate of update 100001 must be at least 0 and finite, got inf"
    ):
        fg.optim.SGD(fg.schedule.Exponential(1.0, 1.1)).rate(100_000)
    assert fg.init.gain(("leaky_relu", 1e300)) == 0
