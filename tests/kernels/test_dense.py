"""The dense chain: the reference against central differences and PyTorch, every backend against the reference."""

import numpy as np
import pytest
from arrays import LAYOUTS, bits, laid_out, numerical_gradient, unwritten, with_threads
from chains import backward, forward, random_chain, random_net, run, torch_activation
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tolerances import assert_close, relative

import fastgrad as fg
from fastgrad.kernels import reference
from fastgrad.kernels.types import ACTIVATIONS, Chain, ChainGradients, ChainSaved, workspace_size

pytestmark = pytest.mark.cuda

EVERY = list(ACTIVATIONS)
# the ends of a vector of 4, 8 or 16 values and of several, primes, and one more than a tile
WIDTHS = (1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 97)


def assert_matches_reference(backend, chain):
    """Outputs and gradients of the backend, in the chain's dtype, against the reference in float64.

    Both backwards start from the backend's saved values: a z that rounds to the other side of relu's kink is no error.
    """
    exact_chain = chain.map(in_float64)
    zs, outputs = forward(backend, chain)
    gradients = backward(backend, chain, zs, outputs)
    _, exact_outputs = forward(reference, exact_chain)
    exact = backward(reference, exact_chain, [in_float64(z) for z in zs], [in_float64(y) for y in outputs])
    pairs = [(outputs, exact_outputs), (gradients.arrays(), exact.arrays())]
    # the errors of every layer on the way stand behind a value
    depth, terms = len(outputs), max(chain.x.shape + chain.dy.shape + sum((w.shape for w in chain.weights), ()))
    for actual, expected in [pair for lists in pairs for pair in zip(*lists, strict=True)]:
        assert actual.dtype == chain.x.dtype
        assert_close("dense_chain", actual, expected, depth * np.abs(expected).max(initial=1), terms)
    return outputs, gradients


def in_float64(array):
    return array.astype(np.float64)


@pytest.mark.parametrize("name", EVERY)
def test_reference_gradients_are_central_differences(name, rng):
    chain = random_chain(rng, 3, [4, 5, 3], [name, name])
    _, gradients = run(reference, chain)
    arrays = [chain.x, *chain.weights, *chain.biases, chain.residual]
    for analytic, array in zip([*gradients.arrays()[:-2], gradients.dzs[-1]], arrays, strict=True):
        numerical = numerical_gradient(lambda: float((chain.dy * forward(reference, chain)[1][-1]).sum()), array)
        assert_close("numerical", analytic, numerical, size=10)


@pytest.mark.parametrize("name", EVERY)
def test_matches_pytorch(backend, name, dtype, rng, torch):
    chain = random_chain(rng, 17, [33, 31, 16, 7], ["tanh", name, name], dtype)
    leaves = [torch.tensor(a, requires_grad=True) for a in chain.arrays()[:-1]]
    x, weights, biases, residual = leaves[0], leaves[1:4], leaves[4:7], leaves[7]
    a = x
    for layer, (w, b, f) in enumerate(zip(weights, biases, chain.activations, strict=True)):
        a = torch_activation(f, a @ w + b + (residual if layer == 2 else 0))
    a.backward(torch.tensor(chain.dy))
    outputs, gradients = run(backend, chain)
    actual = [outputs[-1], gradients.dx, *gradients.dweights, *gradients.dbiases, gradients.dzs[-1]]
    for ours, theirs in zip(actual, [a.detach(), *(leaf.grad for leaf in leaves)], strict=True):
        expected = theirs.numpy().astype(np.float64)
        assert_close("dense_chain", ours, expected, 4 * np.abs(expected).max(), terms=33)


@pytest.mark.pairwise
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("n", [1, 2, 5, 17, 33])
def test_matches_the_reference_at_awkward_shapes(backend, dtype, n, width, rng):
    for widths, activations in (([width, 33, width, 13], ["relu", "silu", "sigmoid"]), ([width, 13], ["silu"])):
        assert_matches_reference(backend, random_chain(rng, n, widths, activations, dtype))


@pytest.mark.parametrize("name", EVERY)
def test_every_activation_in_every_place(backend, name, dtype, rng):
    for activations in ([name], [name, "identity"], ["tanh", name], [name, name, name]):
        widths = [11, 19, 23, 17][: len(activations) + 1]
        assert_matches_reference(backend, random_chain(rng, 9, widths, activations, dtype))


@pytest.mark.pairwise
@pytest.mark.parametrize(
    ("n", "widths"),
    [
        (257, (129, 65, 10)),
        (1023, (785, 64, 65, 10)),
        (3, (1500, 700, 1)),
        (128, (784, 64, 64, 10)),
        (70, (1, 2000, 1)),
    ],
)
@pytest.mark.parametrize("layout", ["contiguous", "fortran", "reversed"])
def test_matches_the_reference_at_large_shapes(backend, dtype, n, widths, layout, rng):
    """Past the blocks of a GEMM in every dimension, and past the threading threshold."""
    chain = random_chain(rng, n, widths, ["tanh", "gelu", "elu"][: len(widths) - 1], dtype)
    assert_matches_reference(backend, chain.map(lambda a: laid_out(a, layout)))


def test_deep_chain(backend, dtype, rng):
    chain = random_chain(rng, 19, [32] * 51, ["tanh"] * 50, dtype)
    assert_matches_reference(backend, chain)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("name", ["relu", "silu", "softmax"])
def test_bias_and_residual_may_be_missing(backend, dtype, bias, residual, name, rng):
    for widths in ([5, 9, 18], [5, 18]):
        activations = [name] * (len(widths) - 1)
        assert_matches_reference(backend, random_chain(rng, 6, widths, activations, dtype, bias, residual))


def test_some_biases_missing(backend, dtype, rng):
    chain = random_chain(rng, 6, [5, 9, 18, 4], ["relu", "tanh", "silu"], dtype)
    chain.biases[1] = None
    assert_matches_reference(backend, chain)


def test_dx_may_be_left_out(backend, dtype, rng):
    chain = random_chain(rng, 6, [5, 9, 18], ["relu", "silu"], dtype)
    zs, outputs = forward(backend, chain)
    every = backward(backend, chain, zs, outputs)
    without = backward(backend, chain, zs, outputs, want_dx=False)
    assert without.dx is None
    assert [bits(a) for a in without.arrays()] == [bits(a) for a in every.arrays()[1:]]


@pytest.mark.pairwise
@pytest.mark.parametrize("names", [("relu",), ("relu", "silu"), ("gelu", "softmax")])
@pytest.mark.parametrize("widths", [(0, 3, 4), (3, 0, 4), (3, 4, 0), (0, 0, 0), (3, 4, 5)])
@pytest.mark.parametrize("n", [0, 3])
def test_empty_batch_and_zero_width(backend, dtype, n, widths, names, rng):
    """An empty batch gives zero gradients, a layer without inputs its bias."""
    chain = random_chain(rng, n, widths[: len(names) + 1], names, dtype)
    assert_matches_reference(backend, chain)
    if n == 0:
        _, gradients = run(backend, chain)
        assert all(not np.any(g) for g in gradients.dweights + gradients.dbiases)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_do_not_matter_and_inputs_are_not_written(backend, dtype, layout, rng):
    chain = random_chain(rng, 21, [19, 33, 10], ["silu", "sigmoid"], dtype)
    laid = chain.map(lambda a: laid_out(a, layout))
    assert_matches_reference(backend, laid)
    assert [bits(a) for a in laid.arrays()] == [bits(a) for a in chain.arrays()]


@pytest.mark.pairwise
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("which", ["x", "weights", "biases", "residual", "dy"])
def test_one_array_in_another_layout(backend, dtype, which, layout, rng):
    chain = random_chain(rng, 21, [19, 33, 10], ["relu", "tanh"], dtype)
    value = getattr(chain, which)
    laid = [laid_out(a, layout) for a in value] if isinstance(value, list) else laid_out(value, layout)
    setattr(chain, which, laid)
    assert_matches_reference(backend, chain)


def test_broadcast_inputs(backend, dtype, rng):
    """Strides of 0: one row as the whole batch, one column as every weight, a scalar as bias and upstream gradient."""
    chain = random_chain(rng, 21, [19, 33, 10], ["silu", "sigmoid"], dtype)
    chain.x = np.broadcast_to(chain.x[:1], chain.x.shape)
    column, row = chain.weights[0][:, :1], chain.weights[1][:1]
    chain.weights = [np.broadcast_to(column, (19, 33)), np.broadcast_to(row, (33, 10))]
    chain.biases = [np.broadcast_to(dtype.type(0.25), 33), np.broadcast_to(dtype.type(-0.5), 10)]
    chain.residual = np.broadcast_to(chain.residual[:, :1], (21, 10))
    chain.dy = np.broadcast_to(dtype.type(0.5), (21, 10))
    assert_matches_reference(backend, chain)


def test_overlapping_inputs(backend, dtype, rng):
    """x, weights and upstream gradient as windows on one buffer."""
    chain = random_chain(rng, 8, [8, 8, 8], ["tanh", "relu"], dtype)
    buffer = rng.standard_normal(100).astype(dtype)
    chain.x, chain.dy = buffer[:64].reshape(8, 8), buffer[8:72].reshape(8, 8)
    chain.weights = [buffer[16:80].reshape(8, 8), buffer[3:67].reshape(8, 8).T]
    before = bits(buffer)
    assert_matches_reference(backend, chain)
    assert bits(buffer) == before


@pytest.mark.pairwise
@pytest.mark.parametrize("name", [name for name in EVERY if name != "softmax"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_stay_in_their_row_forward(backend, dtype, name, bad, rng):
    chain = random_chain(rng, 21, [19, 33, 10], ["identity", name], dtype, residual=False)
    _, clean = forward(backend, chain)
    chain.x[4, 5] = bad
    _, outputs = forward(backend, chain)
    others = np.arange(21) != 4
    np.testing.assert_allclose(outputs[-1][others], clean[-1][others], rtol=1e-5, atol=1e-6)
    _, expected = forward(reference, chain.map(in_float64))
    for y, y_expected in zip(outputs, expected, strict=True):
        np.testing.assert_array_equal(np.isnan(y[4]), np.isnan(y_expected[4]))
        infinite = np.isinf(y_expected[4])
        np.testing.assert_array_equal(y[4][infinite], y_expected[4][infinite])
    assert not np.isnan(bad) or np.isnan(outputs[-1][4]).all()


@pytest.mark.parametrize("where", ["weights", "biases", "residual"])
def test_nan_in_a_parameter_reaches_the_output(backend, dtype, where, rng):
    chain = random_chain(rng, 5, [19, 33, 10], ["relu", "relu"], dtype)
    array = getattr(chain, where)
    (array[-1] if isinstance(array, list) else array)[..., 3] = np.nan
    _, outputs = forward(backend, chain)
    np.testing.assert_array_equal(np.isnan(outputs[-1]), np.tile(np.arange(10) == 3, (5, 1)))


@pytest.mark.parametrize("name", EVERY)
def test_nan_upstream_reaches_every_gradient(backend, dtype, name, rng):
    chain = random_chain(rng, 5, [4, 3, 6], ["tanh", name], dtype)
    chain.dy[2, 1] = np.nan
    _, gradients = run(backend, chain)
    np.testing.assert_array_equal(np.isnan(gradients.dx).all(axis=1), np.arange(5) == 2)
    assert np.isnan(gradients.dweights[0]).all()
    assert np.isnan(gradients.dbiases[0]).all()
    assert np.isnan(gradients.dweights[1][:, 1]).all()


def test_a_view_of_every_transpose(backend, dtype, rng):
    """The weights of PyTorch, (K_out, K_in), read as w.T."""
    chain = random_chain(rng, 33, [40, 65, 34], ["relu", "identity"], dtype)
    transposed = chain.map(lambda a: a)
    transposed.weights = [np.ascontiguousarray(w.T).T for w in chain.weights]
    assert_matches_reference(backend, transposed)


def test_nothing_outside_the_buffers_is_written(backend, dtype, rng):
    chain = random_chain(rng, 19, [17, 33, 5], ["gelu", "softmax"], dtype)
    buffers = []

    def within(array):
        buffers.append(np.full(array.size + 128, 7, dtype))
        return buffers[-1][64:-64].reshape(array.shape)

    outputs = [within(unwritten((19, w.shape[1]), dtype)) for w in chain.weights]
    zs = [within(outputs[0]), outputs[1]]
    backend.dense_chain_forward(chain.arguments(), ChainSaved(zs, outputs))
    dzs, dx = [within(y) for y in outputs], within(chain.x)
    dweights, dbiases = [within(w) for w in chain.weights], [within(b) for b in chain.biases]
    backend.dense_chain_backward(
        chain.dy, chain.arguments(), ChainSaved(zs, outputs), ChainGradients(dzs, dx, dweights, dbiases)
    )
    for buffer in buffers:
        np.testing.assert_array_equal(buffer[:64], 7)
        np.testing.assert_array_equal(buffer[-64:], 7)


def test_the_saved_values_and_the_upstream_gradient_are_not_written_backward(backend, dtype, rng):
    chain = random_chain(rng, 19, [17, 33, 5], ["gelu", "relu"], dtype)
    zs, outputs = forward(backend, chain)
    saved = [*zs, *outputs, *chain.arrays()]
    before = [bits(a) for a in saved]
    backward(backend, chain, zs, outputs)
    assert [bits(a) for a in saved] == before


@pytest.mark.parametrize("n", [0, 1, 2, 33, 300])
@pytest.mark.parametrize("bias", [True, False])
def test_infer_is_the_forward_of_flat_parameters(backend, dtype, n, bias, rng):
    widths, activations = [17, 33, 8, 5], ["gelu", "leaky_relu", "softmax"]
    net = random_net(rng, widths, activations, dtype, n, bias=bias)
    x = rng.standard_normal((n, 17)).astype(dtype)
    before = bits(net.params)
    out = unwritten((n, 5), dtype)
    backend.dense_chain_infer(x, net.table, net.parameters, net.params, out)
    expected = unwritten((n, 5), np.float64)
    reference.dense_chain_infer(
        x.astype(np.float64), net.table, net.parameters, net.params.astype(np.float64), expected
    )
    assert_close("dense_chain", out, expected, 3, terms=33)
    weights = [net.params[w : w + k * m].reshape(k, m) for k, m, w, _, _ in net.table]
    biases = [net.params[b : b + m] if bias else None for _, m, _, b, _ in net.table]
    outputs = [unwritten((n, m), dtype) for m in widths[1:]]
    zs = [unwritten((n, 33), dtype), *outputs[1:]]
    chain = Chain(x, weights, biases, [ACTIVATIONS[a] for a in activations], None)
    backend.dense_chain_forward(chain, ChainSaved(zs, outputs))
    assert_close("dense_chain", outputs[-1], expected, 3, terms=33)
    assert bits(net.params) == before


def test_infer_of_one_layer_and_of_deep_nets(backend, dtype, rng):
    for widths in ([4, 3], [32] * 21):
        net = random_net(rng, widths, ["tanh"] * (len(widths) - 1), dtype, 7)
        x = rng.standard_normal((7, widths[0])).astype(dtype)
        out, expected = unwritten((7, widths[-1]), dtype), unwritten((7, widths[-1]), np.float64)
        backend.dense_chain_infer(x, net.table, net.parameters, net.params, out)
        reference.dense_chain_infer(
            x.astype(np.float64), net.table, net.parameters, net.params.astype(np.float64), expected
        )
        assert_close("dense_chain", out, expected, len(widths), terms=32)


def test_workspace_holds_every_buffer_of_a_step():
    assert workspace_size([5, 3, 2], 7) >= 7 * (3 * (3 + 2))


@st.composite
def chains(draw):
    n = draw(st.integers(0, 40))
    depth = draw(st.integers(1, 4))
    widths = draw(st.lists(st.integers(0, 40), min_size=depth + 1, max_size=depth + 1))
    activations = draw(st.lists(st.sampled_from(EVERY), min_size=depth, max_size=depth))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    chain = random_chain(rng, n, widths, activations, dtype, draw(st.booleans()), draw(st.booleans()))
    scale = draw(st.sampled_from([1e-3, 1.0, 30.0]))
    chain.x *= dtype(scale)
    layouts = iter(draw(st.lists(st.sampled_from(LAYOUTS), min_size=12, max_size=12)))
    return chain.map(lambda a: laid_out(a, next(layouts)))


@pytest.mark.emulated(0)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(chain=chains())
def test_any_shapes_strides_values_and_activations(backend, chain):
    before = [bits(a) for a in chain.arrays()]
    outputs, gradients = assert_matches_reference(backend, chain)
    assert not any(np.isnan(a).any() for a in outputs + gradients.arrays())
    assert [bits(a) for a in chain.arrays()] == before


def test_relative_tolerance_is_near_rounding():
    """The table is in units of rounding: a slip in one term of a sum of a thousand is seen."""
    assert relative("dense_chain", np.float32) < 32 * np.finfo(np.float32).eps
    assert relative("dense_chain", np.float64) < 32 * np.finfo(np.float64).eps


def test_a_million_rows_are_summed_in_blocks(cpu, rng):
    """PyTorch's db is off by 2e-7 here, one chain of float32 by 1e-3."""
    rows = 2**20
    x, dy = rng.random((rows, 2), np.float32), rng.random((rows, 3), np.float32)
    w = rng.standard_normal((2, 3)).astype(np.float32)
    _, backward = fg.dense(x, w, b=np.zeros(3, np.float32))
    _, dw, db = backward(dy)
    np.testing.assert_allclose(db, dy.sum(axis=0, dtype=np.float64), rtol=3e-7)
    np.testing.assert_allclose(dw, x.astype(np.float64).T @ dy, rtol=5e-6)


@pytest.mark.parametrize("columns", [5, 2100])
def test_sums_over_many_rows_have_the_same_bits_on_any_number_of_threads(cpu, columns, rng):
    x, dy = rng.random((10_000, 9), np.float32), rng.random((10_000, columns), np.float32)
    w = rng.standard_normal((9, columns)).astype(np.float32)
    _, backward = fg.dense(x, w, b=np.zeros(columns, np.float32))
    first, *others = with_threads(lambda: [bits(a) for a in backward(dy)])
    assert all(other == first for other in others)
    np.testing.assert_allclose(backward(dy)[1], x.astype(np.float64).T @ dy, rtol=1e-5)
