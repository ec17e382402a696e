"""What fg.lstm, its cell and their backward refuse, and how they say it."""

import numpy as np
import pytest
from arrays import bits
from error_messages import refuses, refuses_other_types
from lstms import INPUTS, random_lstm

import fastgrad as fg

pytestmark = [pytest.mark.cuda, pytest.mark.emulated(1)]


@pytest.fixture
def inputs(in_force, rng):
    """The arrays that fg.lstm takes, as keywords: N = 5, T = 4, C = 2, H = 3, P = H."""
    return random_lstm(rng, 5, 4, 2, 3, np.float32, peephole=True).named(INPUTS)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("x", (5, 4), "(N, T, C)"),
        ("x", (2,), "(N, T, C)"),
        ("w_ih", (3, 12), "(C, 4H) = (2, _)"),
        ("w_ih", (12,), "(C, 4H) = (2, _)"),
        ("w_hh", (4, 12), "(H, 4H) = (3, 12)"),
        ("w_hh", (12, 3), "(H, 4H) = (3, 12)"),
        ("b", (3,), "(4H,) = (12,)"),
        ("b", (1, 12), "(4H,) = (12,)"),
        ("h_0", (3, 5), "(N, P) = (5, 3)"),
        ("h_0", (1, 5, 3), "(N, P) = (5, 3)"),
        ("h_0", (1, 3), "(N, P) = (5, 3)"),
        ("c_0", (5, 4), "(N, H) = (5, 3)"),
        ("c_0", (3,), "(N, H) = (5, 3)"),
        ("peephole", (9,), "(3, H) = (3, 3)"),
        ("peephole", (4, 3), "(3, H) = (3, 3)"),
        ("w_proj", (4, 2), "(H, P) = (3, _)"),
    ],
)
def test_wrong_shapes_are_named(inputs, name, shape, expected):
    wrong = {**inputs, name: np.ones(shape, np.float32)}
    refuses(ValueError, f"lstm: {name} must be {expected}, got {shape}", fg.lstm, **wrong)


def test_columns_that_are_not_four_gates_are_refused(inputs):
    wrong = {**inputs, "w_ih": np.ones((2, 10), np.float32)}
    message = "lstm: w_ih must be (C, 4H), got (2, 10), of which 10 columns are not four gates"
    refuses(ValueError, message, fg.lstm, **wrong)


def test_wrong_shapes_beside_a_projection_are_named(inputs):
    projected = {**inputs, "w_proj": np.ones((3, 2), np.float32)}
    refuses(ValueError, "lstm: w_hh must be (P, 4H) = (2, 12), got (3, 12)", fg.lstm, **projected)
    projected["w_hh"] = np.ones((2, 12), np.float32)
    refuses(ValueError, "lstm: h_0 must be (N, P) = (5, 2), got (5, 3)", fg.lstm, **projected)
    # the two states given for each other
    swapped = {**projected, "h_0": inputs["c_0"], "c_0": np.ones((5, 2), np.float32)}
    refuses(ValueError, "lstm: h_0 must be (N, P) = (5, 2), got (5, 3)", fg.lstm, **swapped)


@pytest.mark.parametrize("name", INPUTS)
def test_lists_integers_and_other_dtypes_are_refused(inputs, name):
    inputs = {**inputs, "w_proj": np.ones((3, 3), np.float32)}
    refuses_other_types("lstm", name, inputs[name], lambda value: fg.lstm(**{**inputs, name: value}), first=name == "x")
    mixed = {**inputs, "x": inputs["x"].astype(np.float64)}
    refuses(TypeError, "lstm: w_ih must be float64, got float32 (one call has one dtype)", fg.lstm, **mixed)


@pytest.mark.parametrize(
    ("kind", "lengths", "message"),
    [
        (ValueError, [4, 0, 5, 4, 4], "in 0..4, got 5 at index 2"),
        (ValueError, [4, 0, 4, -1, 9], "in 0..4, got -1 at index 3"),
        (ValueError, np.full(5, 2**64 - 1, np.uint64), f"in 0..4, got {2**64 - 1} at index 0"),
        (ValueError, [4, 4, 4, 4], "integers (N,) = (5,), got (4,)"),
        (ValueError, [], "integers (N,) = (5,), got (0,)"),
        (ValueError, [[4], [4], [4], [4], [4]], "integers (N,) = (5,), got (5, 1)"),
        (ValueError, 4, "integers (N,) = (5,), got ()"),
        (TypeError, [4.0, 4.0, 4.0, 4.0, 4.0], "integers (N,), got float64"),
        (TypeError, [True] * 5, "integers (N,), got bool"),
        (TypeError, ["4"] * 5, "integers (N,), got <U1"),
        (TypeError, [4, 4, 4, 4, None], "integers (N,), got object"),
        (TypeError, [[4], [4, 4]], "integers (N,), got a nested list"),
    ],
)
def test_bad_lengths_are_refused(inputs, kind, lengths, message):
    refuses(kind, f"lstm: lengths must be {message}", fg.lstm, **inputs, lengths=lengths)


def test_states_and_options_are_keyword_only(inputs):
    with pytest.raises(TypeError, match="positional"):
        fg.lstm(*(inputs[name] for name in INPUTS[:5]))
    with pytest.raises(TypeError, match="positional"):
        fg.lstm_cell(
            inputs["x"][:, 0], *(inputs[name] for name in ("h_0", "c_0", "w_ih", "w_hh", "b")), inputs["peephole"]
        )


@pytest.mark.parametrize("lengths", [None, [4, 0, 2, 4, 1]], ids=["full", "ragged"])
def test_bad_upstream_gradients_are_refused(inputs, lengths):
    (y, h_n, c_n), backward = fg.lstm(**inputs, lengths=lengths)
    refuses(TypeError, "lstm: backward needs at least one of dy, dh_n, dc_n", backward)
    refuses(ValueError, "lstm: dy must be (N, T, P) like y = (5, 4, 3), got (5, 3)", backward, y[:, 0])
    refuses(ValueError, "lstm: dy must be (N, T, P) like y = (5, 4, 3), got (4, 5, 3)", backward, y.swapaxes(0, 1))
    refuses(ValueError, "lstm: dh_n must be (N, P) = (5, 3), got (1, 5, 3)", backward, y, h_n[None])
    refuses(ValueError, "lstm: dc_n must be (N, H) = (5, 3), got (3, 5)", backward, None, None, c_n.T)
    float64 = y.astype(np.float64)
    refuses(TypeError, "lstm: dy must be float32, got float64 (one call has one dtype)", backward, float64)
    for wrong in (np.empty(3), np.empty((5, 4))):
        message = f"lstm: step_norms must be (T,) = (4,), got {wrong.shape}"
        refuses(ValueError, message, backward, y, step_norms=wrong)
    message = "lstm: step_norms must be float64, got float32 (one call has one dtype)"
    refuses(TypeError, message, backward, y, step_norms=np.empty(4, np.float32))
    message = "lstm: dh_n must be a NumPy array, got float; np.asarray(value, dtype) makes one"
    refuses(TypeError, message, backward, None, 1.0)


def test_bad_input_of_a_cell_is_refused(inputs):
    x, weights = inputs["x"][:, 0], {name: inputs[name] for name in ("w_ih", "w_hh", "b", "peephole")}
    h, c = inputs["h_0"], inputs["c_0"]
    cell = fg.lstm_cell
    refuses(ValueError, "lstm_cell: x must be (N, C), got (5, 4, 2)", cell, inputs["x"], h, c, **weights)
    refuses(ValueError, "lstm_cell: h must be (N, P) = (5, 3), got (4, 3)", cell, x, h[:4], c, **weights)
    refuses(ValueError, "lstm_cell: c must be (N, H) = (5, 3), got (5, 2)", cell, x, h, c[:, :2], **weights)
    wrong = {**weights, "w_hh": weights["w_hh"][:2]}
    refuses(ValueError, "lstm_cell: w_hh must be (H, 4H) = (3, 12), got (2, 12)", cell, x, h, c, **wrong)
    _, backward = cell(x, h, c, **weights)
    refuses(TypeError, "lstm_cell: backward needs at least one of dh, dc", backward)
    refuses(ValueError, "lstm_cell: dh must be (N, P) = (5, 3), got (3, 5)", backward, h.T)
    refuses(ValueError, "lstm_cell: dc must be (N, H) = (5, 3), got (3,)", backward, h, c[0])
    gradients = [np.zeros_like(w) for w in weights.values()]
    message = "lstm_cell: gradients must have length 4, got 3"
    refuses(ValueError, message, backward, h, c, gradients=gradients[:3])
    message = "lstm_cell: gradients of w_hh must be like w_hh = (3, 12), got (12, 3)"
    refuses(ValueError, message, backward, h, c, gradients=[gradients[0], gradients[1].T, *gradients[2:]])
    gradients[1].flags.writeable = False
    message = "lstm_cell: gradients of w_hh must be C-contiguous and writable, to be added to in place"
    refuses(ValueError, message, backward, h, c, gradients=gradients)


def test_a_refused_backward_leaves_the_next_one_as_it_was(inputs):
    (y, _, _), backward = fg.lstm(**inputs)
    before = [bits(a) for a in backward(y)]
    with pytest.raises(ValueError, match="dc_n"):
        backward(y, None, y)
    assert [bits(a) for a in backward(y)] == before
