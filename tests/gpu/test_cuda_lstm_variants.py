"""LSTM variants on the CUDA backend: launches, and products, in training and in evaluation."""

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="needs the extra [cuda]")

from launch_counts import names_of
from lstm_variants import random_variant

from fastgrad.functional.packing import packed_batch
from fastgrad.kernels import reference, types

STEPS = 4


class VariantCall:
    """The arguments of the variant's kernels for a problem of lstm_variants.py."""

    def __init__(self, problem, keep=True):
        p = self.problem = problem
        self.batch = packed_batch("lstm", p.x.shape[:2], p.lengths, p.reverse)
        rows, hidden, norm = int(self.batch.offsets[-1]), p.w_hh.shape[0], p.gamma_x is not None
        self.xs, self.dh = (np.empty((rows, a.shape[2]), a.dtype) for a in (p.x, p.dy))
        for array, packed in ((p.x, self.xs), (p.dy, self.dh)):
            reference.gather_rows(array, self.batch, packed)
        size = types.lstm_variant_buffer_size(rows, hidden, norm, p.x.itemsize, keep)
        h = np.empty((rows, hidden), p.x.dtype)
        self.saved = types.lstm_variant_buffers(np.empty(size, p.x.dtype), h, norm, keep)
        self.weights = types.LSTMVariantWeights(*(getattr(p, name) for name in types.LSTMVariantWeights._fields))
        self.start = types.States(p.h_0, p.c_0)
        self.variant = types.LSTMVariant(0.4, 0.2, 0.3, 7 if keep else None)

    def forward(self, kernels):
        end = types.States(*map(np.empty_like, self.start))
        kernels.lstm_variant_forward(self.xs, self.weights, self.start, self.batch, self.variant, self.saved, end)

    def backward(self, kernels):
        dz, *arrays = (None if a is None else np.empty_like(a) for a in (self.saved.gates, *self.saved[4:7]))
        du, dv, dn = (dz if a is None and i < 2 else a for i, a in enumerate(arrays))
        dweights = types.LSTMVariantWeights(*(None if w is None else np.empty_like(w) for w in self.weights))
        dstart = types.States(*map(np.empty_like, self.start))
        gradients = types.LSTMVariantGradients(dz, du, dv, dn, np.empty_like(self.xs), dweights, dstart, None)
        upstream = types.LSTMUpstream(self.dh, self.problem.dh_n, self.problem.dc_n)
        arrays = self.xs, self.weights, self.start, self.batch, self.variant, self.saved, gradients
        kernels.lstm_variant_backward(upstream, *arrays)


@pytest.mark.parametrize("lengths", [None, "random"], ids=["full", "ragged"])
@pytest.mark.parametrize("norm", [False, True])
def test_a_step_of_a_variant_is_two_launches_forward_and_four_backward(
    emulated, launches, emulator, dtype, rng, norm, lengths
):
    """Without layer norm one forward, and three backward; each with one product."""
    lengths = None if lengths is None else np.array([4, 1, 3, 0, 2, 4, 4])
    problem = random_variant(rng, 7, STEPS, 3, 9, dtype, lengths=lengths, layer_norm=norm)
    call = VariantCall(problem)
    call.forward(emulated)
    step = ["lstm_variant_products"] * norm + ["lstm_variant_cells"]
    before = ["normalise_rows"] * norm
    assert names_of(launches) == before + step * STEPS
    # and one of all steps, with w_ih
    assert emulator.xp.products == STEPS + 1
    launches.clear()
    emulator.xp.products = 0
    call.backward(emulated)
    cell = ["lstm_variant_norm_gradients"] * norm
    step = ["lstm_variant_output_gradients", *cell, "lstm_variant_gate_gradients", "lstm_variant_norm_gradients"]
    # the sums over rows: a norm's weights in two launches each, and dx of the first one
    sums = ["row_gradients", *["block_products", "join_products"] * 3] if norm else ["add_rows"]
    assert names_of(launches) == [*step * STEPS, *sums, "rows_before"]
    # and dx and the gradients of the matrices
    assert emulator.xp.products == STEPS + 3


@pytest.mark.parametrize("norm", [False, True])
def test_in_evaluation_a_variant_has_as_many_launches(emulated, launches, emulator, dtype, rng, norm):
    call = VariantCall(random_variant(rng, 7, STEPS, 3, 9, dtype, layer_norm=norm), keep=False)
    call.forward(emulated)
    step = ["lstm_variant_products"] * norm + ["lstm_variant_cells"]
    assert names_of(launches) == ["normalise_rows"] * norm + step * STEPS
    assert emulator.xp.products == STEPS + 1
