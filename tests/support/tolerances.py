"""How far a result may be from the reference in float64: one table by op and dtype.

An error is allowed up to relative * sqrt(terms) * size. terms is the length of the longest sum behind an element, size
what rounding errors grow from: |expected|, or for sums the size of their terms.
"""

import numpy as np

RELATIVE = {
    #                  float32  float64
    "activation":      (1e-6, 2e-15),
    "gemm":            (1e-6, 2e-15),
    "dense_chain":     (2e-6, 4e-15),
    "lstm":            (4e-6, 1e-14),
    "lstm_variant":    (8e-6, 2e-14),
    "gru":             (4e-6, 1e-14),
    "batch_norm":      (2e-6, 4e-15),
    "layer_norm":      (2e-6, 4e-15),
    "conv":            (2e-6, 4e-15),
    "pool":            (1e-6, 2e-15),
    "loss":            (2e-6, 4e-15),
    "optimizer":       (1e-6, 2e-15),
    "train_gradient":  (4e-6, 1e-14),
    "100_steps":       (2e-4, 1e-10),
    "onnx":            (1e-5, 1e-14),
    "numerical":       (np.nan, 1e-7),
}  # fmt: skip


def relative(op, dtype):
    return RELATIVE[op][np.dtype(dtype) == np.float64]


def assert_close(op, actual, expected, size=None, terms=1):
    """actual is within the table's tolerance of expected; NaN and infinities are where expected has them."""
    actual, expected = np.asarray(actual), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    special = ~np.isfinite(expected)
    np.testing.assert_array_equal(actual[special], expected[special])
    error = np.abs(actual[~special].astype(np.float64) - expected[~special])
    size = np.maximum(np.abs(expected), 0 if size is None else size)[~special]
    tiny = 4 * np.finfo(actual.dtype).smallest_subnormal
    allowed = relative(op, actual.dtype) * np.sqrt(max(terms, 1)) * size + tiny
    worst = np.max(error / allowed, initial=0)
    assert worst <= 1, f"{op}: {worst:.3g} times the tolerance in {actual.dtype}, {int((error > allowed).sum())} values"
