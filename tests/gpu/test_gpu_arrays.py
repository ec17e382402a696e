"""Arrays on a GPU choose the CUDA backend: what the public API makes of them, and what it refuses. The GPU is fakegpu.py's."""

import numpy as np
import pytest
from arrays import bits
from error_messages import refuses
from tolerances import assert_close

import fastgrad as fg
from fastgrad.core import device

pytest.importorskip("numba_cuda", reason="needs the extra [cuda]")

from fakegpu import FakeArray

from fastgrad.kernels import cuda, reference


def host(value):
    """Results as NumPy arrays, all of which were on the GPU."""
    if isinstance(value, list | tuple):
        return [host(v) for v in value]
    assert value is None or isinstance(value, FakeArray | float)
    return value.get() if isinstance(value, FakeArray) else value


def draw(dtype=np.float32, **shapes):
    rng = np.random.default_rng(1)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def moved(gpu, value):
    """Arrays of a tuple, a list or a dict on the GPU."""
    if isinstance(value, dict):
        return {name: moved(gpu, v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(moved(gpu, v) for v in value)
    return gpu.array(value) if isinstance(value, np.ndarray) else value


def flat(value):
    """The arrays of nested lists and tuples; None is no array."""
    return (
        [a for v in value for a in flat(v)] if isinstance(value, list | tuple) else [value] if value is not None else []
    )


def agrees(gpu, op, function, arrays, *upstreams, **options):
    """The op over arrays of the GPU gives arrays of it, with the reference's values, forward and back."""
    result, backward = function(**moved(gpu, arrays), **options)
    found = flat([result, backward(*moved(gpu, upstreams))])
    with fg.use_backend("numpy"):
        result, backward = function(**arrays, **options)
        expected = flat([result, backward(*upstreams)])
    assert len(found) == len(expected)
    for ours, wanted in zip(found, expected, strict=True):
        assert isinstance(ours, FakeArray)
        assert ours.dtype == wanted.dtype
        assert_close(op, host(ours), wanted, size=10, terms=50)


DENSE = {"x": (5, 4), "w": (4, 3), "b": (3,), "residual": (5, 3)}


def test_dense(fake_gpu, dtype):
    agrees(fake_gpu, "dense_chain", fg.dense, draw(dtype, **DENSE), np.ones((5, 3), dtype), activation="silu")


def test_dense_chain(fake_gpu, dtype):
    a = draw(dtype, x=(5, 4), w0=(4, 6), b0=(6,), w1=(6, 3))
    arrays = {"x": a["x"], "weights": [a["w0"], a["w1"]], "biases": [a["b0"], None]}
    agrees(fake_gpu, "dense_chain", fg.dense_chain, arrays, np.ones((5, 3), dtype), activations=["relu", "softmax"])


LSTM = {
    "x": (4, 3, 2),
    "w_ih": (2, 20),
    "w_hh": (3, 20),
    "b": (20,),
    "h_0": (4, 3),
    "c_0": (4, 5),
    "peephole": (3, 5),
    "w_proj": (5, 3),
}


@pytest.mark.parametrize("lengths", [None, [3, 0, 1, 2]], ids=["full", "ragged"])
def test_lstm(fake_gpu, dtype, lengths):
    upstreams = draw(dtype, dy=(4, 3, 3), dh_n=(4, 3), dc_n=(4, 5)).values()
    agrees(fake_gpu, "lstm", fg.lstm, draw(dtype, **LSTM), *upstreams, lengths=lengths, reverse=True)


def test_an_lstm_waits_for_nothing_and_does_the_same_whatever_the_lengths(fake_gpu):
    arrays, found = moved(fake_gpu, draw(**LSTM)), []
    dy = fake_gpu.array(np.ones((4, 3, 3), np.float32))
    # lengths are copied there at their first time
    for lengths in 2 * ([3, 0, 1, 2], [2, 2, 1, 1]):
        with fake_gpu.counted() as counts:
            _, backward = fg.lstm(**arrays, lengths=lengths)
            backward(dy)
        found.append(counts)
    assert found[2] == found[3]
    assert (found[2]["waits"], found[2]["copies"]) == (0, 0)


CONVOLUTIONS = {
    "padded": ((3, 2, 4, 6), {"stride": (2, 1), "padding": 1, "activation": "silu"}),
    "groups": ((3, 2, 2, 6), {"groups": 2, "dilation": (1, 2), "activation": "relu"}),
    "1x1": ((1, 1, 4, 6), {"activation": "gelu"}),
    "bare": ((1, 1, 4, 6), {}),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_conv2d(fake_gpu, dtype, name):
    shape, options = CONVOLUTIONS[name]
    arrays = draw(dtype, x=(2, 7, 5, 4), w=shape, b=(6,), residual=(2, 7, 5, 6))
    if name != "1x1":
        del arrays["residual"]
    if name == "bare":
        del arrays["b"]
    with fg.use_backend("numpy"):
        dy = np.ones_like(fg.conv2d(**arrays, **options)[0])
    agrees(fake_gpu, "conv", fg.conv2d, arrays, dy, **options)
    arrays = moved(fake_gpu, arrays)
    with fake_gpu.counted() as found:
        _, backward = fg.conv2d(**arrays, **options)
        backward(fake_gpu.array(dy))
    assert (found["waits"], found["copies"]) == (0, 0)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", ["relu", "silu", "softmax"])
def test_batch_norm(fake_gpu, dtype, training, activation):
    images, vector = (4, 5, 3, 6), (6,)
    arrays = draw(dtype, x=images, gamma=vector, beta=vector, residual=images, running_mean=vector, dy=images)
    dy = arrays.pop("dy")
    options, running_var = {"training": training, "activation": activation}, np.ones(6, dtype)
    agrees(fake_gpu, "batch_norm", fg.batch_norm, {**arrays, "running_var": running_var}, dy, **options)
    ours = moved(fake_gpu, {**arrays, "running_var": np.ones(6, dtype)})
    with fake_gpu.counted() as found:
        _, backward = fg.batch_norm(**ours, **options)
        backward(fake_gpu.array(dy))
    assert (found["waits"], found["copies"]) == (0, 0)
    # the reference has updated it in place
    assert_close("batch_norm", host(ours["running_var"]), running_var, terms=60)


@pytest.mark.parametrize(
    ("function", "options", "shape"),
    [
        (fg.max_pool2d, {"size": 3, "stride": 2, "padding": 1}, (2, 4, 3, 6)),
        (fg.avg_pool2d, {"size": (2, 3), "padding": 1, "include_pad": False}, (2, 4, 2, 6)),
        (fg.max_pool2d, {"size": 3, "stride": 3, "padding": ((0, 1), (1, 0)), "ceil_mode": True}, (2, 3, 2, 6)),
        (fg.avg_pool2d, {"size": (3, 2), "stride": 3, "ceil_mode": True}, (2, 3, 2, 6)),
        (fg.avg_pool2d, {"size": 4, "stride": 3, "padding": (1, (2, 0)), "ceil_mode": True}, (2, 3, 2, 6)),
        (fg.global_avg_pool2d, {}, (2, 6)),
    ],
)
def test_pools(fake_gpu, dtype, function, options, shape):
    arrays = draw(dtype, x=(2, 7, 5, 6), dy=shape)
    dy = arrays.pop("dy")
    agrees(fake_gpu, "pool", function, arrays, dy, **options)
    ours = moved(fake_gpu, arrays)
    with fake_gpu.counted() as found:
        _, backward = function(**ours, **options)
        backward(fake_gpu.array(dy))
    assert (found["waits"], found["copies"]) == (0, 0)


def test_weights_are_drawn_there(fake_gpu, dtype):
    for name, *arguments in (("uniform", -1.0, 2.0), ("normal", 0.5, 2.0), ("orthogonal", 1.5)):
        ours, expected = fake_gpu.array(np.empty((6, 4), dtype)), np.empty((6, 4), dtype)
        for kernels, array in ((cuda, ours), (reference, expected)):
            getattr(kernels, name)(array if name == "orthogonal" else array.reshape(-1), 7, *arguments)
        assert bits(host(ours)) == bits(expected)


def test_pruning_keeps_all_values_there(fake_gpu, dtype):
    arrays = list(draw(dtype, a=(5, 4), b=(3, 3, 2, 7)).values())
    ours, mask = moved(fake_gpu, arrays), fake_gpu.array(np.ones(146, bool))
    expected = np.ones(146, bool)
    with fake_gpu.counted() as found:
        cuda.prune_smallest(ours, mask, 100)
        cuda.prune_below(ours, mask, 1.0)
    assert found["waits"] == 0
    reference.prune_smallest(arrays, expected, 100)
    reference.prune_below(arrays, expected, 1.0)
    for array, wanted in zip([mask, *ours], [expected, *arrays], strict=True):
        assert bits(host(array)) == bits(wanted)


def test_health_waits_for_its_numbers_alone(fake_gpu, dtype):
    arrays = list(draw(dtype, a=(5, 4), b=(3000, 7)).values())
    # a unit that the last row alone finds alive, and one that it alone finds infinite
    arrays[1][:-1, 0] = 0
    arrays += [np.ones((20, 300), dtype), np.array([[np.nan, 0], [-np.inf, 1]], dtype)]
    arrays[2][-1, -1] = np.inf
    bands = np.array([[-1.0, 1, -2, 2]] * 4)
    ours, found, expected = moved(fake_gpu, arrays), np.empty((4, 8)), np.empty((4, 8))
    with fake_gpu.counted() as counts:
        cuda.array_health(ours, found[:, :4])
        cuda.output_health(ours, bands, found[:, 4:])
    assert counts["waits"] == 2
    reference.array_health(arrays, expected[:, :4])
    reference.output_health(arrays, bands, expected[:, 4:])
    assert expected[:, 3].tolist() == [0, 0, 1, 2]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy", "mse", "poisson_nll"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_losses(fake_gpu, loss, reduction):
    y, target = draw(y=(6, 4), target=(6, 4)).values()
    for labels in (target, np.array([3, 0, 1, 2, 2, 1])) if loss == "cross_entropy" else (target,):
        found = getattr(fg, loss)(fake_gpu.array(y), fake_gpu.array(labels), reduction)
        with fg.use_backend("numpy"):
            expected = getattr(fg, loss)(y, labels, reduction)
        for ours, wanted in zip(found, expected, strict=True):
            assert_close("loss", np.float32(host(ours)), wanted, size=5)


@pytest.mark.parametrize("name", [*DENSE, "dy"])
def test_arrays_that_are_not_contiguous(fake_gpu, name):
    """Columns of a wider one, and one turned round."""
    arrays, dy = draw(**DENSE), np.ones((5, 3), np.float32)
    turned = {"dy": dy, **arrays}[name]
    wide = fake_gpu.array(np.repeat(turned, 2, axis=-1))[..., ::2]
    assert wide.shape == turned.shape
    assert not wide.flags.c_contiguous
    results = []
    for other in (fake_gpu.array(turned), wide, fake_gpu.array(turned.T.copy()).T):
        given = moved(fake_gpu, {"dy": dy, **arrays}) | {name: other}
        dy_given = given.pop("dy")
        y, backward = fg.dense(**given, activation="tanh")
        results.append([bits(host(a)) for a in (y, *backward(dy_given))])
    assert results[0] == results[1] == results[2]


IMAGE, IMAGES = (2, 5, 4, 3), {"x": (2, 5, 4, 3), "dy": (2, 5, 4, 3)}
OPS = {
    "lstm": (
        fg.lstm,
        {**{name: LSTM[name] for name in ("x", "w_ih", "w_hh", "h_0", "c_0", "w_proj")}, "dy": (4, 3, 3)},
        {},
    ),
    "conv2d": (fg.conv2d, {**IMAGES, "w": (3, 3, 3, 3), "residual": IMAGE}, {"padding": 1, "activation": "tanh"}),
    "batch_norm": (
        fg.batch_norm,
        {**IMAGES, "gamma": (3,), "beta": (3,), "running_mean": (3,)},
        {"activation": "silu"},
    ),
    "max_pool2d": (fg.max_pool2d, IMAGES, {"size": 3, "stride": 1, "padding": 1}),
}


@pytest.mark.parametrize("op", OPS)
def test_other_ops_take_arrays_that_are_not_contiguous(fake_gpu, op):
    """Every input at once, and the upstream gradient: every other value of a wider array, and rows that are turned round."""
    function, shapes, options = OPS[op]
    drawn, results = draw(**shapes), []
    if op == "batch_norm":
        drawn["running_var"] = np.ones(3, np.float32)
    for lay in (lambda a: a, lambda a: np.repeat(a, 2, axis=-1)[..., ::2], lambda a: a[::-1].copy()[::-1]):
        given = {name: fake_gpu.over(lay(a.copy())) for name, a in drawn.items()}
        dy, changed = given.pop("dy"), [given[name] for name in ("running_mean", "running_var") if name in given]
        result, backward = function(**given, **options)
        results.append([bits(host(a)) for a in flat([result, backward(dy), changed])])
    assert results[0] == results[1] == results[2]


def test_clipping_writes_in_place_whatever_the_layout(fake_gpu):
    g = np.full((4, 3), 2.0, np.float32)
    plain, turned = fake_gpu.array(g), fake_gpu.array(g.T.copy()).T
    result = fg.clip_grad_norm([plain, turned], 1.0)
    assert result.norm == pytest.approx(96**0.5)
    for array in (plain, turned):
        np.testing.assert_allclose(array.get(), 2 / 96**0.5, rtol=1e-4)
    fg.clip_grad_value(turned, 0.1)
    np.testing.assert_allclose(turned.get(), 0.1)
    fg.project_weights([plain, turned], 0.5, per="array")
    assert np.linalg.norm(turned.get()) <= 0.5
    fg.clip_grad_norm_each(plain, 0.1)
    fg.clip_grad_adaptive([plain], [turned])
    with pytest.raises(FloatingPointError, match="NaN or infinity in 0"):
        fg.clip_grad_norm(fake_gpu.array(np.array([np.nan])), 1.0)


@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_updater(fake_gpu, clip_norm):
    """The same updates as the reference's, and nothing waits for them."""
    values = draw(w=(6, 4), b=(4,), dw=(6, 4), db=(4,))
    masks = [np.tile([True, False], (6, 2)), None]

    def run(w, b, dw, db, masks):
        updater = fg.Updater([w, b], fg.optim.AdamW(0.1), clip_norm=clip_norm, masks=masks)
        return updater, [updater.step([dw, db]) for _ in range(3)]

    given = moved(fake_gpu, values)
    masks_there = moved(fake_gpu, masks)
    updater, norms = run(**given, masks=masks_there)
    with fake_gpu.counted() as counts:
        norms.append(updater.step([given["dw"], given["db"]]))
    assert counts["waits"] == counts["copies"] == 0
    with fg.use_backend("numpy"):
        expected, expected_norms = run(**values, masks=masks)
        expected_norms.append(expected.step([values["dw"], values["db"]]))
    np.testing.assert_allclose([float(norm) for norm in norms], expected_norms, rtol=1e-6)
    for name in ("w", "b"):
        assert_close("optimizer", host(given[name]), values[name], size=1)
    state = updater.state_dict()
    assert isinstance(state["state"], FakeArray)
    assert not given["w"].get()[:, 1].any()
    updater.load_state_dict(state)


def test_an_update_that_was_not_made_tells_when_its_norm_is_read(fake_gpu):
    w = fake_gpu.array(np.ones(3, np.float32))
    updater = fg.Updater(w, fg.optim.SGD(0.1), clip_norm=1.0)
    norm = updater.step(fake_gpu.array(np.array([1, np.inf, 0], np.float32)))
    np.testing.assert_array_equal(w.get(), 1)
    for _ in range(2):
        with pytest.raises(
            FloatingPointError, match=r"Updater.step: the gradient is not finite in grads\[0\]; no update"
        ):
            float(norm)
    norm = updater.step(fake_gpu.array(np.array([3, 4, 0], np.float32)))
    assert norm == 5.0
    assert f"{norm:.1f} {norm + 1} {2 * norm} {norm < 6} {bool(norm)} {round(norm)}" == "5.0 6.0 10.0 True True 5"
    np.testing.assert_allclose(w.get(), [0.94, 0.92, 1], rtol=1e-5)


class Tensor:
    """What another library has on the GPU, and says so by DLPack or by __cuda_array_interface__."""

    def __init__(self, array, protocol):
        self.array, self.streams = array, []
        if protocol == "dlpack":
            self.__dlpack_device__ = lambda: (2, array.device.id)
            self.__dlpack__ = self._give
        else:
            self.__cuda_array_interface__ = array.__cuda_array_interface__

    def _give(self, stream):
        self.streams.append(stream)
        return self.array


@pytest.mark.parametrize("protocol", ["dlpack", "interface"])
def test_arrays_of_other_libraries_are_taken_without_a_copy(fake_gpu, protocol):
    given = moved(fake_gpu, draw(**DENSE))
    tensors = {name: Tensor(a, protocol) for name, a in given.items()}
    with fake_gpu.counted() as counts:
        y, _ = fg.dense(**tensors)
    assert counts["copies"] == counts["waits"] == 0
    assert bits(host(y)) == bits(host(fg.dense(**given)[0]))
    if protocol == "dlpack":
        # the library is told the stream that reads it, to order it after its own
        assert all(len(tensor.streams) == 1 for tensor in tensors.values())
    fg.clip_grad_value([tensors["x"], tensors["w"]], 0.25)
    assert abs(given["x"].get()).max() == 0.25


def test_what_a_library_does_not_give(fake_gpu):
    tensor = Tensor(fake_gpu.array(np.ones((2, 2), np.float32)), "dlpack")

    def refuse(stream):
        raise BufferError("Can't export tensors that require gradient, use tensor.detach()")

    tensor.__dlpack__ = refuse
    with pytest.raises(TypeError, match=r"dense: x cannot be taken from its Tensor without a copy: Can't .*detach"):
        fg.dense(tensor, tensor)


@pytest.mark.parametrize("name", ["w", "b", "residual"])
def test_host_and_gpu_mixed(fake_gpu, name):
    arrays = draw(**DENSE)
    on_gpu = moved(fake_gpu, arrays)
    message = f"dense: {name} must be on GPU 0 like the call's other arrays, got a NumPy array; cupy.asarray({name}) copies it"
    refuses(TypeError, message, fg.dense, **{**on_gpu, name: arrays[name]})
    message = f"dense: {name} must be a NumPy array like the call's other arrays, got one on GPU 0; cupy.asnumpy({name}) copies it"
    refuses(TypeError, message, fg.dense, **{**arrays, name: on_gpu[name]})


def test_host_and_gpu_mixed_elsewhere(fake_gpu):
    a = fake_gpu.array(np.ones((2, 2), np.float32))
    sequence = moved(fake_gpu, draw(w_ih=(2, 4), w_hh=(1, 4)))
    _, backward = fg.dense(a, a)
    for call, name in (
        (lambda: backward(np.ones((2, 2), np.float32)), "dense: dy"),
        (lambda: fg.cross_entropy(a, np.zeros(2, np.int64)), "cross_entropy: labels"),
        (lambda: fg.mse(a, np.ones((2, 2), np.float32)), "mse: target"),
        (lambda: fg.clip_grad_norm([a, np.ones(2, np.float32)], 1.0), r"clip_grad_norm: grads\[1\]"),
        (lambda: fg.Updater([a], fg.optim.SGD(0.1)).step([np.ones((2, 2), np.float32)]), r"Updater.step: grads\[0\]"),
        (lambda: fg.Updater([a], fg.optim.SGD(0.1), masks=[np.ones((2, 2), bool)]), r"Updater: masks\[0\]"),
        (
            lambda: fg.conv2d(fake_gpu.array(np.ones((1, 2, 2, 2), np.float32)), np.ones((1, 1, 2, 2), np.float32)),
            "conv2d: w",
        ),
        (lambda: fg.batch_norm(a, np.ones(2, np.float32), a[0]), "batch_norm: gamma"),
        (lambda: fg.lstm(a[None], sequence["w_ih"], sequence["w_hh"], h_0=np.ones((1, 1), np.float32)), "lstm: h_0"),
        (lambda: fg.prune([a, np.ones((2, 2), np.float32)], 0.5), r"prune: params\[1\]"),
    ):
        with pytest.raises(TypeError, match=f"{name} must be on GPU 0 like the call's other arrays, got a NumPy array"):
            call()
    with pytest.raises(TypeError, match=r"clip_grad_value: grads\[1\] must be a NumPy array like .* got one on GPU 0"):
        fg.clip_grad_value([np.ones(2, np.float32), a], 1.0)


def test_another_gpu(fake_gpu):
    x = fake_gpu.array(np.ones((2, 2), np.float32))
    other = fake_gpu.array(np.ones((2, 2), np.float32), device=1)
    message = "dense: w must be on the current GPU, 0, got an array on GPU 1; a call in `with cupy.cuda.Device(1):` runs there"
    refuses(ValueError, message, fg.dense, x, other)
    _, backward = fg.dense(x, x)
    for call, name in (
        (lambda: backward(other), "dense: dy"),
        (lambda: fg.clip_grad_norm([x, other], 1.0), r"clip_grad_norm: grads\[1\]"),
        (lambda: fg.Updater([x], fg.optim.SGD(0.1)).step([other]), r"Updater.step: grads\[0\]"),
        (lambda: fg.mse(x, other), "mse: target"),
    ):
        with pytest.raises(ValueError, match=f"{name} must be on the current GPU, 0, got an array on GPU 1"):
            call()
    fake_gpu.current = 1
    y, _ = fg.dense(other, other)
    assert y.device.id == 1


def test_dtypes_and_shapes_are_checked_as_on_the_host(fake_gpu):
    x = fake_gpu.array(np.ones((2, 3), np.float16))
    refuses(TypeError, "dense: x must be float32 or float64 in native byte order, got float16", fg.dense, x, x)
    x, w = fake_gpu.array(np.ones((2, 3), np.float32)), fake_gpu.array(np.ones((3, 2)))
    refuses(TypeError, "dense: w must be float32, got float64 (one call has one dtype)", fg.dense, x, w)
    refuses(ValueError, "dense: w must be (C_in, C_out) = (3, _), got (2, 3)", fg.dense, x, x)
    labels = fake_gpu.array(np.array([0, 3]))
    refuses(ValueError, "cross_entropy: labels must be in 0..2, got 3 at index 1", fg.cross_entropy, x, labels)
    assert fg.cross_entropy(x, fake_gpu.array(np.array([0, 2], np.int32)))[0] == pytest.approx(np.log(3))


def test_out_of_memory_says_how_much_was_asked_and_leaves_all_as_it_was(fake_gpu):
    x, w = fake_gpu.array(np.ones((50, 4), np.float32)), fake_gpu.array(np.ones((4, 30), np.float32))
    fake_gpu.room = 5000
    try:
        with pytest.raises(
            MemoryError,
            match=r"an array \(50, 30\) of float32, 6,000 bytes, does not fit into the memory of GPU 0: Out",
        ):
            fg.dense(x, w)
        with pytest.raises(MemoryError, match="9,600 bytes"):
            fg.Updater(fake_gpu.array(np.ones(1200, np.float32)), fg.optim.Adam())
    finally:
        fake_gpu.room = None
    assert (x.get() == 1).all()
    assert (w.get() == 1).all()
    fg.dense(x, w)


@pytest.mark.parametrize("room", [0, 100, 200, 400])
def test_a_step_for_which_memory_is_not_enough_leaves_the_model_as_it_was(fake_gpu, room):
    """Wherever in it memory ends: the next step is that of one which never failed."""
    x, y = fake_gpu.array(np.ones((60, 6), np.float32)), fake_gpu.array(np.arange(60) % 3)
    trainers = [
        fg.Trainer(
            fg.nn.DenseChain([6, 5, 3], "relu", "softmax", seed=0).to("cuda"),
            optimizer=fg.optim.Adam(0.1),
            clip_norm=1.0,
        )
        for _ in range(2)
    ]
    fake_gpu.room = room
    try:
        with pytest.raises(MemoryError, match=r"\d bytes"):
            trainers[0].step(x, y)
    finally:
        fake_gpu.room = None
    for trainer in trainers:
        for _ in range(2):
            trainer.step(x, y)
    for arrays in zip(*([t.model.params, t.state] for t in trainers), strict=True):
        assert len({bits(host(a)) for a in arrays}) == 1


def test_where_the_backend_cannot_run_an_array_of_a_gpu_says_why(fake_gpu, monkeypatch):
    x = fake_gpu.array(np.ones((2, 2), np.float32))
    for reason in ("missing an NVIDIA driver", "CuPy must be at least 13.0, got 12.3.0"):
        monkeypatch.setattr(device, "missing", lambda reason=reason: reason)
        device.cuda_device.cache_clear()
        refuses(fg.BackendError, f'the backend "cuda" cannot run here: {reason}', fg.dense, x, x)


def test_arrays_of_numpy_are_taken_there_and_back_where_cuda_is_in_force(fake_gpu):
    arrays = draw(**DENSE)
    with fg.use_backend("cuda"):
        y, backward = fg.dense(**arrays)
        gradients = backward(np.ones_like(y))
        w = np.full((3, 2), 2.0, np.float32)
        fg.clip_grad_value([w, np.ones((2, 2), np.float32).T], 0.5)
        with pytest.raises(ValueError, match="must be writable"):
            fg.clip_grad_value(np.broadcast_to(np.float32(2), 3), 0.5)
    assert fake_gpu.launches
    with fg.use_backend("numpy"):
        expected, expected_backward = fg.dense(**arrays)
        expected = [expected, *expected_backward(np.ones_like(expected))]
    for found, wanted in zip([y, *gradients], expected, strict=True):
        assert type(found) is np.ndarray
        assert_close("dense_chain", found, wanted, size=10)
    assert (w == 0.5).all()


def test_a_backend_in_force_is_for_arrays_of_numpy(fake_gpu):
    x = np.ones((2, 2), np.float32)
    with fg.use_backend("numpy"):
        assert isinstance(fg.dense(fake_gpu.array(x), fake_gpu.array(x))[0], FakeArray)
        assert type(fg.dense(x, x)[0]) is np.ndarray


def test_an_array_that_is_neither_of_numpy_nor_on_a_gpu(fake_gpu):
    class OnHost:
        __dlpack_device__ = staticmethod(lambda: (1, 0))

    for value in ([[1.0]], OnHost(), None):
        with pytest.raises(TypeError, match=f"dense: x must be a NumPy array, got {type(value).__name__}"):
            fg.dense(value, np.ones((2, 2)))
