"""Packing beside PyTorch's own: the same fields, values, gradients and errors, and either's PackedSequence in the other."""

import itertools

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils import rnn  # noqa: E402
from torch.nn.utils.rnn import PackedSequence, pack_sequence  # noqa: E402

import fastgrad.torch as fgt  # noqa: E402

DOUBLE = torch.float64
UNSORTED, SORTED = [3, 7, 1, 4, 7], [7, 5, 5, 2, 1]


def draw(*shape, dtype=DOUBLE, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def padded(trailing=(3,), batch_first=True, dtype=DOUBLE, n=5, steps=9):
    return draw(*((n, steps) if batch_first else (steps, n)), *trailing, dtype=dtype).requires_grad_()


def same(results, expected):
    """Tensors, PackedSequences or tuples of them, to the bit."""
    if isinstance(expected, tuple):
        assert type(results) is type(expected)
        assert len(results) == len(expected)
        for mine, theirs in zip(results, expected, strict=True):
            same(mine, theirs)
    elif expected is None:
        assert results is None
    else:
        assert results.dtype == expected.dtype
        assert results.requires_grad == expected.requires_grad
        torch.testing.assert_close(results, expected, rtol=0, atol=0, equal_nan=True)


def same_outcome(results, expected):
    """Of `outcome`: results to the bit, or the same error."""
    if isinstance(expected[0], type):
        assert results == expected
    else:
        same(results, expected)


def outcome(function, *arguments, **named):
    """What a call returns, or the type and the message of what it raises."""
    try:
        return function(*arguments, **named)
    except Exception as error:
        return type(error), str(error)


def gradient(y, x, d):
    return torch.autograd.grad(y, x, d, retain_graph=True)[0]


def ours(packed, padded):
    """Whether both came from our kernels."""
    return [type(t.grad_fn).__name__ for t in (packed.data, padded)] == ["_PackBackward", "_PadBackward"]


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("trailing", [(), (3,), (2, 3)])
@pytest.mark.parametrize("enforce_sorted", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_packing_and_padding_are_pytorchs(in_force, batch_first, enforce_sorted, trailing, dtype):
    x = padded(trailing, batch_first, dtype)
    lengths = SORTED if enforce_sorted else UNSORTED
    arguments = torch.tensor(lengths), batch_first, enforce_sorted
    mine, theirs = fgt.pack_padded_sequence(x, *arguments), rnn.pack_padded_sequence(x, *arguments)
    same(mine, theirs)
    same(fgt.pack_padded_sequence(x, lengths, batch_first, enforce_sorted), theirs)
    d = draw(*theirs.data.shape, dtype=dtype, seed=1)
    same(gradient(mine.data, x, d), gradient(theirs.data, x, d))
    for first, value, total in itertools.product([True, False], [0.0, -2.5, float("nan"), 3], [None, 7, 12]):
        # each from the other's
        results = fgt.pad_packed_sequence(theirs, first, value, total)
        expected = rnn.pad_packed_sequence(mine, first, value, total)
        assert ours(mine, results[0])
        same(results, expected)
        d = draw(*expected[0].shape, dtype=dtype, seed=2)
        same(gradient(results[0], x, d), gradient(expected[0], x, d))


@pytest.mark.parametrize("lengths", [[1], [4], [9]])
@pytest.mark.parametrize("steps", [9])
def test_one_sequence_and_full_ones(lengths, steps):
    for n in (1, 4):
        x = padded(n=n, steps=steps)
        mine, theirs = (f(x, lengths * n, True) for f in (fgt.pack_padded_sequence, rnn.pack_padded_sequence))
        same(mine, theirs)
        same(fgt.pad_packed_sequence(mine), rnn.pad_packed_sequence(theirs))


VIEWS = {
    "turned": lambda: draw(3, 9, 5).transpose(0, 2),
    "every other": lambda: draw(5, 18, 6)[:, ::2, ::2],
    "expanded": lambda: draw(5, 1, 3).expand(5, 9, 3),
    "one value": lambda: draw(1, 1, 1).expand(5, 9, 3),
    "inner axes turned": lambda: draw(5, 9, 4, 3).transpose(2, 3),
    "negated": lambda: torch.complex(draw(5, 9, 3), draw(5, 9, 3, seed=1)).conj().imag,
}  # fmt: skip


@pytest.mark.parametrize("view", VIEWS)
def test_views_are_taken_as_they_lie(in_force, view):
    x = VIEWS[view]().requires_grad_()
    mine, theirs = (f(x, UNSORTED, True, False) for f in (fgt.pack_padded_sequence, rnn.pack_padded_sequence))
    same(mine, theirs)
    # the gradients of sums are expanded
    same(*(gradient(packed.data.sum(), x, None) for packed in (mine, theirs)))
    data = torch.stack([mine.data, mine.data], -1)[..., 1]
    mine, theirs = (PackedSequence(data, *packed[1:]) for packed in (mine, theirs))
    (results, _), (expected, _) = fgt.pad_packed_sequence(mine), rnn.pad_packed_sequence(theirs)
    same(results, expected)
    same(*(gradient(y.sum(), x, None) for y in (results, expected)))


def test_results_are_copies_and_the_gradient_has_the_order_of_the_call():
    x = padded().detach()
    packed = fgt.pack_padded_sequence(x, [9] * 5, True)
    y = fgt.pad_packed_sequence(packed, True)[0]
    packed.data.zero_()
    assert torch.equal(y, x)
    assert not y.requires_grad
    assert packed.data.grad_fn is None
    x.requires_grad_()
    lengths = torch.tensor(UNSORTED)
    mine, theirs = (f(x, lengths, True, False) for f in (fgt.pack_padded_sequence, rnn.pack_padded_sequence))
    (y, mine_lengths), (expected, _) = fgt.pad_packed_sequence(mine), rnn.pad_packed_sequence(theirs)
    d = draw(*expected.shape)
    (expected,) = torch.autograd.grad(expected, x, d)
    for written in (lengths, mine.batch_sizes, mine.sorted_indices, mine.unsorted_indices, mine_lengths):
        written.zero_()
    assert torch.equal(torch.autograd.grad(y, x, d)[0], expected)


def test_gradients_of_both_pass_gradcheck_twice():
    def both(x, batch_first):
        packed = fgt.pack_padded_sequence(x, UNSORTED, batch_first, False)
        y = fgt.pad_packed_sequence(packed, not batch_first, 2.0, 11)[0]
        assert ours(packed, y)
        return packed.data.square(), y.square()

    for batch_first in (True, False):
        x = padded((2,), batch_first)
        assert torch.autograd.gradcheck(both, (x, batch_first))
        assert torch.autograd.gradgradcheck(both, (x, batch_first))


ODD_LENGTHS = {
    "rising": (SORTED[::-1], True), "a 0": ([7, 5, 5, 2, 0], True), "a 0, unsorted": ([0, 7, 5, 5, 2], False),
    "below 0": ([7, -1, 5, 5, 2], False), "too few": ([3, 2], True), "too few, unsorted": ([3, 2], False),
    "too many": ([9, 8, 7, 6, 5, 4], False), "too long": ([10, 3, 3, 3, 3], False), "none": ([], False),
    "two axes": (torch.ones(5, 1, dtype=torch.int64), False), "a number": (torch.tensor(3), False),
    "another device": (torch.ones(5, dtype=torch.int64, device="meta"), True),
    "another device, unsorted": (torch.ones(5, dtype=torch.int64, device="meta"), False),
    "sparse": (torch.tensor(SORTED).to_sparse(), True), "no numbers": ("abcde", True), "nothing": (None, True),
}  # fmt: skip


@pytest.mark.parametrize("case", ODD_LENGTHS)
def test_odd_lengths_have_pytorchs_outcome(case):
    """Most are errors; it leaves out sequences without a length, and cuts what is too long."""
    lengths, enforce_sorted = ODD_LENGTHS[case]
    functions = fgt.pack_padded_sequence, rnn.pack_padded_sequence
    same_outcome(*(outcome(f, padded(), lengths, True, enforce_sorted) for f in functions))


@pytest.mark.parametrize("lengths", [torch.tensor([2.5, 7.0, 1.0, 4.0, 7.0]), torch.tensor(UNSORTED, dtype=torch.uint8),
                                     torch.tensor(UNSORTED * 2)[:5], torch.tensor(UNSORTED).repeat_interleave(2)[::2]])  # fmt: skip
def test_lengths_of_other_kinds_are_read_as_pytorch_reads_them(lengths):
    same(*(f(padded(), lengths, True, False) for f in (fgt.pack_padded_sequence, rnn.pack_padded_sequence)))


def test_another_default_device_changes_nothing():
    x, expected = padded(), rnn.pack_padded_sequence(padded(), UNSORTED, True, False)
    with torch.device("meta"):
        packed = fgt.pack_padded_sequence(x, UNSORTED, True, False)
        y, lengths = fgt.pad_packed_sequence(packed, padding_value=2.0)
    assert ours(packed, y)
    same(packed, expected)
    same((y, lengths), rnn.pad_packed_sequence(expected, padding_value=2.0))


OTHERS = {
    "integers": lambda: torch.arange(135).reshape(5, 9, 3), "complex": lambda: draw(5, 9, 3, dtype=torch.complex64),
    "bfloat16": lambda: draw(5, 9, 3).bfloat16(), "meta": lambda: torch.ones(5, 9, 3, device="meta"),
    "no channels": lambda: draw(5, 9, 0), "no sequences": lambda: draw(0, 9, 3), "one axis": lambda: draw(5),
    "sparse": lambda: draw(5, 9, 3).to_sparse(), "an array": lambda: draw(5, 9, 3).numpy(), "nothing": lambda: None,
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_what_kernels_do_not_take_is_pytorchs(kind):
    x = OTHERS[kind]()
    for enforce_sorted in (True, False):
        results, expected = (
            outcome(f, x, SORTED, True, enforce_sorted) for f in (fgt.pack_padded_sequence, rnn.pack_padded_sequence)
        )
        same_outcome(results, expected)
        if isinstance(expected, PackedSequence):
            same_outcome(outcome(fgt.pad_packed_sequence, results), outcome(rnn.pad_packed_sequence, expected))


PACKED = pack_sequence([draw(k, 3, seed=k) for k in (2, 6, 1, 4)], enforce_sorted=False)
WRONG_PACKED = {
    "too short": (PACKED, {"total_length": 5}), "a fraction": (PACKED, {"total_length": 7.5}),
    "no number": (PACKED, {"padding_value": "a"}), "complex": (PACKED, {"padding_value": 1j}),
    "too large": (PackedSequence(PACKED.data.float(), *PACKED[1:]), {"padding_value": 1e300}),
    "no sequence": (PACKED.data, {}), "nothing": (None, {}),
    "rows missing": (PackedSequence(PACKED.data[:-1], *PACKED[1:]), {}),
    "a row too many": (PackedSequence(torch.cat([PACKED.data, PACKED.data[:1]]), *PACKED[1:]), {}),
    "rising": (PackedSequence(PACKED.data, PACKED.batch_sizes.flip(0)), {}),
    "int32": (PackedSequence(PACKED.data, PACKED.batch_sizes.int(), *PACKED[2:]), {}),
    "no steps": (PackedSequence(PACKED.data, PACKED.batch_sizes[:0], *PACKED[2:]), {}),
    "twice the same": (PackedSequence(PACKED.data, PACKED.batch_sizes, None, torch.tensor([0, 1, 1, 2])), {}),
    "fewer": (PackedSequence(PACKED.data, PACKED.batch_sizes, None, torch.tensor([2, 0])), {}),
    "more": (PackedSequence(PACKED.data, PACKED.batch_sizes, None, torch.tensor([2, 0, 1, 3, 3])), {}),
    "outside": (PackedSequence(PACKED.data, PACKED.batch_sizes, None, torch.tensor([2, 0, 1, 10**9])), {}),
    "int32 indices": (PackedSequence(PACKED.data, PACKED.batch_sizes, None, torch.tensor([2, 0, 1, 3]).int()), {}),
    "indices elsewhere": (PackedSequence(PACKED.data, PACKED.batch_sizes, None, torch.ones(4, device="meta").long()), {}),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_PACKED)
def test_unfit_packed_sequences_have_pytorchs_outcome(case):
    sequence, named = WRONG_PACKED[case]
    same_outcome(*(outcome(f, sequence, **named) for f in (fgt.pad_packed_sequence, rnn.pad_packed_sequence)))


def loop(layer, pack, pad, x, lengths):
    """y and the gradients of x and of the parameters."""
    torch.manual_seed(4)
    module = layer(3, 4, num_layers=2, batch_first=True, dtype=DOUBLE)
    y, ends = pad(module(pack(x, lengths, True, False))[0], True, total_length=9)
    return y, ends, *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_a_recurrent_module_between_them_is_pytorchs(cell):
    x, lengths = padded(), torch.tensor(UNSORTED)
    results = loop(getattr(fgt, cell), fgt.pack_padded_sequence, fgt.pad_packed_sequence, x, lengths)
    expected = loop(getattr(nn, cell), rnn.pack_padded_sequence, rnn.pad_packed_sequence, x, lengths)
    for mine, theirs in zip(results, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-11)


def both(x, lengths):
    return fgt.pad_packed_sequence(fgt.pack_padded_sequence(2 * x, lengths, True, False), True)[0]


# who compiles a frame after a break looks at the gradients of tensors that are given
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_calls_break_the_graph_as_pytorchs_do():
    x, lengths = padded(), torch.tensor(UNSORTED)
    compiled, expected = torch.compile(both, backend="aot_eager")(x, lengths), both(x, lengths)
    same(compiled, expected)
    same(*(torch.autograd.grad(y.square().sum(), x) for y in (compiled, expected)))


def test_under_autocast_transforms_and_fake_tensors_they_are_pytorchs():
    x, lengths = padded(), torch.tensor(SORTED)
    expected = rnn.pack_padded_sequence(x, lengths, True)
    with torch.autocast("cpu", torch.bfloat16):
        same(fgt.pack_padded_sequence(x, lengths, True), expected)

    def data(x, module):
        return module.pack_padded_sequence(x, lengths, True).data.square().sum()

    # which PyTorch's own do not let through
    same_outcome(*(outcome(torch.func.grad(data), x, module) for module in (fgt, rnn)))
    with torch._subclasses.FakeTensorMode() as mode:
        fakes = mode.from_tensor(x), mode.from_tensor(lengths)
        results, expected = (outcome(m.pack_padded_sequence, *fakes, True) for m in (fgt, rnn))
    assert results == expected


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_a_packed_sequence_whose_numbers_fit_no_rows_is_refused(cell):
    """Kernels would read, and write, where there is nothing."""
    rows, layer = torch.ones(5, 2), getattr(fgt, cell)(2, 3)
    with pytest.raises((ValueError, IndexError)):
        layer(PackedSequence(rows, torch.tensor([2, 3])))
    with pytest.raises((ValueError, IndexError)):
        layer(PackedSequence(rows, torch.tensor([3, 2]), torch.tensor([0, 1, 7]), torch.tensor([0, 1, 2])))
    with pytest.raises((ValueError, IndexError)):
        layer(PackedSequence(rows, torch.tensor([3, 2]), torch.tensor([0, 1, 1]), torch.tensor([0, 1, 2])))
