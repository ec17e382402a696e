"""Bad input of a convolution: every error names its argument, and leaves the next call as it was."""

import numpy as np
import pytest
from arrays import bits
from convs import (
    INPUTS,
    random_conv,
)
from error_messages import refuses, refuses_other_types

import fastgrad as fg
from fastgrad.functional.geometry import PADDINGS
from fastgrad.kernels.types import ACTIVATIONS

pytestmark = pytest.mark.cuda


@pytest.fixture
def inputs(rng):
    return random_conv(rng, 2, (5, 4), 6, 8, 3, np.float32, residual=True).named(INPUTS)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("x", (5, 4, 6), "x must be (N, H, W, C), got (5, 4, 6)"),
        ("x", (2, 5, 4, 6, 1), "x must be (N, H, W, C), got (2, 5, 4, 6, 1)"),
        ("x", (2, 0, 4, 6), "x must have at least one row, column and channel, got (2, 0, 4, 6)"),
        ("x", (2, 5, 4, 0), "x must have at least one row, column and channel, got (2, 5, 4, 0)"),
        ("x", (2, 5, 4, 7), "w must be (kh, kw, C, K) = (_, _, 7, _), got (3, 3, 6, 8)"),
        ("w", (3, 3, 5, 8), "w must be (kh, kw, C, K) = (_, _, 6, _), got (3, 3, 5, 8)"),
        ("w", (8, 6, 3, 3), "w must be (kh, kw, C, K) = (_, _, 6, _), got (8, 6, 3, 3)"),
        ("w", (6, 8), "w must be (kh, kw, C, K) = (_, _, 6, _), got (6, 8)"),
        ("w", (3, 0, 6, 8), "w must have at least one row, column and output, got (3, 0, 6, 8)"),
        ("w", (3, 3, 6, 0), "w must have at least one row, column and output, got (3, 3, 6, 0)"),
        ("w", (6, 3, 6, 8), "the kernel's reach must be at most the padded image (5, 4), got (6, 3)"),
        ("w", (3, 5, 6, 8), "the kernel's reach must be at most the padded image (5, 4), got (3, 5)"),
        ("b", (7,), "b must be (K,) = (8,), got (7,)"),
        ("b", (1, 8), "b must be (K,) = (8,), got (1, 8)"),
        ("residual", (2, 5, 4, 8), "residual must be (N, H', W', K) = (2, 3, 2, 8), got (2, 5, 4, 8)"),
        ("residual", (8,), "residual must be (N, H', W', K) = (2, 3, 2, 8), got (8,)"),
    ],
)
def test_wrong_shapes_are_named(inputs, name, shape, message):
    refuses(ValueError, f"conv2d: {message}", fg.conv2d, **{**inputs, name: np.ones(shape, np.float32)})


@pytest.mark.parametrize("name", INPUTS)
def test_lists_integers_and_other_dtypes_are_refused(inputs, name):
    refuses_other_types(
        "conv2d", name, inputs[name], lambda value: fg.conv2d(**{**inputs, name: value}), first=name == "x"
    )


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (ValueError, {"padding": 3}, "padding must be smaller than the kernel's reach (3, 3), got (3, 3)"),
        (ValueError, {"padding": (2, 3)}, "padding must be smaller than the kernel's reach (3, 3), got (2, 3)"),
        (
            ValueError,
            {"padding": 5, "dilation": (2, 1)},
            "padding must be smaller than the kernel's reach (5, 3), got (5, 5)",
        ),
        (ValueError, {"padding": -1}, "padding must be an integer of at least 0, got -1"),
        (ValueError, {"padding": (0, -2)}, "padding must be an integer of at least 0, got -2"),
        (
            ValueError,
            {"padding": ((0, 3), 1)},
            "padding must be smaller than the kernel's reach (3, 3), got ((0, 3), (1, 1))",
        ),
        (ValueError, {"padding": "SAME"}, f"padding must be {PADDINGS}, got 'SAME'"),
        (
            ValueError,
            {"padding": (1, 1, 1)},
            f"padding must be {PADDINGS}, got (1, 1, 1)",
        ),
        (TypeError, {"padding": 0.5}, "padding must be an integer, got float"),
        (TypeError, {"padding": None}, "padding must be an integer, got NoneType"),
        (ValueError, {"stride": 0}, "stride must be an integer of at least 1, got 0"),
        (ValueError, {"stride": (1, -1)}, "stride must be an integer of at least 1, got -1"),
        (TypeError, {"stride": 1.0}, "stride must be an integer, got float"),
        (TypeError, {"stride": (1, 1.5)}, "stride must be an integer, got float"),
        (TypeError, {"stride": "2"}, "stride must be an integer, got str"),
        (ValueError, {"stride": True}, "stride must be an integer of at least 1, got True"),
        (ValueError, {"stride": (1,)}, "stride must be an integer or a pair (vertical, horizontal), got (1,)"),
        (ValueError, {"dilation": 0}, "dilation must be an integer of at least 1, got 0"),
        (TypeError, {"dilation": 1.5}, "dilation must be an integer, got float"),
        (
            ValueError,
            {"dilation": 3},
            "the kernel's reach must be at most the padded image (5, 4), got (7, 7)",
        ),
        (
            ValueError,
            {"dilation": 2, "padding": (1, 0)},
            "the kernel's reach must be at most the padded image (7, 4), got (5, 5)",
        ),
        (ValueError, {"groups": 4}, "groups must divide the channels of x, 6, got 4"),
        (ValueError, {"groups": 2}, "w must be (kh, kw, C / groups, K) = (_, _, 3, _), got (3, 3, 6, 8)"),
        (ValueError, {"groups": 0}, "groups must be an integer of at least 1, got 0"),
        (TypeError, {"groups": 2.0}, "groups must be an integer, got float"),
        (ValueError, {"activation": "swish"}, f"activation must be one of {', '.join(ACTIVATIONS)}; got 'swish'"),
    ],
)
def test_bad_options_are_refused(inputs, kind, options, message):
    refuses(kind, f"conv2d: {message}", fg.conv2d, **inputs, **options)


def test_groups_that_do_not_divide_the_outputs_are_refused(inputs):
    wrong = {**inputs, "w": np.ones((3, 3, 2, 8), np.float32)}
    refuses(ValueError, "conv2d: groups must divide the outputs of w, 8, got 3", fg.conv2d, **wrong, groups=3)


def test_options_are_keyword_only(inputs):
    with pytest.raises(TypeError, match="positional"):
        fg.conv2d(inputs["x"], inputs["w"], inputs["b"], 1)


def test_integers_of_numpy_and_lists_are_pairs(in_force, inputs):
    expected, _ = fg.conv2d(**{**inputs, "residual": None}, stride=(2, 1), padding=(1, 0))
    y, _ = fg.conv2d(
        **{**inputs, "residual": None}, stride=[np.int64(2), np.int32(1)], padding=np.array([1, 0]).tolist()
    )
    assert bits(y) == bits(expected)


def test_bad_upstream_gradients_are_refused_and_leave_the_next_as_it_was(inputs):
    y, backward = fg.conv2d(**inputs)
    before = [bits(a) for a in backward(y)]
    refuses(
        TypeError,
        "conv2d: backward needs dy, an array (2, 3, 2, 8) like the output, got None",
        backward,
        None,
    )
    refuses(ValueError, "conv2d: dy must be like the output = (2, 3, 2, 8), got (2, 2, 3, 8)", backward,
            y.swapaxes(1, 2))  # fmt: skip
    refuses(ValueError, "conv2d: dy must be like the output = (2, 3, 2, 8), got (12, 8)", backward, y.reshape(12, 8))
    refuses(TypeError, "conv2d: dy must be float32, got float64 (one call has one dtype)", backward,
            y.astype(np.float64))  # fmt: skip
    assert [bits(a) for a in backward(y)] == before
