"""fastgrad.jax against the same functions written in jax.numpy, and their gradients by jax.grad."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from backends import BACKENDS

pytest.importorskip("jax", "0.5")

import jax
import jax.numpy as jnp
from jax.test_util import check_grads
from lstm_variants import NORMS, drawn

import fastgrad as fg
import fastgrad.jax as fgj

TOLERANCE = {"rtol": 2e-5, "atol": 2e-5}


def normal(*shape, scale=1.0, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).standard_normal(shape).astype("f4") * np.float32(scale))


def assert_alike(results, expected, **tolerance):
    results, expected = jax.tree.leaves(results), jax.tree.leaves(expected)
    assert len(results) == len(expected)
    for a, b in zip(results, expected, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, **(tolerance or TOLERANCE))


def whole(outputs):
    """A number of which every output's gradient is another."""
    return sum((jnp.sin(a) * (1 + i)).sum() for i, a in enumerate(jax.tree.leaves(outputs)))


def assert_same_function(ours, theirs, *arrays, **tolerance):
    """Values and the gradients of all arrays, under jit and without, on every backend. XLA compiles theirs once, which takes a second."""

    def of(f):
        gradient = jax.grad(lambda *a: whole(f(*a)), tuple(range(len(arrays))))
        return lambda *a: (f(*a), gradient(*a))

    expected = jax.jit(of(theirs))(*arrays)
    for name in BACKENDS:
        with fg.use_backend(name):
            assert_alike(jax.jit(of(ours))(*arrays), expected, **tolerance)
            assert_alike(of(ours)(*arrays), expected, **tolerance)


ACTIVATIONS = {
    "identity": lambda z: z,
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "gelu": lambda z: jax.nn.gelu(z, approximate=False),
    "silu": jax.nn.silu,
    "softmax": jax.nn.softmax,
}


def chain(x, weights, biases, activations):
    for w, b, f in zip(weights, biases, activations, strict=True):
        x = ACTIVATIONS[f](x @ w + (0 if b is None else b))
    return x


@pytest.mark.parametrize(
    "activations", [["relu", "identity"], ["gelu", "tanh"], ["silu", "softmax"], ["sigmoid", "gelu"]]
)
@pytest.mark.parametrize("n", [1, 33])
def test_dense_chain(activations, n):
    x, ws, bs = normal(n, 9), [normal(9, 17, scale=0.3), normal(17, 5, scale=0.3)], [normal(17), normal(5)]
    assert_same_function(
        lambda *a: fgj.dense_chain(*a, activations), lambda *a: chain(*a, activations), x, ws, bs, rtol=1e-4, atol=1e-4
    )
    for f in (fgj.dense_chain, chain):
        assert f(x, ws, [bs[0], None], activations).shape == (n, 5)
    assert_alike(fgj.dense_chain(x, ws, [None, bs[1]], activations), chain(x, ws, [None, bs[1]], activations))
    assert_alike(fgj.dense_chain(x, ws, None, activations), chain(x, ws, [None, None], activations))


def test_an_empty_batch():
    ws = [normal(9, 17), normal(17, 5)]
    y, gradients = jax.value_and_grad(lambda ws: fgj.dense_chain(jnp.zeros((0, 9)), ws, None, "relu").sum())(ws)
    assert y == 0
    assert not any(g.any() for g in gradients)


def lstm(x, w_ih, w_hh, b=None, *, h_0=None, c_0=None, lengths=None, reverse=False, peephole=None, w_proj=None):
    hidden = w_ih.shape[1] // 4
    n, steps = x.shape[:2]
    h = jnp.zeros((n, w_hh.shape[0])) if h_0 is None else h_0
    c = jnp.zeros((n, hidden)) if c_0 is None else c_0
    p = jnp.zeros((3, hidden)) if peephole is None else peephole
    lengths = jnp.full(n, steps) if lengths is None else lengths
    outputs = [None] * steps
    for t in range(steps)[:: -1 if reverse else 1]:
        i, f, g, o = jnp.split(x[:, t] @ w_ih + h @ w_hh + (0 if b is None else b), 4, axis=1)
        new_c = jax.nn.sigmoid(f + p[1] * c) * c + jax.nn.sigmoid(i + p[0] * c) * jnp.tanh(g)
        new_h = jax.nn.sigmoid(o + p[2] * new_c) * jnp.tanh(new_c)
        new_h = new_h if w_proj is None else new_h @ w_proj
        live = (t < lengths)[:, None]
        h, c = jnp.where(live, new_h, h), jnp.where(live, new_c, c)
        outputs[t] = jnp.where(live, new_h, 0)
    return jnp.stack(outputs, axis=1), h, c


def lstm_arrays(projected=None, **more):
    n, steps, channels, hidden = 5, 4, 3, 8
    arrays = {
        "x": normal(n, steps, channels),
        "w_ih": normal(channels, 4 * hidden, scale=0.5),
        "w_hh": normal(projected or hidden, 4 * hidden, scale=0.5),
    }
    sizes = {
        "b": (32,),
        "h_0": (n, projected or hidden),
        "c_0": (n, hidden),
        "peephole": (3, hidden),
        "w_proj": (hidden, projected),
    }
    return arrays | {name: normal(*sizes[name], scale=0.5, seed=1) for name in more if more[name]}


@pytest.mark.parametrize(
    "given", [{}, {"b": 1, "h_0": 1, "c_0": 1}, {"c_0": 1, "peephole": 1}, {"b": 1, "w_proj": 1, "h_0": 1}]
)
@pytest.mark.parametrize(("lengths", "reverse"), [(None, False), ([4, 3, 0, 1, 2], True)])
def test_lstm(given, lengths, reverse):
    arrays = lstm_arrays(6 if "w_proj" in given else None, **given)
    lengths = None if lengths is None else np.array(lengths)
    names = list(arrays)
    ours, theirs = (
        lambda *a, f=f: f(**dict(zip(names, a, strict=True)), lengths=lengths, reverse=reverse)
        for f in (fgj.lstm, lstm)
    )
    assert_same_function(ours, theirs, *arrays.values())


VARIANTS = {
    "layer_norm": ({}, ("b",)),
    "layer_norm_no_bias": ({"eps": 0.1}, ("h_0", "c_0")),
    "zoneout": ({"zoneout": (0.3, 0.2)}, ("b", "c_0")),
    "zoneout_in_evaluation": ({"zoneout": (0.3, 0.2)}, ()),
    "all": ({"zoneout": (0.3, 0.2), "recurrent_dropout": 0.4}, ("b", "h_0", "c_0")),
}


def factors_of(key, zoneout, dropout, n, steps, hidden):
    """m, k_c and k_h (N, T, H) of lstm_variant, from the words that jax.random gives for the key."""
    if key is None:
        return [jnp.full((n, steps, hidden), value) for value in (1, 1 - zoneout[1], 1 - zoneout[0])]
    high, low = (int(word) for word in jax.random.bits(key, (2,), jnp.uint32))
    rates = dropout, zoneout[1], zoneout[0]
    keeps = [drawn(high << 32 | low, kind, rate, n, steps, hidden) for kind, rate in enumerate(rates)]
    return [jnp.asarray(keeps[0] / (1 - dropout), "f4"), *(jnp.asarray(k, "f4") for k in keeps[1:])]


def lstm_variant(x, w_ih, w_hh, b=0, gamma_x=None, gamma_h=None, gamma_c=None, beta_c=0, h_0=None, c_0=None, *,
                 lengths, reverse, factors, eps):  # fmt: skip
    """By lax.scan."""

    def norm(a, gamma, beta=0):
        return a if gamma is None else layer_norm(a, gamma, beta, eps=eps)

    def step(state, of_step):
        (h, c), (t, x_t, m, k_c, k_h) = state, of_step
        i, f, g, o = jnp.split(norm(x_t @ w_ih, gamma_x) + norm(h @ w_hh, gamma_h) + b, 4, axis=1)
        cell = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g) * m
        new_h = k_h * jax.nn.sigmoid(o) * jnp.tanh(norm(cell, gamma_c, beta_c)) + (1 - k_h) * h
        new_c, live = k_c * cell + (1 - k_c) * c, (t < lengths)[:, None]
        return (jnp.where(live, new_h, h), jnp.where(live, new_c, c)), jnp.where(live, new_h, 0)

    (n, steps, _), hidden = x.shape, w_hh.shape[0]
    zero = jnp.zeros((n, hidden))
    start = zero if h_0 is None else h_0, zero if c_0 is None else c_0
    by_step = jnp.arange(steps), *(jnp.moveaxis(a, 1, 0) for a in (x, *factors))
    (h_n, c_n), y = jax.lax.scan(step, start, by_step, reverse=reverse)
    return jnp.moveaxis(y, 0, 1), h_n, c_n


def ours_of_variant(arrays, **settings):
    """fgj.lstm, whose layer norm has its arrays in a tuple."""
    norms = tuple(arrays[name] for name in NORMS) if "gamma_x" in arrays else None
    return fgj.lstm(**{n: a for n, a in arrays.items() if n not in NORMS}, layer_norm=norms, **settings)


def variant_arrays(norms, names):
    arrays = lstm_arrays(**dict.fromkeys(names, 1))
    shapes = {"gamma_x": 32, "gamma_h": 32, "gamma_c": 8, "beta_c": 8} if norms else {}
    return arrays | {name: normal(size, scale=0.3, seed=2) + (name != "beta_c") for name, size in shapes.items()}


# lengths and direction are the kernels', who know nothing of JAX; XLA compiles each case anew
@pytest.mark.parametrize(
    ("variant", "lengths", "reverse"),
    [*((variant, None, False) for variant in VARIANTS), ("all", [4, 3, 0, 1, 2], True)],
)
def test_lstm_variants(variant, lengths, reverse):
    options, names = VARIANTS[variant]
    arrays, key = variant_arrays("zoneout" not in variant, names), jax.random.key(7)
    key = None if variant in ("layer_norm", "layer_norm_no_bias", "zoneout_in_evaluation") else key
    rates = options.get("zoneout", (0, 0)), options.get("recurrent_dropout", 0)
    factors = factors_of(key, *rates, 5, 4, 8)
    settings = {"reverse": reverse, "lengths": None if lengths is None else np.array(lengths)}
    theirs = {**settings, "lengths": np.array(lengths or [4] * 5), "factors": factors, "eps": options.get("eps", 1e-5)}
    assert_same_function(
        lambda *a: ours_of_variant(dict(zip(arrays, a, strict=True)), key=key, **settings, **options),
        lambda *a: lstm_variant(**dict(zip(arrays, a, strict=True)), **theirs),
        *arrays.values(),
        rtol=1e-4,
        atol=1e-4,
    )


def test_keys_of_an_lstm_may_be_traced_and_mapped():
    arrays, keys = variant_arrays(True, ("b",)), jax.random.split(jax.random.key(3), 3)
    settings = {"zoneout": (0.3, 0.2), "recurrent_dropout": 0.4}

    def gradient(arrays, key):
        return jax.grad(lambda a: whole(ours_of_variant(a, key=key, **settings)))(arrays)

    mapped = jax.jit(jax.vmap(gradient, (None, 0)))(arrays, keys)
    each = [gradient(arrays, key) for key in keys]
    assert_alike(mapped, jax.tree.map(lambda *a: jnp.stack(a), *each))
    assert not np.allclose(each[0]["w_ih"], each[1]["w_ih"])
    # keys of the older kind, and another generator's
    assert_alike(gradient(arrays, jax.random.key_data(keys[1])), each[1])
    assert np.isfinite(gradient(arrays, jax.random.key(3, impl="rbg"))["w_ih"]).all()


def test_a_variant_that_does_not_fit_is_named():
    arrays = variant_arrays(False, ())
    for options, text in (
        ({"zoneout": (0.1, 1)}, r"lstm: zoneout\[1\] must be at least 0 and below 1"),
        ({"layer_norm": [normal(32)] * 3}, "lstm: layer_norm must have length 4"),
        ({"layer_norm": [normal(32)] * 4}, r"lstm: gamma_c of layer_norm must be \(H,\) = \(8,\)"),
        ({"zoneout": (0.1, 0.1), "peephole": normal(3, 8)}, "lstm: layer_norm.* come without peepholes"),
    ):
        with pytest.raises(ValueError, match=text):
            fgj.lstm(**arrays, **options)


def gru(x, w_ih, w_hh, b=None, b_hn=None, *, h_0=None, lengths=None, reverse=False, reset_after=True):
    n, steps, hidden = *x.shape[:2], w_hh.shape[0]
    b = jnp.zeros(3 * hidden) if b is None else b
    b_hn = jnp.zeros(hidden) if b_hn is None else b_hn
    lengths = jnp.full(n, steps) if lengths is None else lengths

    def step(h, of_step):
        t, x_t = of_step
        x_r, x_z, x_n = jnp.split(x_t @ w_ih + b, 3, axis=1)
        w_r, w_z, w_n = jnp.split(w_hh, 3, axis=1)
        r, z = jax.nn.sigmoid(x_r + h @ w_r), jax.nn.sigmoid(x_z + h @ w_z)
        new = jnp.tanh(x_n + (r * (h @ w_n + b_hn) if reset_after else (r * h) @ w_n))
        new_h, live = (1 - z) * new + z * h, (t < lengths)[:, None]
        return jnp.where(live, new_h, h), jnp.where(live, new_h, 0)

    h_0 = jnp.zeros((n, hidden)) if h_0 is None else h_0
    h_n, y = jax.lax.scan(step, h_0, (jnp.arange(steps), jnp.moveaxis(x, 1, 0)), reverse=reverse)
    return jnp.moveaxis(y, 0, 1), h_n


def gru_arrays(*names):
    n, steps, channels, hidden = 5, 4, 3, 8
    arrays = {
        "x": normal(n, steps, channels),
        "w_ih": normal(channels, 3 * hidden, scale=0.5),
        "w_hh": normal(hidden, 3 * hidden, scale=0.5),
    }
    sizes = {"b": (3 * hidden,), "b_hn": (hidden,), "h_0": (n, hidden)}
    return arrays | {name: normal(*sizes[name], scale=0.5, seed=1) for name in names}


@pytest.mark.parametrize(
    ("names", "reset_after"), [((), True), (("b", "b_hn", "h_0"), True), (("b", "h_0"), False), (("b_hn",), True)]
)
@pytest.mark.parametrize(("lengths", "reverse"), [(None, False), ([4, 3, 0, 1, 2], True)])
def test_gru(names, reset_after, lengths, reverse):
    arrays = gru_arrays(*names)
    settings = {"lengths": None if lengths is None else np.array(lengths), "reverse": reverse}
    ours, theirs = (
        lambda *a, f=f: f(**dict(zip(arrays, a, strict=True)), **settings, reset_after=reset_after)
        for f in (fgj.gru, gru)
    )
    assert_same_function(ours, theirs, *arrays.values())


@pytest.mark.parametrize(("ours", "theirs", "arrays"), [(fgj.lstm, lstm, lstm_arrays), (fgj.gru, gru, gru_arrays)])
def test_lengths_may_be_traced(ours, theirs, arrays):
    arrays, lengths = arrays(), jnp.array([4, 3, 0, 1, 2])
    gradients = [jax.jit(jax.grad(lambda a, n, f=f: whole(f(**a, lengths=n))))(arrays, lengths) for f in (ours, theirs)]
    assert_alike(*gradients)
    message = rf"{ours.__name__}: lengths must be in 0..4, got 7 at index 0"
    with pytest.raises(Exception, match=message):
        jax.block_until_ready(jax.jit(lambda n: ours(**arrays, lengths=n))(lengths + 3))
    with pytest.raises(ValueError, match=rf"^{message}$"):
        ours(**arrays, lengths=lengths + 3)


def batch_norm(x, gamma, beta, mean=None, var=None, residual=None, *, training=True, activation="identity", eps=1e-5):
    axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    batch_mean, batch_var = (x.mean(axes), x.var(axes)) if training else (mean, var)
    y = (x - batch_mean) / jnp.sqrt(batch_var + eps) * gamma + beta + (0 if residual is None else residual)
    if training and mean is not None:
        mean, var = 0.9 * mean + 0.1 * batch_mean, 0.9 * var + 0.1 * batch_var * count / (count - 1)
    return ACTIVATIONS[activation](y), mean, var


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("activation", "shape"), [("identity", (13, 6)), ("relu", (3, 5, 4, 6)), ("gelu", (3, 5, 4, 6))]
)
def test_batch_norm(training, activation, shape):
    mean, var = normal(6, seed=2), jnp.abs(normal(6, seed=3)) + 0.5
    arrays = normal(*shape), normal(6, seed=1), normal(6, seed=4), normal(*shape, seed=5)
    settings = {"training": training, "activation": activation}
    assert_same_function(
        lambda x, gamma, beta, r: fgj.batch_norm(x, gamma, beta, mean, var, residual=r, **settings)[0],
        lambda x, gamma, beta, r: batch_norm(x, gamma, beta, mean, var, r, **settings)[0],
        *arrays,
        rtol=1e-4,
        atol=1e-4,
    )
    results = jax.jit(lambda *a: fgj.batch_norm(*a, **settings))(*arrays[:3], mean, var)
    assert_alike(results, batch_norm(*arrays[:3], mean, var, **settings))


def test_batch_norm_without_running_statistics_and_their_gradient_is_zero():
    x, gamma, beta = normal(13, 6), normal(6, seed=1), normal(6, seed=2)
    y, mean, var = fgj.batch_norm(x, gamma, beta)
    assert mean is var is None
    assert_alike(y, batch_norm(x, gamma, beta)[0])
    gradient = jax.grad(lambda x: sum(a.sum() for a in fgj.batch_norm(x, gamma, beta, gamma, beta**2)[1:]))(x)
    assert not gradient.any()


def layer_norm(x, gamma, beta, residual=None, *, activation="identity", eps=1e-5):
    mean, var = x.mean(axis=-1, keepdims=True), x.var(axis=-1, keepdims=True)
    y = (x - mean) / jnp.sqrt(var + eps) * gamma + beta + (0 if residual is None else residual)
    return ACTIVATIONS[activation](y)


@pytest.mark.parametrize(
    ("activation", "shape", "eps"),
    [("identity", (13, 6), 1e-5), ("relu", (3, 5, 4, 6), 0.5), ("gelu", (3, 5, 6), 1e-3), ("softmax", (6,), 1e-5)],
)
def test_layer_norm(activation, shape, eps):
    arrays = normal(*shape), normal(6, seed=1), normal(6, seed=2), normal(*shape, seed=3)
    for count in (3, 4):
        ours, theirs = (
            lambda x, gamma, beta, r=None, f=f: f(x, gamma, beta, residual=r, activation=activation, eps=eps)
            for f in (fgj.layer_norm, layer_norm)
        )
        assert_same_function(ours, theirs, *arrays[:count], rtol=1e-4, atol=1e-4)


def test_layer_norm_of_no_rows():
    gamma, beta = normal(6), normal(6, seed=1)
    y, gradient = jax.value_and_grad(lambda g: fgj.layer_norm(jnp.zeros((0, 6)), g, beta, activation="gelu").sum())(
        gamma
    )
    assert y == 0
    assert not gradient.any()


def test_float64_where_jax_has_it_and_an_error_where_not():
    code = """
import numpy as np, jax, jax.numpy as jnp
from jax.test_util import check_grads
import fastgrad.jax as fgj
x, w, b = np.random.default_rng(0).standard_normal((5, 4)), np.ones((4, 3)), np.ones(3)
try:
    fgj.dense_chain(x, [w], [b], "tanh")
except TypeError as error:
    print(error)
jax.config.update("jax_enable_x64", True)
assert fgj.dense_chain(x, [w], [b], "tanh").dtype == np.float64
check_grads(lambda *a: fgj.dense_chain(a[0], [a[1]], [a[2]], "tanh"), (x, w / 4, b), order=1, modes=["rev"])
check_grads(lambda *a: fgj.batch_norm(*a, activation="gelu")[0], (x, b[:1].repeat(4), w[:, 0]), order=1, modes=["rev"])
sequences = x.reshape(1, 5, 4), np.ones((4, 8)) / 4, np.ones((2, 8)) / 4, np.ones(8)
check_grads(fgj.lstm, sequences, order=1, modes=["rev"])
sequences = x.reshape(1, 5, 4), np.ones((4, 6)) / 4, np.ones((2, 6)) / 4, np.ones(6), np.ones(2)
check_grads(fgj.gru, sequences, order=1, modes=["rev"])
check_grads(lambda *a: fgj.layer_norm(*a, activation="gelu"), (x, b[:1].repeat(4), w[:, 0]), order=1, modes=["rev"])
try:
    fgj.dense_chain(jnp.asarray(x), [jnp.ones((4, 3), "f4")], None, "tanh")
except TypeError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        'dense_chain: x is float64, which JAX would make float32: jax.config.update("jax_enable_x64", True) lets it be, '
        "or convert it yourself",
        "dense_chain: weights[0] must be float64, got float32 (one call has one dtype)",
    ]


def test_check_grads():
    ws, bs = [normal(9, 17, scale=0.3), normal(17, 5, scale=0.3)], [normal(17), normal(5)]
    check_grads(
        lambda *a: fgj.dense_chain(*a, ["tanh", "identity"]),
        (normal(4, 9), ws, bs),
        order=1,
        modes=["rev"],
        rtol=0.02,
        atol=0.02,
    )


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0), (1, None)])
def test_vmap(axes):
    xs = normal(3, 4, 9) if axes[0] is not None else normal(4, 9)
    xs = jnp.moveaxis(xs, 0, axes[0]) if axes[0] else xs
    ws = normal(3, 9, 5) if axes[1] == 0 else normal(9, 5)
    gradients = []
    for f in (fgj.dense_chain, chain):
        one = jax.grad(lambda x, w, f=f: whole(f(x, [w], [None], ["tanh"])), (0, 1))
        gradients.append(jax.jit(jax.vmap(one, axes))(xs, ws))
    assert_alike(*gradients)


@pytest.mark.parametrize(
    ("ours", "theirs", "arrays"),
    [
        (fgj.gru, gru, gru_arrays("b", "h_0")),
        (fgj.layer_norm, layer_norm, {"x": normal(5, 4, 6), "gamma": normal(6), "beta": normal(6, seed=1)}),
    ],
)
def test_vmap_of_sequences_and_norms(ours, theirs, arrays):
    """Over two batches of the x and of the last array."""
    mapped = {name: jnp.stack([a, 2 * a]) if name in ("x", list(arrays)[-1]) else a for name, a in arrays.items()}
    axes = {name: 0 if a.ndim > arrays[name].ndim else None for name, a in mapped.items()}
    gradients = [jax.jit(jax.vmap(jax.grad(lambda a, f=f: whole(f(**a))), (axes,)))(mapped) for f in (ours, theirs)]
    assert_alike(*gradients)


def test_second_derivatives_are_refused():
    x, w = normal(4, 9), normal(9, 5)
    message = "dense_chain: fastgrad has first derivatives only"

    def gradient(wrt, *arrays):
        return jax.grad(lambda x, w: whole(fgj.dense_chain(x, [w], None, "tanh")), wrt)(*arrays)

    for wrt in (0, 1):
        with pytest.raises(NotImplementedError, match=message):
            jax.grad(lambda *arrays, wrt=wrt: gradient(wrt, *arrays).sum())(x, w)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: fgj.dense_chain(x, [w], None, "tanh"), (x,), (x,))


def test_a_gradient_step_inside_scan_and_cond():
    """The loops of JAX: threads of XLA's own call the kernels."""
    x, ws = normal(32, 9), [normal(9, 17, scale=0.3), normal(17, 5, scale=0.3)]

    def train(f):
        def step(ws, _):
            loss, gradients = jax.value_and_grad(lambda ws: whole(f(x, ws, [None, None], ["tanh", "identity"])))(ws)
            return jax.lax.cond(
                loss > 0, lambda: jax.tree.map(lambda w, g: w - 1e-3 * g, ws, gradients), lambda: ws
            ), loss

        return jax.jit(lambda ws: jax.lax.scan(step, ws, length=20))(ws)

    assert_alike(train(fgj.dense_chain), train(chain), rtol=1e-3, atol=1e-4)


def test_calls_of_many_threads_and_programs_at_once_end():
    """Large enough for threads of fastgrad's; a lock held by a caller that waits for another would hang here."""
    x, ws = normal(512, 256), [normal(256, 256, scale=0.05)] * 3
    f = jax.jit(jax.grad(lambda ws: whole(fgj.dense_chain(x, ws, None, "tanh"))))
    expected, results = jax.block_until_ready(f(ws)), []
    both = jax.jit(lambda ws: [f(ws), f([w * 1 for w in ws]), [fgj.dense_chain(x, ws, None, "tanh")]])

    def run():
        for _ in range(5):
            results.append(jax.block_until_ready(both(ws)))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    y, _ = fg.dense_chain(np.asarray(x), [np.asarray(w) for w in ws], None, "tanh")
    for thread in threads:
        thread.join(timeout=120)
    assert len(results) == 20
    for gradients, again, (forward,) in results:
        assert_alike(gradients, expected, rtol=0, atol=0)
        assert_alike(again, expected, rtol=0, atol=0)
        np.testing.assert_array_equal(forward, y)


def test_numbers_are_those_of_fastgrad(in_force):
    """To the bit, through NumPy arrays too, which are given as they are."""
    x, w, b = (np.asarray(a) for a in (normal(33, 9), normal(9, 5), normal(5)))
    y, backward = fg.dense_chain(x, [w], [b], "gelu")
    ours, pullback = jax.vjp(lambda *a: fgj.dense_chain(a[0], [a[1]], [a[2]], "gelu"), x, w, b)
    np.testing.assert_array_equal(ours, y)
    dx, (dw,), (db,) = backward(y)
    assert_alike(pullback(ours), (dx, dw, db), rtol=0, atol=0)


def test_bad_input_is_named_while_tracing():
    x, w = normal(4, 9), normal(9, 5)
    sequences, ints = lstm_arrays(), jnp.ones((4, 9), int)
    too_long = np.array([1, 8, 1, 1, 1])
    one_dtype = "must be float32 or float64 in native byte order, got"

    def dense(x, w, activation="relu"):
        return lambda: fgj.dense_chain(x, [w], None, activation)

    for kind, message, call in (
        (ValueError, r"weights\[0\] must be \(C_in, C_out\) = \(9, _\), got \(8, 5\)", dense(x, w[1:])),
        (TypeError, f"dense_chain: x {one_dtype} int32", dense(ints, w)),
        (TypeError, f"dense_chain: x {one_dtype} bfloat16", dense(x.astype("bfloat16"), w)),
        (TypeError, "dense_chain: x must be a NumPy array, got list", dense([[1.0]], w)),
        (ValueError, "dense_chain: activations must be one of", dense(x, w, "swish")),
        (ValueError, r"lstm: lengths must be integers \(N,\) = \(5,\)", lambda: fgj.lstm(**sequences, lengths=ints[0])),
        (
            ValueError,
            "lstm: lengths must be in 0..4, got 8 at index 1",
            lambda: fgj.lstm(**sequences, lengths=too_long),
        ),
        (
            ValueError,
            "gru: b_hn must be None with reset_after=False",
            lambda: fgj.gru(**gru_arrays("b_hn"), reset_after=False),
        ),
        (ValueError, r"gru: w_hh must be \(H, 3H\) = \(8, 24\)", lambda: fgj.gru(**gru_arrays() | {"w_hh": w})),
        (ValueError, r"layer_norm: beta must be \(C,\) = \(9,\)", lambda: fgj.layer_norm(x, x[0], w[0])),
        (ValueError, "layer_norm: residual must be like x", lambda: fgj.layer_norm(x, x[0], x[0], residual=x[1:])),
        (ValueError, "running_var must be given together with the other", lambda: fgj.batch_norm(x, x[0], x[0], x[0])),
        (ValueError, "x must have more than one value a channel", lambda: fgj.batch_norm(x[:1], x[0], x[0])),
    ):
        with pytest.raises(kind, match=message):
            jax.jit(call)()


def test_import_fastgrad_takes_no_jax_and_its_absence_is_an_error_that_helps():
    code = """
import sys
import fastgrad
assert not any(name.split(".")[0] in ("jax", "jaxlib") for name in sys.modules)
sys.modules["jax"] = None
try:
    import fastgrad.jax
except ImportError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == 'fastgrad.jax needs JAX from 0.5 on: pip install "fastgrad[jax]"'


SHARDED = """
import jax, jax.numpy as jnp, numpy as np, sys
from jax.sharding import Mesh, PartitionSpec as P
import fastgrad.jax as fgj

mesh, rng = Mesh(np.array(jax.devices()), ("rows",)), np.random.default_rng(0)
assert mesh.size == 2
normal = lambda *shape: jnp.asarray(rng.standard_normal(shape).astype("f4") / 2)


def chain(rows, shared):
    return fgj.dense_chain(rows["x"], shared["w"], shared["b"], ["gelu", "tanh"])


def lstm(rows, shared):
    return fgj.lstm(**rows, **shared)


def gru(rows, shared):
    return fgj.gru(**rows, **shared)


def layer_norm(rows, shared):
    return fgj.layer_norm(**rows, **shared, activation="gelu")


def norm(rows, shared):
    return fgj.batch_norm(**rows, **shared, training=False, activation="gelu")[0]


lengths = jnp.array([3, 1, 0, 2])
CASES = {
    chain: ({"x": normal(4, 5)}, {"w": [normal(5, 7), normal(7, 3)], "b": [normal(7), None]}),
    lstm: (
        {"x": normal(4, 3, 2), "h_0": normal(4, 3), "c_0": normal(4, 3), "lengths": lengths},
        {"w_ih": normal(2, 12), "w_hh": normal(3, 12), "b": normal(12)},
    ),
    gru: (
        {"x": normal(4, 3, 2), "h_0": normal(4, 3), "lengths": lengths},
        {"w_ih": normal(2, 9), "w_hh": normal(3, 9), "b": normal(9), "b_hn": normal(3)},
    ),
    layer_norm: ({"x": normal(4, 6), "residual": normal(4, 6)}, {"gamma": normal(6), "beta": normal(6)}),
    norm: (
        {"x": normal(4, 6), "residual": normal(4, 6)},
        {"gamma": normal(6), "beta": normal(6), "running_mean": normal(6), "running_var": normal(6) ** 2},
    ),
}
total = lambda outputs: sum(jnp.sin(a).sum() for a in jax.tree.leaves(outputs))
for f, (rows, shared) in CASES.items():
    integers = {name: rows.pop(name) for name in list(rows) if name == "lengths"}

    def alone(rows, shared, integers):
        return total(f({**rows, **integers}, shared))

    # the loss of all devices, and gradients of the shared arrays that are their sums
    def together(rows, shared, integers):
        return jax.lax.psum(alone(rows, shared, integers), "rows")

    specs = P("rows"), P(), P("rows")
    for check in (True, False):
        sharded = jax.shard_map(together, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=check)
        found = jax.jit(jax.value_and_grad(sharded, (0, 1)))(rows, shared, integers)
        expected = jax.value_and_grad(alone, (0, 1))(rows, shared, integers)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)

    # and taken inside
    inside = jax.shard_map(jax.grad(alone, 1), mesh=mesh, in_specs=specs, out_specs=P())
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        jax.jit(inside)(rows, shared, integers),
        expected[1][1],
    )
"""


@pytest.mark.full
@pytest.mark.skipif(not hasattr(jax, "shard_map"), reason="JAX before 0.6 has it elsewhere")
def test_gradients_over_a_mesh_of_two_devices_are_those_of_one():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    environment = {**os.environ, "XLA_FLAGS": flags}
    result = subprocess.run([sys.executable, "-c", SHARDED], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
