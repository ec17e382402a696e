"""Activations: the reference against central differences and PyTorch, every backend against the reference."""

import math

import numpy as np
import pytest
from arrays import LAYOUTS, bits, laid_out, numerical_gradient, unwritten
from chains import torch_activation
from tolerances import assert_close, relative

from fastgrad.kernels import reference
from fastgrad.kernels.types import ACTIVATIONS, CLIPPED_RELU, ELU, LEAKY_RELU, Activation

pytestmark = pytest.mark.cuda

# every name, and other parameters; 0.3 rounds up in float32 and 0.7 down, which moves a cap compared in float64
CASES = {
    **ACTIVATIONS,
    "leaky_relu(0.2)": Activation(LEAKY_RELU, 0.2),
    "leaky_relu(0)": Activation(LEAKY_RELU, 0.0),
    "clipped_relu(0.3)": Activation(CLIPPED_RELU, 0.3),
    "clipped_relu(0.7)": Activation(CLIPPED_RELU, 0.7),
    "elu(0.5)": Activation(ELU, 0.5),
}


@pytest.fixture(params=CASES)
def activation(request):
    return CASES[request.param]


def forward(backend, z, activation):
    y = unwritten(z.shape, z.dtype)
    backend.activation_forward(z, y, activation)
    return y


def backward(backend, dy, z, y, activation):
    dz = unwritten(dy.shape, dy.dtype)
    backend.activation_backward(dy, z if activation.needs_input else None, y, dz, activation)
    return dz


def values(dtype, seed=0):
    """Near 0 and its kinks, the ordinary range, and both tails; rows of 7, so that vectors end within a row."""
    rng = np.random.default_rng(seed)
    tails = np.geomspace(20, 1e4, 14)
    small = np.geomspace(1e-30, 1e-2, 14)
    z = np.concatenate([3 * rng.standard_normal(700), tails, -tails, small, -small])
    return z.astype(dtype).reshape(-1, 7)


def in_float64(activation):
    """The same activation as float64 sees it after a float32 parameter."""
    return activation._replace(parameter=float(np.float32(activation.parameter)))


def test_reference_derivative_is_the_central_difference(activation, rng):
    z = 2 * rng.standard_normal((5, 4))
    z[np.abs(z) < 1e-3] = 0.5
    dy = rng.standard_normal(z.shape)
    dz = backward(reference, dy, z, forward(reference, z, activation), activation)
    numerical = numerical_gradient(lambda: float((dy * forward(reference, z, activation)).sum()), z)
    assert_close("numerical", dz, numerical, size=1)


@pytest.mark.parametrize("name", CASES)
def test_matches_pytorch(backend, name, dtype, torch):
    activation = CASES[name]
    z = values(dtype)
    dy = np.random.default_rng(1).standard_normal(z.shape).astype(dtype)
    z_torch = torch.tensor(z, requires_grad=True)
    y_torch = torch_activation(activation, z_torch)
    y_torch.backward(torch.tensor(dy))
    y = forward(backend, z, activation)
    dz = backward(backend, dy, z, y, activation)
    # PyTorch's own rounding errors are absolute in the tails of gelu, and it takes its derivatives from z
    tolerance = {"rtol": 16 * relative("activation", dtype), "atol": 16 * relative("activation", dtype)}
    np.testing.assert_allclose(y, y_torch.detach().numpy(), **tolerance)
    np.testing.assert_allclose(dz, z_torch.grad.numpy(), **tolerance)


def test_forward_matches_the_reference(backend, activation, dtype):
    z = values(dtype)
    expected = forward(reference, z.astype(np.float64), in_float64(activation) if dtype == np.float32 else activation)
    # z Phi(z) rounds like z times a probability near 1, and a softmax like its exponent
    size = {"gelu": np.minimum(np.abs(z), 1), "gelu_tanh": np.minimum(np.abs(z), 1)}
    name = next(k for k, v in CASES.items() if v == activation)
    assert_close("activation", forward(backend, z, activation), expected, size.get(name), terms=z.shape[1])


def test_backward_matches_the_reference(backend, activation, dtype):
    z = values(dtype)
    dy = np.random.default_rng(1).standard_normal(z.shape).astype(dtype)
    # from the same y in both, or its rounding would be compared instead
    y = forward(reference, z, activation)
    exact = in_float64(activation) if dtype == np.float32 else activation
    expected = backward(reference, dy.astype(np.float64), z.astype(np.float64), y.astype(np.float64), exact)
    assert_close("activation", backward(backend, dy, z, y, activation), expected, np.abs(dy), terms=z.shape[1])


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "softplus", "silu", "elu", "selu"])
def test_small_results_are_right_in_relative_terms(backend, name, dtype):
    limit = 80 if dtype == np.float32 else 700
    z = -np.concatenate([np.geomspace(1e-30, 1, 50), np.linspace(1, limit, 101)]).astype(dtype)
    expected = forward(reference, z.astype(np.float64), CASES[name])
    assert_close("activation", forward(backend, z, CASES[name]), expected)


@pytest.mark.pairwise
@pytest.mark.parametrize("size", [0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 1023])
def test_widths_of_rows_each_alone_as_in_company(backend, activation, dtype, size, rng):
    """Every element is written, and vector body and scalar tail agree to the bit."""
    z = rng.standard_normal((3, size)).astype(dtype)
    dy = rng.standard_normal((3, size)).astype(dtype)
    y = forward(backend, z, activation)
    dz = backward(backend, dy, z, y, activation)
    assert not np.isnan(y).any()
    assert not np.isnan(dz).any()
    for row in range(3):
        one = slice(row, row + 1)
        assert bits(forward(backend, z[one], activation)) == bits(y[one])
        assert bits(backward(backend, dy[one], z[one], y[one], activation)) == bits(dz[one])
    if activation != CASES["softmax"] and backend is not reference and size:
        last = np.ascontiguousarray(z[:, -1:])
        assert bits(forward(backend, last, activation)) == bits(y[:, -1:])


@pytest.mark.parametrize("shape", [(0,), (5,), (2, 0), (0, 3), (2, 3, 5)])
def test_any_shape(backend, dtype, shape, rng):
    z = rng.standard_normal(shape).astype(dtype)
    for activation in CASES.values():
        expected = forward(reference, z, activation)
        y = forward(backend, z, activation)
        assert y.dtype == dtype
        np.testing.assert_allclose(y, expected, rtol=1e-5)
        dz = backward(backend, z, z, y, activation)
        np.testing.assert_allclose(dz, backward(reference, z, z, y, activation), rtol=1e-4, atol=1e-6)


@pytest.mark.pairwise
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_inputs_do_not_matter_and_inputs_are_not_written(backend, activation, dtype, layout):
    z = values(dtype)
    dy = np.random.default_rng(1).standard_normal(z.shape).astype(dtype)
    y = forward(backend, z, activation)
    dz = backward(backend, dy, z, y, activation)
    z_laid, dy_laid, y_laid = (laid_out(a, layout) for a in (z, dy, y))
    assert bits(forward(backend, z_laid, activation)) == bits(y)
    assert bits(backward(backend, dy_laid, z_laid, y_laid, activation)) == bits(dz)
    assert [bits(a) for a in (z_laid, dy_laid, y_laid)] == [bits(a) for a in (z, dy, y)]


@pytest.mark.pairwise
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "read_only"])
def test_layouts_of_outputs(backend, activation, dtype, layout):
    z = values(dtype)
    dy = np.random.default_rng(1).standard_normal(z.shape).astype(dtype)
    y = forward(backend, z, activation)
    out = laid_out(unwritten(z.shape, dtype), layout)
    backend.activation_forward(z, out, activation)
    assert bits(out) == bits(y)
    out[...] = np.nan
    backend.activation_backward(dy, z, y, out, activation)
    assert bits(out) == bits(backward(backend, dy, z, y, activation))


def test_broadcast_input(backend, activation, dtype):
    row = values(dtype)[0]
    z = np.broadcast_to(row, (4, 7))
    assert bits(forward(backend, z, activation)) == bits(forward(backend, z.copy(), activation))
    dy = np.broadcast_to(dtype.type(0.5), z.shape)
    y = forward(backend, z, activation)
    assert bits(backward(backend, dy, z, y, activation)) == bits(backward(backend, dy.copy(), z, y, activation))


def test_in_place(backend, activation, dtype):
    z = values(dtype)
    dy = np.random.default_rng(1).standard_normal(z.shape).astype(dtype)
    y = forward(backend, z, activation)
    dz = backward(backend, dy, z, y, activation)
    in_place = z.copy()
    backend.activation_forward(in_place, in_place, activation)
    assert bits(in_place) == bits(y)
    in_place = dy.copy()
    backend.activation_backward(in_place, z, y, in_place, activation)
    assert bits(in_place) == bits(dz)


def test_backward_reads_what_it_says(backend, activation, dtype):
    """The one of z and y that is not read may be None."""
    z = values(dtype)
    y = forward(backend, z, activation)
    dz = backward(backend, z, z, y, activation)
    out = unwritten(z.shape, dtype)
    read = (z, None) if activation.needs_input else (None, y)
    backend.activation_backward(z, *read, out, activation)
    assert bits(out) == bits(dz)


def test_nan_gives_nan(backend, activation, dtype):
    z = values(dtype)
    dy = np.ones_like(z)
    y = forward(backend, z, activation)
    nan = np.zeros(z.shape, bool)
    nan[::2, 3] = True
    dz = backward(backend, np.where(nan, dtype.type(np.nan), dy), z, y, activation)
    y = forward(backend, np.where(nan, dtype.type(np.nan), z), activation)
    if activation == CASES["softmax"]:
        nan[::2] = True
    np.testing.assert_array_equal(np.isnan(y), nan)
    np.testing.assert_array_equal(np.isnan(dz), nan)


LIMITS = {  # at -inf and +inf: f, then f'
    "identity": (-math.inf, math.inf, 1, 1),
    "relu": (0, math.inf, 0, 1),
    "leaky_relu": (-math.inf, math.inf, 0.01, 1),
    "relu6": (0, 6, 0, 0),
    "clipped_relu": (0, 1, 0, 0),
    "sigmoid": (0, 1, 0, 0),
    "tanh": (-1, 1, 0, 0),
    "elu": (-1, math.inf, 0, 1),
    "selu": (-1.0507009873554805 * 1.6732632423543772, math.inf, 0, 1.0507009873554805),
    "gelu": (0, math.inf, 0, 1),
    "gelu_tanh": (0, math.inf, 0, 1),
    "silu": (0, math.inf, 0, 1),
    "softplus": (0, math.inf, 0, 1),
}


@pytest.mark.pairwise
@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("width", [2, 64])
def test_infinities_give_the_limits(backend, name, dtype, width):
    z = np.tile(np.array([-np.inf, np.inf], dtype), width // 2)[None]
    y = forward(backend, z, CASES[name])
    np.testing.assert_allclose(y[0, :2], LIMITS[name][:2], rtol=1e-6)
    dz = backward(backend, np.ones_like(z), z, y, CASES[name])
    np.testing.assert_allclose(dz[0, :2], LIMITS[name][2:], rtol=1e-6, atol=4 * np.finfo(dtype).eps)
    assert bits(y) == bits(np.tile(y[:, :2], width // 2))
    assert bits(dz) == bits(np.tile(dz[:, :2], width // 2))


def test_softmax_of_infinite_rows(backend, dtype):
    z = np.array([[-np.inf, 0, 1], [np.inf, 0, 1], [-np.inf] * 3], dtype)
    y = forward(backend, z, CASES["softmax"])
    np.testing.assert_allclose(y[0], [0, 1 / (1 + math.e), math.e / (1 + math.e)], rtol=1e-6)
    assert np.isnan(y[1:]).any(axis=1).all()


def test_softmax_rows_add_up_to_one_at_huge_logits(backend, dtype, rng):
    z = (1e4 * rng.standard_normal((50, 33))).astype(dtype)
    np.testing.assert_allclose(forward(backend, z, CASES["softmax"]).sum(axis=1), 1, rtol=1e-6)


KINKS = {  # z, f'(z): PyTorch's side
    "relu": [(0, 0), (-0.0, 0)],
    "leaky_relu": [(0, 0.01), (-0.0, 0.01)],
    "leaky_relu(0)": [(0, 0), (-1, 0)],
    "relu6": [(0, 0), (6, 0), (5.9, 1)],
    "clipped_relu": [(0, 0), (1, 0), (0.9, 1)],
    "clipped_relu(0.3)": [(0.29, 1), (0.3, 0), (0.31, 0)],
    "clipped_relu(0.7)": [(0.69, 1), (0.7, 0), (0.71, 0)],
    "elu": [(0, 1)],
    "elu(0.5)": [(0, 0.5)],
    "selu": [(0, 1.0507009873554805 * 1.6732632423543772)],
}


@pytest.mark.parametrize("name", KINKS)
def test_derivative_at_a_kink(backend, name, dtype):
    z, expected = np.array(KINKS[name], dtype).T
    # a width past any vector, so that body and tail both meet a kink
    z, expected = np.tile(z, 20), np.tile(expected, 20)
    dz = backward(backend, np.ones_like(z), z, forward(backend, z, CASES[name]), CASES[name])
    np.testing.assert_allclose(dz, expected, rtol=1e-6)


@pytest.mark.parametrize("name", KINKS)
def test_derivative_at_a_kink_is_pytorchs(backend, name, dtype, torch):
    z = np.array(KINKS[name], dtype)[:, 0].copy()
    dz = backward(backend, np.ones_like(z), z, forward(backend, z, CASES[name]), CASES[name])
    z_torch = torch.tensor(z, requires_grad=True)
    torch_activation(CASES[name], z_torch).sum().backward()
    np.testing.assert_allclose(dz, z_torch.grad.numpy(), rtol=1e-6)
