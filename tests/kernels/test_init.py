"""Initial weights: the same bits everywhere, their distributions, what they count as fans, and their gains."""

import functools
import math

import numpy as np
import pytest
from arrays import bits, unwritten, with_threads
from error_messages import refuses
from scipy import stats

import fastgrad as fg
from fastgrad.kernels import reference
from fastgrad.kernels.reference.dropout import random

pytestmark = pytest.mark.cuda

KEY = 0xFEDCBA9876543210
# nothing, one, pairs with and without a last one, blocks and the values around them, several threads' shares
SIZES = 0, 1, 2, 7, 1001, 1023, 1024, 1025, 200_003
DRAWS = {"uniform": (-1.5, 0.25), "normal": (0.3, 1.7)}


def drawn(backend, name, size, dtype="float64", key=KEY, arguments=None):
    out = unwritten(size, dtype)
    getattr(backend, name)(out, key, *(arguments or DRAWS[name]))
    return out


@pytest.mark.parametrize("size", SIZES)
def test_values_have_the_same_bits_on_every_backend_in_both_dtypes(backend, size):
    for name in DRAWS:
        double = drawn(backend, name, size)
        assert bits(double) == bits(drawn(reference, name, size))
        assert bits(drawn(backend, name, size, "float32")) == bits(double.astype("float32"))


@pytest.mark.parametrize("name", DRAWS)
def test_a_value_is_the_same_whatever_the_size(backend, name):
    every = drawn(backend, name, SIZES[-1])
    for size in SIZES[:-1]:
        assert bits(drawn(backend, name, size)) == bits(every[:size])


@pytest.mark.parametrize("name", DRAWS)
def test_the_same_on_any_number_of_threads(backend, name, dtype):
    assert len(set(with_threads(lambda: bits(drawn(backend, name, 200_003, dtype))))) == 1


def test_a_normal_value_is_box_and_mullers_of_its_number(backend):
    numbers = random(50_000, KEY)
    u = ((numbers >> np.uint64(33)).astype(np.float32) + np.float32(1)).astype(np.float64) / 2**31
    low = numbers & np.uint64(0xFFFFFFFF)
    angle = low.astype(np.uint32).view(np.int32) * (math.pi / 4 / 2**31)
    angle = np.where(low & np.uint64(1), math.pi / 2 - angle, angle) + np.where(low & np.uint64(2), math.pi, 0)
    radius = np.sqrt(-2 * np.log(u))
    expected = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
    found = drawn(backend, "normal", 100_000, arguments=(0.0, 1.0))
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-9)


def test_the_ends_of_the_radius_and_the_angle_are_finite():
    ends = np.array([h << 32 | l for h in (0, 1, 2**31 - 1, 2**31, 2**32 - 1) for l in range(4)], np.uint64)
    z = np.array(reference.init.normals(ends))
    assert np.isfinite(z).all()
    assert np.abs(z).max() < 6.6
    assert (np.hypot(*z)[-4:] < 1e-3).all()


def test_normal_values_pass_tests_of_their_distribution(cpu):
    z = drawn(cpu, "normal", 2_000_000, arguments=(0.0, 1.0))
    assert stats.kstest(z, "norm").pvalue > 1e-3
    # each half of the pairs, and the two against each other, and neighbours: those of a pair are at right angles
    for part in (z[::2], z[1::2], z[2::3]):
        assert stats.kstest(part, "norm").pvalue > 1e-3
    for shift in (1, 2, 3, 1024):
        for power in (1, 2):
            assert abs(np.corrcoef(z[:-shift] ** power, z[shift:] ** power)[0, 1]) < 5 / math.sqrt(z.size)
    angles = np.arctan2(z[::2], z[1::2])
    assert stats.kstest(angles, stats.uniform(-math.pi, 2 * math.pi).cdf).pvalue > 1e-3
    for power, moment in enumerate([0, 1, 0, 3, 0, 15], 1):
        spread = math.sqrt((math.prod(range(1, 2 * power, 2)) - moment**2) / z.size)
        assert abs((z**power).mean() - moment) < 5 * spread
    for sigma in (2, 3, 4, 4.5):
        expected = 2 * stats.norm.sf(sigma) * z.size
        assert abs((np.abs(z) > sigma).sum() - expected) < 5 * math.sqrt(expected)


def test_uniform_values_pass_tests_of_their_distribution(cpu):
    u = drawn(cpu, "uniform", 1_000_000, arguments=(-2.0, 3.0))
    assert u.min() >= -2
    assert u.max() <= 3
    assert stats.kstest(u, stats.uniform(-2, 5).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 5 / math.sqrt(u.size)
    counts = np.histogram2d(u[::2], u[1::2], bins=16)[0]
    assert stats.chisquare(counts.ravel()).pvalue > 1e-3


# standard deviation and, of uniform ones, the limit, of weights (300, 200)
FORMULAS = {
    "zeros": (0, 0),
    "constant": (0, 0),
    "normal": (0.05, None),
    # limit is that of truncated values too
    "truncated_normal": (0.05 * stats.truncnorm(-2, 2).std(), 0.1),
    "uniform": (0.05 / math.sqrt(3), 0.05),
    "fan_in_uniform": (1 / math.sqrt(900), 1 / math.sqrt(300)),
    "xavier_uniform": (math.sqrt(2 / 500), math.sqrt(6 / 500)),
    "xavier_normal": (math.sqrt(2 / 500), None),
    "he_uniform": (math.sqrt(2 / 300), math.sqrt(6 / 300)),
    "he_normal": (math.sqrt(2 / 300), None),
    "lecun_uniform": (math.sqrt(1 / 300), math.sqrt(3 / 300)),
    "lecun_normal": (math.sqrt(1 / 300), None),
    "orthogonal": (math.sqrt(1 / 300), None),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_weights_have_the_mean_deviation_and_distribution_of_their_formula(in_force, name, dtype):
    deviation, limit = FORMULAS[name]
    w = getattr(fg.init, name)((300, 200), np.random.default_rng(1), dtype)
    assert w.dtype == dtype
    assert w.shape == (300, 200)
    w = w.astype("float64").ravel()
    assert abs(w.mean()) <= 5 * deviation / math.sqrt(w.size)
    assert w.std() == pytest.approx(deviation, rel=0.015)
    if deviation:
        distribution = stats.norm(0, deviation) if limit is None else stats.uniform(-limit, 2 * limit)
        if name == "truncated_normal":
            distribution = stats.truncnorm(-2, 2, 0, limit / 2)
        assert stats.kstest(w, distribution.cdf).pvalue > 1e-3


def test_all_names_are_tested_and_known_to_layers():
    assert set(FORMULAS) == set(fg.init.INITS)
    for name, function in fg.init.INITS.items():
        w = fg.nn.Dense(30, 20, init=name, dtype="float64", seed=3).w
        assert bits(w) == bits(function((30, 20), 3))


@pytest.mark.parametrize("name", FORMULAS)
def test_weights_have_the_same_bits_on_every_backend(name):
    found = []
    for backend in ("numpy", "cpu"):
        with fg.use_backend(backend):
            found.append(bits(getattr(fg.init, name)((3, 3, 8, 24), 5)))
    assert found[0] == found[1]


def test_a_seed_is_its_generator_and_another_gives_other_weights():
    he_normal = fg.init.he_normal
    assert bits(he_normal((5, 6), 7)) == bits(he_normal((5, 6), np.random.Generator(np.random.PCG64(7))))
    assert bits(he_normal((5, 6), 7)) != bits(he_normal((5, 6), 8))
    rng = np.random.default_rng(7)
    assert bits(he_normal((5, 6), rng)) != bits(he_normal((5, 6), rng))


def test_options_move_the_values():
    assert (fg.init.constant((2, 3), 0, value=-1.5) == -1.5).all()
    w = fg.init.normal((200, 300), 0, mean=1.0, std=0.1)
    assert w.mean() == pytest.approx(1, abs=0.002)
    assert w.std() == pytest.approx(0.1, rel=0.01)
    assert (fg.init.normal((5,), 0, mean=2.0, std=0.0) == 2).all()
    assert 0.299 < np.abs(fg.init.uniform((100, 100), 0, limit=0.3)).max() <= 0.3
    limit = 2 / math.sqrt(50)
    assert 0.99 * limit < np.abs(fg.init.fan_in_uniform((50, 100), 0, c=2.0)).max() <= limit


def test_truncated_values_are_normal_ones_but_for_those_drawn_again(in_force):
    w, far = (
        fg.init.truncated_normal((200, 300), 4, std=0.5, mean=1.0),
        fg.init.normal((200, 300), 4, std=0.5, mean=1.0),
    )
    near = np.abs(far - 1) <= 1
    assert 0.03 < 1 - near.mean() < 0.06
    np.testing.assert_allclose(w[near], far[near], rtol=1e-12, atol=1e-15)
    assert np.abs(w - 1).max() <= 1
    assert bits(fg.init.truncated_normal((7, 5), 1, "float32")) == bits(
        fg.init.truncated_normal((7, 5), 1).astype("float32")
    )
    assert (fg.init.truncated_normal((5,), 0, mean=2.0, std=0.0) == 2).all()
    assert fg.init.truncated_normal((0, 5), 0).shape == (0, 5)


@pytest.mark.parametrize("shape", [(30, 20), (3, 5, 8, 16)])
@pytest.mark.parametrize("name", ["he_normal", "he_uniform"])
def test_fan_out_divides_by_the_other_fan_as_pytorch_does(torch, name, shape):
    init, (fan_in, fan_out) = getattr(fg.init, name), fg.init.fans(shape)
    by_in, by_out = (init(shape, 3, activation="tanh", mode=mode) for mode in ("fan_in", "fan_out"))
    np.testing.assert_allclose(by_out, by_in * math.sqrt(fan_in / fan_out), rtol=1e-12)
    weights = torch.empty(*(shape[::-1] if len(shape) == 2 else (16, 8, 3, 5)))
    theirs = {"he_normal": torch.nn.init.kaiming_normal_, "he_uniform": torch.nn.init.kaiming_uniform_}[name]
    theirs(weights, mode="fan_out", nonlinearity="tanh", generator=torch.Generator().manual_seed(0))
    assert by_out.std() == pytest.approx(weights.std().item(), rel=0.15)


@pytest.mark.parametrize(
    ("pair", "function"),
    [
        (("constant", 0.5), functools.partial(fg.init.constant, value=0.5)),
        (("normal", 0.01), functools.partial(fg.init.normal, std=0.01)),
        (("truncated_normal", 0.01), functools.partial(fg.init.truncated_normal, std=0.01)),
        (("he_normal", "fan_out"), functools.partial(fg.init.he_normal, mode="fan_out")),
        (("he_uniform", "fan_out"), functools.partial(fg.init.he_uniform, mode="fan_out")),
        (("uniform", 0.2), functools.partial(fg.init.uniform, limit=0.2)),
        (("fan_in_uniform", 2), functools.partial(fg.init.fan_in_uniform, c=2)),
        (("orthogonal", 1.5), functools.partial(fg.init.orthogonal, gain=1.5)),
    ],
)
def test_a_pair_is_a_name_and_its_option(pair, function):
    assert bits(fg.nn.Dense(9, 4, init=pair, seed=1).params) == bits(fg.nn.Dense(9, 4, init=function, seed=1).params)
    assert bits(fg.nn.Conv2d(3, 4, 3, init=pair, seed=1).w) == bits(function((3, 3, 3, 4), 1, "float32"))


@pytest.mark.parametrize("shape", [(30, 20), (3, 5, 8, 16), (3, 3, 4, 16)])
def test_fans_are_pytorchs(torch, shape):
    # (C_out, C_in, ...) there
    weight = torch.empty(shape[-1], shape[-2], *shape[:-2])
    assert fg.init.fans(shape) == torch.nn.init._calculate_fan_in_and_fan_out(weight)


def test_fans_of_an_lstm_are_those_of_one_gate(in_force):
    assert fg.init.fans((10, 80), gates=4) == (10, 20)
    w = fg.init.xavier_uniform((100, 800), 1, gates=4)
    limit = math.sqrt(6 / 300)
    assert 0.99 * limit < np.abs(w).max() <= limit
    assert fg.init.xavier_normal((100, 800), 1, gates=4).std() == pytest.approx(math.sqrt(2 / 300), rel=0.02)


@pytest.mark.parametrize("activation", ["identity", "sigmoid", "tanh", "relu", "leaky_relu", "selu"])
def test_gains_are_pytorchs(torch, activation):
    expected = torch.nn.init.calculate_gain({"identity": "linear"}.get(activation, activation))
    assert fg.init.gain(activation) == pytest.approx(expected, rel=1e-15)
    for name, usual in [("he_normal", "relu"), ("he_uniform", "relu"), ("xavier_normal", "identity")]:
        init = fg.init.INITS[name]
        expected = init((20, 30), 4) * fg.init.gain(activation) / fg.init.gain(usual)
        np.testing.assert_allclose(init((20, 30), 4, activation=activation), expected, rtol=1e-14, atol=1e-15)


def test_a_leaky_relus_gain_is_that_of_its_slope(torch):
    assert fg.init.gain(("leaky_relu", 0.2)) == pytest.approx(
        torch.nn.init.calculate_gain("leaky_relu", 0.2), rel=1e-15
    )


@pytest.mark.parametrize(("name", "activation"), [("he_normal", "relu"), ("xavier_normal", "tanh")])
def test_the_spread_of_values_holds_through_deep_nets(name, activation):
    init = functools.partial(getattr(fg.init, name), activation=activation)
    chain = fg.nn.DenseChain([256] * 31, activation, init=init, dtype="float64", seed=1)
    x = np.random.default_rng(0).standard_normal((64, 256))
    assert 0.3 < np.sqrt(np.mean(chain.predict(x) ** 2)) < 3
    small = fg.nn.DenseChain([256] * 31, activation, init=("normal", 0.01), dtype="float64", seed=1)
    assert np.abs(small.predict(x)).max() < 1e-15


@pytest.mark.parametrize("shape", [(40, 40), (50, 20), (20, 50), (3, 3, 4, 16), (3, 3, 4, 64), (1, 1)])
def test_orthogonal_columns_or_rows_are_orthonormal(in_force, shape):
    w = fg.init.orthogonal(shape, 2, gain=1.5).reshape(-1, shape[-1]) / 1.5
    product = w.T @ w if w.shape[0] >= w.shape[1] else w @ w.T
    np.testing.assert_allclose(product, np.eye(len(product)), atol=1e-12)


def test_orthogonal_matrices_turn_no_way_more_often_than_another(cpu):
    determinants = [np.linalg.det(fg.init.orthogonal((3, 3), seed)) for seed in range(200)]
    assert abs(np.sum(determinants)) < 5 * math.sqrt(200)
    corners = np.array([fg.init.orthogonal((3, 3), seed)[0, 0] for seed in range(2000)])
    # a coordinate of a point on the sphere
    assert stats.kstest(corners, stats.uniform(-1, 2).cdf).pvalue > 1e-3


def test_orthogonal_gates_are_orthogonal_each(in_force, dtype):
    w = fg.init.orthogonal((16, 64), 3, dtype, gates=4)
    for gate in np.split(w, 4, axis=1):
        np.testing.assert_allclose(gate.T @ gate, np.eye(16), atol=1e-12 if dtype == np.float64 else 1e-6)
    assert bits(w[:, :16]) != bits(w[:, 16:32])


def test_weight_decay_is_the_gradient_of_an_l2_term_in_the_loss(rng):
    x, y = rng.standard_normal((8, 5)), rng.standard_normal((8, 3))
    decay, lr = 0.3, 0.1
    dense, plain = (fg.nn.Dense(5, 3, init=("normal", 0.5), dtype="float64", seed=2) for _ in range(2))
    first = dense.params.copy()
    fg.Trainer(dense, loss="mse", optimizer=fg.optim.SGD(lr, weight_decay=decay)).step(x, y)
    fg.Trainer(plain, loss="mse", optimizer=fg.optim.SGD(lr)).step(x, y)
    # d/dp of decay / 2 p^2
    np.testing.assert_allclose(dense.params, plain.params - lr * decay * first, rtol=1e-13)


KNOWN = ", ".join(FORMULAS)
SHAPES = "shape must be (C_in, C_out) or (kh, kw, C_in, C_out), each at least 1, got"


@pytest.mark.parametrize(
    ("error", "message", "name", "arguments", "options"),
    [
        (ValueError, f"he_normal: {SHAPES} (3,)", "he_normal", ((3,), 0), {}),
        (ValueError, f"xavier_uniform: {SHAPES} (3, 0)", "xavier_uniform", ((3, 0), 0), {}),
        (ValueError, f"orthogonal: {SHAPES} 3", "orthogonal", (3, 0), {}),
        (TypeError, "he_normal: an axis of shape must be an integer, got float", "he_normal", ((3, 2.5), 0), {}),
        (TypeError, "normal: shape must be a list or tuple, got int", "normal", (5, 0), {}),
        (ValueError, "normal: shape[1] must be an integer of at least 0, got -1", "normal", ((2, -1), 0), {}),
        (TypeError, "normal: rng, if no numpy Generator, must be an integer, got str", "normal", ((5,), "0"), {}),
        (ValueError, "normal: std must be at least 0 and finite, got -1", "normal", ((5,), 0), {"std": -1}),
        (ValueError, "normal: mean must be finite, got nan", "normal", ((5,), 0), {"mean": math.nan}),
        (TypeError, "constant: value must be a number, got str", "constant", ((5,), 0), {"value": "1"}),
        (ValueError, "truncated_normal: std must be at least 0 and finite, got -1", "truncated_normal", ((5,), 0), {"std": -1}),
        (ValueError, "he_uniform: mode must be one of fan_in, fan_out; got 'both'", "he_uniform", ((5, 5), 0), {"mode": "both"}),
        (ValueError, "uniform: limit must be at least 0 and finite, got inf", "uniform", ((5,), 0), {"limit": math.inf}),
        (ValueError, "fan_in_uniform: c must be at least 0 and finite, got -1", "fan_in_uniform", ((5, 5), 0), {"c": -1}),
        (ValueError, "orthogonal: gain must be at least 0 and finite, got -1", "orthogonal", ((5, 5), 0), {"gain": -1}),
        (ValueError, "xavier_normal: gates must divide the last axis, 6, got 4", "xavier_normal", ((5, 6), 0), {"gates": 4}),
        (ValueError, "normal: dtype must be float32 or float64, got 'int32'", "normal", ((5,), 0, "int32"), {}),
        (
            ValueError,
            "he_normal: activation must be one with a known gain, identity, relu, leaky_relu, sigmoid, tanh, selu; got 'gelu'",
            "he_normal", ((5, 6), 0), {"activation": "gelu"},
        ),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(error, message, name, arguments, options):
    refuses(error, message, getattr(fg.init, name), *arguments, **options)


@pytest.mark.parametrize(
    ("error", "message", "init"),
    [
        (ValueError, f"Dense: init must be one of {KNOWN}; got 'glorot'", "glorot"),
        (ValueError, f"Dense: init must be one of {KNOWN}; got 3", 3),
        (ValueError, "Dense: init 'lecun_normal' takes no option; constant, normal, truncated_normal, uniform, fan_in_uniform, "
         "he_uniform, he_normal, orthogonal do", ("lecun_normal", 2)),
        (ValueError, "Dense: the mode of init 'he_normal' must be one of fan_in, fan_out; got 2", ("he_normal", 2)),
        (TypeError, "Dense: the std of init 'normal' must be a number, got str", ("normal", "0.1")),
        (ValueError, "normal: std must be at least 0 and finite, got -1.0", ("normal", -1.0)),
    ],
)  # fmt: skip
def test_a_layer_refuses_unknown_inits(error, message, init):
    refuses(error, message, fg.nn.Dense, 4, 3, init=init)
