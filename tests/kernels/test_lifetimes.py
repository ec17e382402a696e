"""What a kernel reads and writes is there for as long as it runs: in every driver, under Python's debugging allocator, at the end of a
process, and while another thread changes the number of threads."""

import ast
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from arrays import bits
from processes import environment

import fastgrad as fg

pytest.importorskip("fastgrad.kernels.cpu", reason="the backend cannot run here")

from fastgrad.kernels.cpu.engine import thread_pool
from fastgrad.kernels.cpu.engine.scratch import ScratchPool

SOURCES = sorted(Path(thread_pool.__file__).parent.parent.rglob("*.py"))
F4 = np.dtype(np.float32)


def in_a_process(code, *arguments, timeout=300, **variables):
    """Run code in a process of its own; what it printed."""
    process = subprocess.run(
        [sys.executable, "-c", f"import test_lifetimes as t; {code}", *arguments], cwd=Path(__file__).parent,
        env=environment(**variables), capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip
    assert process.returncode == 0, (process.returncode, process.stderr[-2000:])
    return process.stdout


# --- every driver ---


class Driver:
    """A compiled function of kernels/cpu: the arrays that it makes, what it takes addresses of, and its launches."""

    MAKERS = "empty", "zeros", "ones", "empty_like", "zeros_like", "ones_like", "full", "arange", "copy"

    def __init__(self, function):
        self.heap, self.roots, self.addressed, self.pointed, self.launches, self.passed = set(), {}, [], [], [], []
        self.parameters = [argument.arg for argument in function.args.args]
        for node in ast.walk(function):
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    self._assign(target, node.value)
        calls = [n for n in ast.walk(function) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
        # a part of a driver, which is given an array together with its address
        parts = [n for n in calls if any(isinstance(a, ast.Name) and a.id == "launcher" for a in n.args)]
        given = {call for part in parts if part.func.id != "run_kernel" for call in ast.walk(part)}
        for node in calls:
            if node not in given:
                self._call(node)
        self.called = [part for part in parts if part.func.id == "call"]
        for part in parts:
            held = {self.root(a) for a in part.args if isinstance(a, ast.Name)}
            inner = (n for a in part.args for n in ast.walk(a) if isinstance(n, ast.Call) and n in calls)
            self.addressed += [root for n in inner if (root := self.root(n.args[0])) not in held]

    def _assign(self, target, value):
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
            for one, of in zip(target.elts, value.elts, strict=True):
                self._assign(one, of)
        elif isinstance(target, ast.Name):
            made = isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute)
            if made and value.func.attr in self.MAKERS:
                self.heap.add(target.id)
            elif isinstance(value, ast.Subscript | ast.Attribute):
                # a part of an array is as alive as the array
                self.roots[target.id] = value

    def root(self, node):
        """The name of the array that an expression is a part of, or nothing."""
        seen = set()
        while not isinstance(node, ast.Name) or (node.id in self.roots and node.id not in self.heap | seen):
            if isinstance(node, ast.Name):
                seen.add(node.id)
                node = self.roots[node.id]
            elif isinstance(node, ast.Subscript | ast.Attribute | ast.Starred):
                node = node.value
            else:
                return ""
        return node.id

    def _call(self, node):
        name = node.func.id
        if name in ("address", "address_or_null"):
            self.addressed.append(self.root(node.args[0]))
        elif name == "data":
            self.pointed.append(self.root(node.args[0]))
        elif name == "run_kernel":
            self.launches.append(node.args[4].elts)
        else:
            self.passed += [(name, place, self.root(argument)) for place, argument in enumerate(node.args)]

    def look_into(self, others):
        """What is passed to a function that takes its address is addressed."""
        self.addressed += {
            root
            for name, place, root in self.passed
            if name in others and {*others[name].parameters[place : place + 1]} & {*others[name].addressed}
        } - {*self.addressed}


def drivers():
    found = {}
    for source in SOURCES:
        functions = {}
        for function in ast.walk(ast.parse(source.read_text())):
            if isinstance(function, ast.FunctionDef):
                decorators = [d.func if isinstance(d, ast.Call) else d for d in function.decorator_list]
                words = {d.id for d in decorators if isinstance(d, ast.Name)}
                if words & {"driver", "device_function", "routine"}:
                    functions[function.name] = Driver(function)
        # a helper that fills a record is in its driver's module
        for _ in functions:
            for driver in functions.values():
                driver.look_into(functions)
        found |= {f"{source.stem}.{name}": driver for name, driver in functions.items()}
    return found


DRIVERS = drivers()


def test_drivers_are_found_by_their_decorators():
    assert {"lstm._forward", "lstm._backward", "gemm._matmul", "optim._update_arrays"} <= set(DRIVERS)


@pytest.mark.parametrize("name", DRIVERS)
def test_a_driver_hands_every_array_that_it_made_to_the_launch(name):
    """Numba frees an array after its last use. So one whose address is in a job is an argument of a launch, and a pointer, which nothing
    holds, is taken of arrays alone that the driver was given or that lie on the stack."""
    driver = DRIVERS[name]
    assert not driver.called, "launch with run_kernel"
    kept = {array for launch in driver.launches for array in map(driver.root, launch)}
    assert driver.heap & {*driver.addressed} <= kept
    assert not driver.heap & {*driver.pointed}


@pytest.mark.full
def test_no_kernel_allocates():
    """An allocation in a kernel could fail, and nobody would be told."""
    from fastgrad.kernels.cpu.engine import compile

    for kernel in compile.KERNELS:
        kernel.address(F4)
        code = str(kernel._compiled["f"]._library._get_module_for_linking())
        assert "fastgrad" in code or kernel.function.__name__ in code
        assert "NRT_MemInfo_alloc" not in code, kernel.function.__name__
        assert "NRT_Allocate" not in code, kernel.function.__name__


# --- every op, under the debugging allocator ---


def every_op():
    """(name, call) of ops that together go through every driver, of small sizes, and each with what it returns."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.standard_normal(shape).astype(F4)

    def both(op, *arguments, **options):
        y, backward = op(*arguments, **options)
        outputs = y if isinstance(y, tuple) else (y,)
        return outputs, backward(outputs[0])

    labels = rng.integers(0, 4, 33)
    image, wide = draw(2, 9, 9, 3), draw(2, 9, 9, 8)
    sequences, peephole = draw(5, 7, 6), draw(3, 4)
    lists = [draw(5, 4), draw(7), draw(40, 600)]

    def updated(optimizer, **options):
        params, gradients = [a.copy() for a in lists], [np.ones_like(a) for a in lists]
        updater = fg.Updater(params, optimizer, **options)
        return [updater.step(gradients), params, updater.state]

    def in_place(op, *arguments, **options):
        copies = [a.copy() for a in lists]
        return op(copies, *arguments, **options), copies

    def trained(**options):
        loss, zeros = options.pop("loss", "cross_entropy"), options.pop("zeros", False)
        chain = fg.nn.DenseChain([6, 9, 9, 4], "gelu", "softmax", seed=0)
        trainer = fg.Trainer(chain, loss, seed=1, **options)
        x = np.random.default_rng(1).standard_normal((33, 6)).astype(F4)
        x[:, 1:] *= not zeros
        y = labels if loss == "cross_entropy" else np.abs(x[:, :4]) / 9
        trainer.step(x, y)
        history = trainer.fit(x, y, epochs=2, batch_size=8, progress=False)
        return chain.params, history.loss, trainer.predict(x)

    chain_of = [draw(6, 9), draw(9, 4)], [draw(9), draw(4)], ["tanh", "gelu"]
    x = draw(33, 6)
    variant, norms = (sequences, draw(6, 16) / 4, draw(4, 16) / 4), (draw(16), draw(16), draw(4), draw(4))
    return {
        "dense": lambda: both(fg.dense, x, chain_of[0][0], chain_of[1][0], activation="gelu"),
        "dense_chain": lambda: both(fg.dense_chain, x, *chain_of),
        "conv": lambda: both(fg.conv2d, image, draw(3, 3, 3, 4), stride=2, activation="relu"),
        "winograd": lambda: both(fg.conv2d, wide, draw(3, 3, 8, 8) / 9, padding=1),
        "folded": lambda: both(fg.conv2d, wide, draw(4, 4, 8, 16) / 9, stride=2, padding=1),
        "grouped": lambda: both(fg.conv2d, wide, draw(3, 3, 4, 6), padding=1, groups=2),
        "batch_norm": lambda: both(fg.batch_norm, draw(300, 5), draw(5), draw(5), activation="relu"),
        "layer_norm": lambda: both(fg.layer_norm, draw(33, 50), draw(50), draw(50), activation="relu"),
        "gru": lambda: both(fg.gru, sequences, draw(6, 12) / 4, draw(4, 12) / 4, draw(12), draw(4)),
        "gru_few_steps": lambda: both(fg.gru, sequences[:, :2], draw(6, 12) / 4, draw(4, 12) / 4),
        "gru_reset_before": lambda: both(fg.gru, sequences, draw(6, 12) / 4, draw(4, 12) / 4, reset_after=False),
        "lstm": lambda: both(fg.lstm, sequences, draw(6, 16) / 4, draw(4, 16) / 4),
        "lstm_few_steps": lambda: both(fg.lstm, sequences[:, :2], draw(6, 16) / 4, draw(4, 16) / 4),
        "lstm_peephole": lambda: both(fg.lstm, sequences, draw(6, 16) / 4, draw(4, 16) / 4, peephole=peephole),
        "lstm_layer_norm": lambda: both(fg.lstm, *variant, layer_norm=norms),
        "lstm_zoneout": lambda: both(fg.lstm, *variant, zoneout=(0.2, 0.3), key=5),
        "max_pool": lambda: both(fg.max_pool2d, image, 2),
        "avg_pool": lambda: both(fg.avg_pool2d, image, 3),
        "lstm_projected": lambda: both(fg.lstm, sequences, draw(6, 16) / 4, draw(3, 16) / 4, w_proj=draw(4, 3)),
        "dropout": lambda: fg.nn.Dropout(0.5, seed=3).forward(x, training=True)[0],
        "cross_entropy": lambda: fg.cross_entropy(draw(33, 4), labels),
        "mse": lambda: fg.mse(x, x + 1),
        "adam": lambda: updated(fg.optim.Adam(), clip_norm=1.0),
        "max_norm": lambda: updated(fg.optim.SGD(0.1), constraint=fg.optim.MaxNorm(0.5)),
        "clip_grad_norm": lambda: in_place(fg.clip_grad_norm, 1.0, 3.0),
        "clip_grad_value": lambda: in_place(fg.clip_grad_value, 0.1),
        "project_weights": lambda: in_place(fg.project_weights, 0.5, "all"),
        "prune": lambda: fg.prune(fg.nn.DenseChain([6, 9, 4], seed=0), 0.5),
        "train": trained,
        "train_with_health": lambda: trained(health=True, clip_norm=1.0),
        "train_sparse": lambda: trained(zeros=True),
        "train_mse": lambda: trained(loss="mse", constraint=fg.optim.MaxNorm(2.0)),
        "init": lambda: fg.nn.DenseChain([60, 90, 40], seed=2).params,
    }  # fmt: skip


def flattened(value):
    """The bits of all arrays and numbers in what an op returned."""
    if isinstance(value, dict):
        return [b for v in value.values() for b in flattened(v)]
    if isinstance(value, list | tuple):
        return [b for v in value for b in flattened(v)]
    return [] if value is None else [bits(np.asarray(value))]


def digests():
    """A line for each op: its name and a digest of its bits."""
    import hashlib

    lines = []
    for threads in (1, 3):
        fg.set_num_threads(threads)
        thread_pool.SMALL = 0
        for name, call in every_op().items():
            lines.append(f"{name} {hashlib.sha256(repr(flattened(call())).encode()).hexdigest()}")
    return "\n".join(lines)


@pytest.mark.full
def test_every_op_has_the_same_bits_under_the_debugging_allocator():
    """It writes over what is freed, and before what is allocated."""
    here = in_a_process("print(t.digests())")
    assert len(set(here.split("\n"))) == len(every_op()) + 1
    assert in_a_process("print(t.digests())", PYTHONMALLOC="debug") == here


# --- the end of a process ---


def end_while_daemons_call(*kinds):
    """A daemon thread for each kind calls without end when the process ends."""
    rng = np.random.default_rng(0)
    x, small = np.ones((700, 700), F4), np.ones((20, 20), F4)
    rows, labels = rng.standard_normal((20000, 64), np.float32), rng.integers(0, 10, 20000)
    trainer = fg.Trainer(fg.nn.DenseChain([64, 128, 10], "relu", "softmax", seed=0))
    sequences, w_ih, w_hh = np.ones((9, 30, 40), F4), np.ones((40, 256), F4) / 40, np.ones((64, 256), F4) / 64
    images, w = np.ones((8, 32, 32, 16), F4), np.ones((3, 3, 16, 16), F4)
    updater = fg.Updater([np.ones((500, 500), F4)], fg.optim.Adam(), 1.0)

    def there_and_back(op, *arguments):
        y, backward = op(*arguments)
        return backward(y[0] if isinstance(y, tuple) else y)

    calls = {
        "dense": lambda: there_and_back(fg.dense, x, x), "small": lambda: fg.dense(small, small),
        "fit": lambda: trainer.fit(rows, labels, epochs=3, progress=False), "predict": lambda: trainer.predict(rows[:500]),
        "step": lambda: trainer.step(rows[:320], labels[:320]), "lstm": lambda: there_and_back(fg.lstm, sequences, w_ih, w_hh),
        "winograd": lambda: there_and_back(fg.conv2d, images, w), "conv": lambda: there_and_back(fg.conv2d, images, w[:2]),
        "batch_norm": lambda: there_and_back(fg.batch_norm, x, x[0], x[0]),
        "pool": lambda: there_and_back(fg.max_pool2d, images, 2), "updater": lambda: updater.step([updater.params[0]]),
        "clip": lambda: fg.clip_grad_norm([x], 1e9),
    }  # fmt: skip

    def repeat(call):
        while True:
            call()

    for kind in kinds:
        calls[kind]()
    for kind in kinds:
        threading.Thread(target=repeat, args=(calls[kind],), daemon=True).start()
    time.sleep(0.3)


# small calls stay on the thread that makes them, beside large ones that share the pool
KINDS = [
    ("dense", "small", "lstm"),
    ("fit", "predict", "winograd"),
    ("step", "conv", "pool"),
    ("batch_norm", "updater", "clip"),
]


@pytest.mark.parametrize("kinds", KINDS, ids="+".join)
def test_a_process_may_end_while_daemon_threads_call(kinds):
    in_a_process(f"t.end_while_daemons_call(*{kinds})")


# --- the number of threads ---


def probe(launcher, parts, room):
    return parts, room.size


@pytest.fixture
def four_threads():
    before = thread_pool.get_num_threads()
    thread_pool.set_num_threads(4)
    yield
    thread_pool.set_num_threads(before)


def test_a_call_reads_the_number_of_threads_once(four_threads, monkeypatch):
    """Another thread sets it between any two steps of a call."""
    monkeypatch.setattr(thread_pool, "_openmp", None)
    monkeypatch.setattr(thread_pool, "threaded_scratch", ScratchPool())
    monkeypatch.setattr(thread_pool, "_wake", lambda n: thread_pool.set_num_threads(16))
    parts, size = thread_pool.run(1e9, probe, scratch=(F4, 7, 1000))
    assert parts == 4
    assert 4007 <= size < 16_007


def test_scratch_is_that_of_the_parts_of_the_launch(four_threads, monkeypatch):
    monkeypatch.setattr(thread_pool, "serial_scratch", ScratchPool())
    assert thread_pool.run(1, probe, scratch=(F4, 7, 1000)) == (1, 1007)


def change_the_number_meanwhile(seconds=2.5):
    """Products, convolutions and LSTMs, while another thread sets other numbers of threads all the time."""
    rng = np.random.default_rng(0)
    thread_pool.SMALL = 0
    a, b = rng.standard_normal((70, 90), np.float32), rng.standard_normal((90, 80), np.float32)
    images, w = rng.standard_normal((2, 8, 8, 8), np.float32), rng.standard_normal((3, 3, 8, 8), np.float32)
    sequences, w_ih = rng.standard_normal((9, 6, 8), np.float32), rng.standard_normal((8, 32), np.float32)

    def work():
        y, backward = fg.conv2d(images, w, padding=1)
        (h, *_), back = fg.lstm(sequences, w_ih, w_ih)
        return flattened([fg.dense(a, b)[0], y, backward(y), fg.conv2d(images, w[:2])[0], h, back(h)])

    expected, end = work(), time.monotonic() + seconds

    def change():
        while time.monotonic() < end:
            for n in (1, 9, 2, 5):
                fg.set_num_threads(n)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    thread = threading.Thread(target=change)
    thread.start()
    try:
        while time.monotonic() < end:
            assert work() == expected
    finally:
        sys.setswitchinterval(before)
        thread.join()


def test_the_number_of_threads_may_change_during_calls():
    in_a_process("t.change_the_number_meanwhile()", PYTHONMALLOC="debug")


def test_a_launch_has_no_more_parts_than_it_can_count():
    before = fg.get_num_threads()
    for many in (4097, 65_535, 65_536, 65_537, 2**31, 2**63, 10**30):
        with pytest.raises(ValueError, match=r"set_num_threads: count must be an integer of at most 4096, got \d+"):
            fg.set_num_threads(many)
    assert fg.get_num_threads() == before
    assert thread_pool.MOST_THREADS < 1 << 16


# --- scratch ---


def test_scratch_arrays_are_as_many_as_calls_at_one_time_and_bounded(monkeypatch):
    """Not one for every Python thread that ever called."""
    pool = ScratchPool()
    monkeypatch.setattr(thread_pool, "serial_scratch", pool)
    net = fg.nn.DenseChain([20, 20, 4], seed=0)
    for _ in range(12):
        thread = threading.Thread(target=net.predict, args=(np.ones((5, 20), F4),))
        thread.start()
        thread.join()
    assert len(pool._free["f"]) == 1
    taken = [pool.take(F4, 5 << 20) for _ in range(8)]
    for array in taken:
        pool.give(array)
    assert sum(array.nbytes for array in pool._free["f"]) <= pool.KEPT


def test_a_scratch_array_that_is_too_small_is_let_go():
    pool = ScratchPool()
    pool.give(np.empty(3, F4))
    large = pool.take(F4, 5)
    assert large.size == 5
    pool.give(large)
    assert pool.take(F4, 4) is large


def test_the_layout_of_arrays_in_memory_is_looked_at_before_it_is_relied_on():
    from fastgrad.kernels.cpu.engine import object_memory

    assert object_memory.layout_is_known()
    # as where objects begin with other words
    assert not object_memory.layout_is_known(object_memory.HEAD + 8)


def test_an_unknown_layout_of_arrays_gives_the_same_bits(monkeypatch):
    """Python then writes down what machine code reads."""
    from fastgrad.kernels.cpu.engine import object_memory

    ops = every_op()
    names = "dense_chain", "adam", "max_norm", "clip_grad_norm", "train"
    with fg.use_backend("cpu"):
        known = [flattened(ops[name]()) for name in names]
        monkeypatch.setattr(object_memory, "LAYOUT_IS_KNOWN", False)
        assert [flattened(ops[name]()) for name in names] == known
        x = np.ones((2, 3), F4)
        assert object_memory.are_uniform([x, x])
        assert not object_memory.are_uniform([x, x.T])
        assert not object_memory.are_uniform([x, [1]])
