"""Packing of sequences into rows and back: the rows are PyTorch's, and what is past a sequence's end is neither read nor kept."""

import numpy as np
import pytest
from arrays import bits, laid_out, unwritten, with_threads

from fastgrad.kernels.types import PackedBatch

pytestmark = pytest.mark.cuda

# lengths (N,) of a batch of 6 steps: in no order, equal, all, none
LENGTHS = {
    "mixed": [3, 6, 0, 1, 6, 2, 0, 5, 3],
    "whole": [6, 6, 6],
    "one": [4],
    "short": [2, 1, 2],
    "empty": [0, 0],
    "nothing": [],
}
STEPS = 6


def batch_of(lengths):
    """Longest first, equal ones in their order, by a count of each step."""
    counts = [sum(length > t for length in lengths) for t in range(STEPS)]
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return PackedBatch(np.array(order, np.int64), np.cumsum([0, *counts]))


def padded(rng, lengths, dtype, columns=5):
    """x (N, T, C) with NaN past the ends."""
    x = rng.standard_normal((len(lengths), STEPS, columns)).astype(dtype)
    for row, length in zip(x, lengths, strict=True):
        row[length:] = np.nan
    return x


def gathered(backend, x, batch):
    rows = unwritten((int(batch.offsets[-1]), x.shape[2]), x.dtype)
    backend.gather_rows(x, batch, rows)
    return rows


def scattered(backend, rows, batch):
    x = unwritten((len(batch.order), STEPS, rows.shape[1]), rows.dtype)
    backend.scatter_rows(rows, batch, x)
    return x


@pytest.mark.parametrize("name", ["mixed", "whole", "one", "short"])
def test_rows_are_those_of_pytorch(backend, dtype, name, rng, torch):
    # PyTorch packs no sequence of no steps
    lengths = [length for length in LENGTHS[name] if length]
    x = padded(rng, lengths, dtype)
    packed = torch.nn.utils.rnn.pack_padded_sequence(torch.tensor(x), lengths, batch_first=True, enforce_sorted=False)
    # of the steps that a sequence has; after them come steps of none
    counts = np.append(packed.batch_sizes.numpy(), np.zeros(STEPS - max(lengths), np.int64))
    batch = PackedBatch(packed.sorted_indices.numpy(), np.append(0, np.cumsum(counts)))
    rows = gathered(backend, x, batch)
    np.testing.assert_array_equal(rows, packed.data.numpy())
    whole, _ = torch.nn.utils.rnn.pad_packed_sequence(packed, batch_first=True, total_length=STEPS)
    np.testing.assert_array_equal(scattered(backend, rows, batch), whole.numpy())


@pytest.mark.parametrize("name", LENGTHS)
def test_a_row_is_a_step_of_its_sequence(backend, dtype, name, rng):
    lengths = LENGTHS[name]
    x, batch = padded(rng, lengths, dtype), batch_of(lengths)
    rows = gathered(backend, x, batch)
    assert len(rows) == sum(lengths)
    places = [(t, n) for t in range(STEPS) for n in batch.order if lengths[n] > t]
    for row, (t, n) in zip(rows, places, strict=True):
        np.testing.assert_array_equal(row, x[n, t])
    np.testing.assert_array_equal(scattered(backend, rows, batch), np.nan_to_num(x))


@pytest.mark.parametrize("layout", ["fortran", "strided", "padded", "reversed", "backwards", "read_only"])
def test_layouts_of_sequences_do_not_matter(backend, dtype, layout, rng):
    x, batch = padded(rng, LENGTHS["mixed"], dtype), batch_of(LENGTHS["mixed"])
    np.testing.assert_array_equal(gathered(backend, laid_out(x, layout), batch), gathered(backend, x, batch))


def test_nan_and_infinity_stay_in_their_step(backend, dtype, rng):
    lengths = LENGTHS["mixed"]
    x, batch = np.nan_to_num(padded(rng, lengths, dtype)), batch_of(lengths)
    x[1, 2], x[4, 0, 3] = np.nan, -np.inf
    np.testing.assert_array_equal(scattered(backend, gathered(backend, x, batch), batch), x)


@pytest.mark.parametrize("columns", [1, 16, 131])
def test_the_same_bits_on_any_number_of_threads(cpu, dtype, columns, rng):
    lengths = rng.integers(0, STEPS + 1, 700).tolist()
    x, batch = padded(rng, lengths, dtype, columns), batch_of(lengths)

    def there_and_back():
        rows = gathered(cpu, x, batch)
        return bits(rows), bits(scattered(cpu, rows, batch))

    assert len(set(with_threads(there_and_back))) == 1
