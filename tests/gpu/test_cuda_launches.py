"""What the CUDA backend launches, without a GPU: how many launches an op takes, and what they read and write.

That results are right is for the tests of each op, which run over the backend "cuda" too (see conftest.py).
"""

from dataclasses import replace

import numpy as np
import pytest
from arrays import unwritten
from chains import backward, forward, random_chain
from convs import kernel_run, pair, random_conv
from launch_counts import names_of, traffic_of
from tolerances import assert_close

import fastgrad as fg
from fastgrad.functional.packing import packed_batch
from fastgrad.kernels import reference, types
from fastgrad.kernels.types import (
    ACTIVATIONS,
    LOSSES,
    Affine,
    ConvGradients,
    Geometry,
    LayerSaved,
    NormGradients,
    Running,
    Statistics,
    UpdateRule,
)

pytest.importorskip("numba_cuda", reason="needs the extra [cuda]")

import fastgrad.kernels.cuda
from fastgrad.kernels.cuda import conv
from fastgrad.kernels.cuda.engine.device import BLOCK

SHAPE = 70, 33
VALUES = SHAPE[0] * SHAPE[1]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_read_and_write_each_value_once(emulated, launches, dtype, rng, name):
    f = ACTIVATIONS[name]
    z, y, dz = rng.standard_normal(SHAPE).astype(dtype), unwritten(SHAPE, dtype), unwritten(SHAPE, dtype)
    emulated.activation_forward(z, y, f)
    emulated.activation_backward(z.copy(), z, y, dz, f)
    forward, backward = (traffic_of(launch, dtype) for launch in launches)
    # a softmax reads its row for the sum and for the quotient
    reads = 2 if name == "softmax" else 1
    assert forward == [(reads * VALUES, 0), (0, VALUES)]
    saved = 0 if name == "identity" else reads * VALUES
    assert backward[:3] == [(reads * VALUES, 0), (saved, 0), (0, VALUES)]


@pytest.mark.parametrize("name", ["relu", "silu", "softmax"])
def test_a_dense_layer_is_one_launch_forward_and_two_backward(emulated, launches, emulator, dtype, rng, name):
    rows, width = 3000, 5
    chain = random_chain(rng, rows, [3, width], [name], dtype)
    zs, outputs = forward(emulated, chain)
    assert emulator.xp.products == 1
    (launch,) = launches
    n, reads = rows * width, 2 if name == "softmax" else 1
    z, b, residual, *y = traffic_of(launch, dtype)
    assert residual == (reads * n, 0)
    if name == "silu":
        # z is kept for backward
        assert (z, y) == ((n, n), [(0, n)])
    else:
        assert z == (reads * n, n)
    # once for each thread of a column: caches hold it
    assert b[1] == 0
    launches.clear()
    backward(emulated, chain, zs, outputs)
    assert emulator.xp.products == 3
    assert len(launches) == 2
    dy, saved, dz, *parts = traffic_of(launches[0], dtype)
    assert (dy, saved, dz) == ((reads * n, 0), (reads * n, 0), (0, n))
    if name != "softmax":
        # the sums of a block of rows, and one column's sum of those
        (part,) = parts
        assert 0 < part[1] <= n // 100
        assert traffic_of(launches[1], dtype) == [(part[1], 0), (0, width)]
    else:
        assert traffic_of(launches[1], dtype) == [(n, 0), (0, width)]


@pytest.mark.parametrize("names", [["relu"] * 6, ["gelu", "tanh", "softmax"]])
def test_a_chain_takes_three_launches_a_layer_beside_its_gemms(emulated, launches, emulator, dtype, rng, names):
    chain = random_chain(rng, 1000, [7] * (len(names) + 1), names, dtype, residual=False)
    backward(emulated, chain, *forward(emulated, chain))
    assert len(launches) <= 3 * len(names)
    assert emulator.xp.products == 3 * len(names)


@pytest.mark.parametrize("kind", ["labels", "probabilities", "binary_cross_entropy", "mse", "poisson_nll"])
def test_a_loss_is_two_launches(emulated, launches, dtype, rng, kind):
    """One reads logits and targets and writes losses and gradient; one adds the blocks' sums."""
    y, target = rng.standard_normal(SHAPE).astype(dtype), rng.random(SHAPE).astype(dtype)
    labels, by_row = rng.integers(0, SHAPE[1], SHAPE[0]), kind in ("labels", "probabilities")
    losses, dy = unwritten(SHAPE[:1] if by_row else SHAPE, dtype), unwritten(SHAPE, dtype)
    loss = LOSSES["cross_entropy" if by_row else kind]
    emulated.loss_gradient(y, labels if kind == "labels" else target, loss, losses, dy)
    assert len(launches) == 2
    logits, targets, costs, gradient, parts = traffic_of(launches[0], dtype)
    reads = 2 if by_row else 1
    assert logits == (reads * VALUES, 0)
    # a label is read by all threads of its row at once
    assert kind == "labels" or targets == (reads * VALUES, 0)
    assert (costs, gradient) == ((0, losses.size), (0, VALUES))
    assert traffic_of(launches[1], dtype)[0] == (parts[1], 0)


def test_rows_wider_than_a_block(emulated, dtype, rng):
    """A thread then has several values of its row, the largest maybe not the first."""
    z, dy = (20 * rng.standard_normal((3, 1500))).astype(dtype), rng.standard_normal((3, 1500)).astype(dtype)
    f, labels, found = ACTIVATIONS["softmax"], np.array([0, 700, 1499]), []
    for kernels, kind in ((emulated, dtype), (reference, np.float64)):
        y, dz, losses, dlogits = (unwritten(shape, kind) for shape in ((3, 1500), (3, 1500), 3, (3, 1500)))
        kernels.activation_forward(z.astype(kind), y, f)
        kernels.activation_backward(dy.astype(kind), None, y, dz, f)
        kernels.loss_gradient(z.astype(kind), labels, LOSSES["cross_entropy"], losses, dlogits, mean=False)
        found.append((y, dz, losses, dlogits))
    for ours, exact in zip(*found, strict=True):
        assert_close("loss", ours, exact, size=np.abs(exact).max(), terms=1500)


@pytest.mark.parametrize("count", [1, 40])
def test_clipping_and_adam_are_two_launches_whatever_the_number_of_arrays(emulated, launches, dtype, rng, count):
    params, grads = ([rng.standard_normal((i + 3, 7)).astype(dtype) for i in range(count)] for _ in range(2))
    n = sum(p.size for p in params)
    state = np.zeros((2, n), dtype)
    rule = UpdateRule(fg.optim.Adam.code, state, fg.optim.Adam().hyper, 0.5, None, None)
    emulated.update_arrays(params, grads, rule, 1, np.empty(1))
    norm, update = launches
    assert (norm[0], update[0]) == ("square_chunks", "update_chunks")
    # parameters and state are read for gradients alone that may overflow
    _, p, g, moments, *_ = traffic_of(norm, dtype)
    assert (p, g, moments) == ((0, 0), (n, 0), (0, 0))
    _, p, g, moments, *_ = traffic_of(update, dtype)
    assert (p, g, moments) == ((n, n), (n, 0), (2 * n, 2 * n))


def test_each_group_of_parameters_has_two_launches_and_a_frozen_one_none(emulated, launches, dtype, rng):
    params, grads = ([rng.standard_normal((i + 3, 7)).astype(dtype) for i in range(6)] for _ in range(2))
    sizes = [p.size for p in params]
    state, hyper = np.zeros((2, sum(sizes)), dtype), np.stack([fg.optim.Adam().hyper] * 2)
    groups, before = np.array([0, 1, types.FROZEN, 1, 0, types.FROZEN]), [p.copy() for p in params]
    rule = UpdateRule(fg.optim.Adam.code, state, hyper, 0.5, None, None, groups)
    emulated.update_arrays(params, grads, rule, 1, np.empty(1))
    assert names_of(launches) == ["square_chunks"] * 2 + ["update_chunks"] * 2
    # gradients, once in each: those of the two groups, and none of frozen arrays
    read = [traffic_of(launch, dtype)[2][0] for launch in launches]
    assert read == 2 * [sum(size for size, group in zip(sizes, groups, strict=True) if group == g) for g in (0, 1)]
    changed = [bool((p != was).any()) for p, was in zip(params, before, strict=True)]
    assert changed == [group != types.FROZEN for group in groups]


def test_norms_are_two_launches_and_read_once(emulated, launches, dtype, rng):
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in ((40, 30), (5000,), (3, 3, 7, 9))]
    emulated.joint_norm(np.ones(5), 2.0)
    assert len(launches) == 2
    launches.clear()
    emulated.array_norms(arrays, np.array([30, 1, 9]), 2.0, np.empty(40), np.empty(3, np.int64))
    # the third counts what is not finite
    assert names_of(launches) == ["chunk_norms", "join_norms", "add_counts"]
    assert traffic_of(launches[0], dtype)[1] == (sum(a.size for a in arrays), 0)
    launches.clear()
    emulated.scale_arrays(arrays, None, np.full(3, 0.5))
    emulated.clamp_arrays(arrays, 0.1)
    assert names_of(launches) == ["scale_chunks", "clamp_chunks"]
    for launch in launches:
        assert traffic_of(launch, dtype)[1] == (sum(a.size for a in arrays),) * 2


def under_windows(problem):
    """How many pairs of an output and a place in its window lie in the image, by the definition."""
    (top, left, _, _), (down, across) = problem.geometry()
    counts = []
    for outputs, first, axis in ((down, top, 0), (across, left, 1)):
        step, reach = (pair(problem.options.get(name, 1))[axis] for name in ("stride", "dilation"))
        at = np.add.outer(np.arange(outputs) * step, np.arange(problem.w.shape[axis]) * reach) - first
        counts.append(np.count_nonzero((at >= 0) & (at < problem.x.shape[1 + axis])))
    return len(problem.x) * counts[0] * counts[1]


CONVOLUTIONS = {
    "strides": (3, 4, (4, 3), {"padding": "same", "stride": 3}),
    "groups": (4, 6, (3, 2), {"groups": 2, "padding": (2, 1), "dilation": (1, 2), "stride": (2, 1)}),
}


@pytest.fixture(params=CONVOLUTIONS)
def convolution(request, rng, dtype):
    channels, outputs, size, options = CONVOLUTIONS[request.param]
    return random_conv(rng, 5, (9, 8), channels, outputs, size, dtype, **options)


def test_a_convolution_is_two_launches_forward_and_four_backward(emulated, launches, emulator, dtype, convolution):
    """It writes columns once, and reads what lies under windows; the fold reads what was not padding, and writes each pixel once."""
    kernel_run(emulated, convolution)
    assert names_of(launches) == [
        "im2row_tiles", "activate_tiles", "differentiate_tiles", "im2row_tiles", "col2im_tiles",
    ]  # fmt: skip
    unfold, activate, _, again, fold = (traffic_of(launch, dtype) for launch in launches)
    assert emulator.xp.products == 3
    kh, kw, _, outputs = convolution.w.shape
    n, channels = convolution.dy.size, convolution.x.shape[3]
    met = under_windows(convolution) * channels
    assert unfold == again == [(met, 0), (0, n // outputs * kh * kw * channels)]
    assert activate[0] == (n, n)
    assert fold == [(met, 0), (0, convolution.x.size)]


def test_a_convolution_of_1x1_unfolds_nothing_and_without_more_is_its_product(emulated, launches, emulator, rng):
    problem = random_conv(rng, 3, (9, 8), 5, 4, 1)
    kernel_run(emulated, problem)
    assert names_of(launches) == ["activate_tiles", "differentiate_tiles"]
    assert emulator.xp.products == 3
    launches.clear()
    kernel_run(emulated, replace(problem, b=None))
    assert names_of(launches) == ["differentiate_tiles"]


def test_images_unfolded_in_parts_give_the_same(emulated, launches, monkeypatch, dtype, convolution):
    whole = kernel_run(emulated, convolution)
    launches.clear()
    kh, kw, _, outputs = convolution.w.shape
    image = convolution.dy[0].size // outputs * kh * kw * convolution.x.shape[3] * dtype.itemsize
    monkeypatch.setattr(conv, "PATCH_BYTES", 2 * image + 1)
    parts = kernel_run(emulated, convolution)
    # of two, two and one
    assert names_of(launches).count("im2row_tiles") == 6
    assert names_of(launches)[-1] == "add_rows"
    for name, array in whole.items():
        assert_close("conv", parts[name], array.astype(float), size=np.abs(array).max(), terms=200)


def test_tall_matrices_are_summed_by_several_blocks(emulated, launches, dtype, rng):
    """A bias' gradient where the upstream gradient is dz itself."""
    problem = random_conv(rng, 3, (40, 40), 2, 300, 1, dtype)
    dy, gradients = problem.dy, [unwritten(problem.w.shape, dtype), unwritten(300, dtype)]
    geometry, saved = Geometry((1, 1), (0, 0, 0, 0), (1, 1)), LayerSaved(dy, dy)
    written = ConvGradients(dy, None, *gradients)
    emulated.conv2d_backward(dy, problem.x, problem.w, geometry, ACTIVATIONS["identity"], saved, written)
    assert names_of(launches) == ["add_rows", "add_rows"]
    assert_close("conv", gradients[1], dy.sum((0, 1, 2), np.float64), size=np.abs(dy).sum((0, 1, 2)), terms=1)
    first, second = (traffic_of(launch, dtype) for launch in launches)
    assert first == [(dy.size, 0), (0, 38 * 300)]
    assert second == [(38 * 300, 0), (0, 300)]


def test_health_reads_each_value_once(emulated, launches, dtype, rng):
    """Whatever the number of arrays; the joining launches read what the first has left of its chunks."""
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in ((40, 30), (5000,), (7, 600), (0, 4))]
    n = sum(a.size for a in arrays)
    emulated.array_health(arrays, np.empty((4, 4)))
    assert names_of(launches) == ["chunk_health", "join_arrays"]
    assert traffic_of(launches[0], dtype)[1] == (n, 0)
    assert sum(written for _, written in filter(None, launches[0][1])) == 32 * 7
    launches.clear()
    emulated.output_health([arrays[0], arrays[2], arrays[3]], np.array([[-1.0, 1, -2, 2]] * 3), np.empty((3, 4)))
    assert names_of(launches) == ["output_moments", "join_groups", "join_outputs"]
    # and the first value of each chunk once more, by all threads: caches hold it
    assert n - 5000 + BLOCK * 4 == traffic_of(launches[0], dtype)[1][0]


@pytest.mark.parametrize("layers", [3, BLOCK + 1])
def test_ratios_of_updates_are_the_references(emulated, layers, rng):
    """Of arrays in any order; nothing moved is 0, something moved where all was 0 is infinite, and of no update there is none."""
    from fastgrad.kernels.cuda.health import write_update_ratios

    owners = rng.permutation(np.repeat(np.arange(layers), 2))
    moved = rng.random((2 * layers, 2))
    moved[owners == 0] = 0
    moved[owners == 1, 1] = 0
    moved[np.flatnonzero(owners == 2)[1]] = np.inf, 1
    row = np.full((layers, 9), 7.0)
    write_update_ratios(owners, moved, np.zeros(1, np.int64), row)
    assert row[:3, 8].tolist() == [0, np.inf, np.inf]
    expected = [reference.health.ratio(*moved[owners == layer].sum(axis=0)) for layer in range(3, layers)]
    np.testing.assert_allclose(row[3:, 8], expected, rtol=1e-12)
    write_update_ratios(owners, moved, np.full(1, types.NONFINITE), row)
    assert np.isnan(row[:, 8]).all()
    assert (row[:, :8] == 7).all()


def test_pruning_reads_once_for_each_digit_and_once_more(emulated, launches, dtype, rng):
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in ((40, 30), (5000,), (3, 3, 7, 9))]
    n, digits, masks = sum(a.size for a in arrays), dtype.itemsize, np.ones(6767, bool)
    emulated.prune_smallest(arrays, masks, 3000)
    assert masks.sum() == n - 3000
    *selection, prune = launches
    assert names_of(launches) == ["count_digits", "choose_digit"] * digits + ["prune_chunks"]
    for count, choose in zip(selection[::2], selection[1::2], strict=True):
        x, mask, counters = (count[1][i] for i in (5, 6, 8))
        assert (x, mask) == ((n * dtype.itemsize, 0), (n, 0))
        assert choose[1][2] == (counters[1], 0)
    assert (prune[1][4], prune[1][5]) == ((n * dtype.itemsize, 3000 * dtype.itemsize), (n, 3000))
    launches.clear()
    emulated.prune_below(arrays, masks, 0.0)
    # what is pruned is not read
    ((_, traffic),) = launches
    assert traffic[3:] == [((n - 3000) * dtype.itemsize, 3000 * dtype.itemsize), (n, 3000)]


@pytest.mark.parametrize("count", [1, 257, 2050, 7999, 8001])
def test_of_equals_in_several_blocks_the_first_are_pruned(emulated, count):
    """Blocks lose all, none or some of theirs, these from any row on."""
    values, masks = [np.full(5000, -2.0, np.float32), np.full(3001, 2.0, np.float32)], np.ones(8001, bool)
    values[0][3], values[1][7] = 1.0, np.inf
    emulated.prune_smallest(values, masks, count)
    order = [3, *(i for i in range(8001) if i not in (3, 5007)), 5007]
    assert np.flatnonzero(~masks).tolist() == sorted(order[:count])
    assert np.concatenate(values)[~masks].tolist() == [0.0] * count


NORM_ROWS, NORM_COLUMNS = 3000, 5


def norm_arrays(rng, dtype):
    """Three matrices, gamma and beta, and mean and rstd."""
    matrices = (rng.standard_normal((NORM_ROWS, NORM_COLUMNS)).astype(dtype) for _ in range(3))
    vectors = (rng.random(NORM_COLUMNS).astype(dtype) for _ in range(2))
    return *matrices, Affine(*vectors), Statistics(np.zeros(NORM_COLUMNS), np.ones(NORM_COLUMNS))


def test_batch_norm_reads_x_once_for_its_statistics_and_once_more(emulated, launches, dtype, rng):
    x, residual, y, affine, statistics = norm_arrays(rng, dtype)
    n, running = x.size, Running(np.zeros_like(affine.gamma), np.ones_like(affine.gamma), 0.1, True)
    emulated.batch_norm_statistics(x, running, True, 1e-5, statistics)
    (read, parts), (joined, *moved, _, _) = (traffic_of(launch, dtype) for launch in launches)
    assert read == (n, 0)
    assert parts == (0, joined[0])
    assert parts[1] < n / 50
    assert moved == [(NORM_COLUMNS, NORM_COLUMNS)] * 2
    launches.clear()
    emulated.batch_norm_statistics(x, running, False, 1e-5, statistics)
    assert names_of(launches) == ["running_moments"]
    for name in ("relu", "silu", "softmax"):
        launches.clear()
        saved = LayerSaved(unwritten(x.shape, dtype) if name == "silu" else y, y)
        emulated.batch_norm_forward(x, statistics, affine, residual, ACTIVATIONS[name], saved)
        assert names_of(launches) == ["normalise_tiles"] + ["softmax_tiles"] * (name == "softmax")
        first, *_, added, kept, written = traffic_of(launches[0], dtype)
        assert first == added == (n, 0)
        assert kept == written == (0, n)


@pytest.mark.parametrize("name", ["identity", "relu", "tanh"])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("of_batch", [False, True])
def test_batch_norm_reads_dy_and_x_twice_backward(emulated, launches, dtype, rng, name, residual, of_batch):
    """Once where dx need not wait for the sums. dx is made of dz where a residual needs it, and after a relu without y."""
    dy, x, y, affine, statistics = norm_arrays(rng, dtype)
    gradients = NormGradients(
        np.empty_like(x) if residual else None, np.empty_like(x), *(np.empty_like(v) for v in affine)
    )
    arguments = statistics, affine, ACTIVATIONS[name], of_batch, LayerSaved(y, y)
    emulated.batch_norm_backward(dy, x, *arguments, gradients)
    assert names_of(launches) == ["block_sums", "join_sums"] + ["input_gradients"] * of_batch
    n, reads_y = x.size, name == "tanh" or (name == "relu" and residual)
    upstream, first, _, _, _, _, saved, *written, parts = traffic_of(launches[0], dtype)
    assert upstream == first == (n, 0)
    assert saved == (n * reads_y, 0)
    assert written == [(0, n)] * residual + [(0, n * (not of_batch))]
    assert parts[1] < n / 50
    if of_batch:
        upstream, first, *_, saved, _, to = traffic_of(launches[2], dtype)
        assert upstream == first == (n, 0)
        assert saved == (n * (reads_y and not residual), 0)
        assert to == (0, n)


def test_pools_gather_without_scratch(emulated, launches, dtype, rng):
    """One launch each; what overlaps comes from the caches, so here windows lie side by side, or are one a channel."""
    x, y = rng.standard_normal((2, 6, 8, 3)).astype(dtype), unwritten((2, 3, 4, 3), dtype)
    dx, sides, n = unwritten(x.shape, dtype), ((2, 2), (2, 2), (0, 0, 0, 0)), x.size
    emulated.max_pool2d_forward(x, *sides, y)
    emulated.max_pool2d_backward(y, x, y.copy(), *sides, dx)
    emulated.avg_pool2d_forward(x, *sides, True, y)
    emulated.avg_pool2d_backward(y, *sides, True, dx)
    wide, means = rng.standard_normal((2, 40, 5, 3)).astype(dtype), unwritten((2, 1, 1, 3), dtype)
    emulated.avg_pool2d_forward(wide, (40, 5), (1, 1), (0, 0, 0, 0), True, means)
    forward, backward, mean, mean_backward, whole = (traffic_of(launch, dtype) for launch in launches)
    assert forward == mean == [(n, 0), (0, n // 4)]
    # a pixel is read once more by each largest one after it
    places = x.reshape(2, 3, 2, 4, 2, 3).transpose(0, 1, 3, 5, 2, 4).reshape(-1, 4).argmax(axis=1)
    assert backward == [(n // 4, 0), (n + places.sum(), 0), (n, 0), (0, n)]
    assert mean_backward == [(n, 0), (0, n)]
    assert whole == [(wide.size, 0), (0, means.size)]


def test_initial_weights_and_dropout_are_one_launch(emulated, launches, dtype, rng):
    """Values that come from numbers made on the way: written once, and read once where there is anything to read."""
    x, y = rng.standard_normal(VALUES).astype(dtype), unwritten(VALUES, dtype)
    emulated.uniform(y, 1, -1.0, 1.0)
    emulated.normal(y, 1, 0.0, 1.0)
    emulated.dropout_forward(x, 0.5, 1, y)
    uniform, normal, dropout = (traffic_of(launch, dtype) for launch in launches)
    assert uniform == normal == [(0, VALUES)]
    assert dropout == [(VALUES, 0), (0, VALUES)]


def test_gathering_and_scattering_rows_is_one_launch_and_reads_once(emulated, launches, dtype, rng):
    batch, x = packed_batch("rows", (9, 6), rng.integers(0, 7, 9)), rng.standard_normal((9, 6, 5)).astype(dtype)
    shapes, results = ((batch.offsets[-1], 5), x.shape), []
    for kernels in (emulated, reference):
        steps, found = (unwritten(shape, dtype) for shape in shapes)
        kernels.gather_rows(x, batch, steps)
        kernels.scatter_rows(steps, batch, found)
        results.append((steps, found))
    for ours, expected in zip(*results, strict=True):
        np.testing.assert_array_equal(ours, expected)
    assert names_of(launches) == ["gather_steps", "scatter_steps"]
    gathered, scattered = (traffic_of(launch, dtype)[2:] for launch in launches)
    assert gathered == [(steps.size, 0), (0, steps.size)]
    assert scattered == [(steps.size, 0), (0, x.size)]


def test_no_launch_for_nothing(emulated, launches):
    empty = np.empty((0, 3), np.float32)
    emulated.activation_forward(empty, empty.copy(), ACTIVATIONS["tanh"])
    emulated.activation_forward(empty.T, empty.T.copy(), ACTIVATIONS["softmax"])
    assert launches == []
