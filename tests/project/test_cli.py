"""python -m fastgrad: what it prints, and that a user's error is one line and a status."""

import os
import pickle
import re
import subprocess
import sys

import pytest

import fastgrad as fg


def run(*arguments, **environment):
    """(status, stdout, stderr) of python -m fastgrad."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-m", "fastgrad", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    return result.returncode, result.stdout, result.stderr


def test_info_tells_versions_backends_threads_vectors_and_cache(tmp_path):
    folder = tmp_path / "cache"
    status, out, err = run("info", FASTGRAD_CACHE_DIR=str(folder), FASTGRAD_BACKEND="cpu", FASTGRAD_VECTOR_BITS="128")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith(f"fastgrad {fg.__version__}, Python 3")
    assert re.fullmatch(r"numpy \S+, numba \S+, llvmlite \S+", lines[1])
    assert re.fullmatch(r"PyTorch \S+, JAX \S+, scikit-learn \S+", lines[2])
    assert "backend cpu: runs, in force" in lines
    assert "backend numpy: runs" in lines
    (cuda,) = [line for line in lines if line.startswith("backend cuda: missing ")]
    assert "an NVIDIA driver" in cuda
    assert re.search(r"^threads: \d+$", out, re.MULTILINE)
    assert "vectors: 128 bits" in lines
    assert re.search(rf"^cache: {re.escape(str(folder))}\S*, 0.0 MB$", out, re.MULTILINE)
    assert re.search(r"^compiled: 0 of \d+ kernels; python -m fastgrad warmup compiles the rest$", out, re.MULTILINE)


def test_info_tells_what_is_missing_of_the_adapters_libraries(monkeypatch, capsys):
    from fastgrad.cli import info

    def version(package):
        if package != "numpy":
            raise info.PackageNotFoundError(package)
        return "2.0"

    monkeypatch.setattr(info, "version", version)
    info.run()
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "numpy 2.0, numba missing, llvmlite missing"
    assert lines[2] == "PyTorch missing, JAX missing, scikit-learn missing"


def test_info_names_an_unknown_backend():
    status, out, _ = run("info", FASTGRAD_BACKEND="gpu")
    assert status == 0
    assert "backend gpu: unknown, but named by FASTGRAD_BACKEND" in out


def test_version():
    assert run("--version") == (0, f"fastgrad {fg.__version__}\n", "")


@pytest.mark.parametrize("arguments", [(), ("tune",), ("info", "--all")])
def test_wrong_arguments_are_told_in_usage_lines(arguments):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("usage: python -m fastgrad")
    assert "Traceback" not in err


@pytest.mark.parametrize("sweep", [(), ("--sweep",)])
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("none/a.png", "health: plot: there is no folder {folder}/none"),
        ("a.xyz", "health: plot must end in one of ."),
        (".", "health: plot must be a file, got the folder "),
    ],
)
def test_health_refuses_a_picture_before_the_training(path, message, sweep, tmp_path, monkeypatch, capsys):
    from fastgrad.__main__ import main
    from fastgrad.cli import health as command

    monkeypatch.setattr(command, "digits", lambda: pytest.fail("the training began"))
    assert main(["health", "--plot", str(tmp_path / path), *sweep]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"fastgrad: {message.format(folder=os.path.realpath(tmp_path))}")


def test_health_draws_a_picture(tmp_path):
    path = tmp_path / "a.svg"
    status, out, _ = run("health", "--depth", "2", "--steps", "2", "--plot", str(path), FASTGRAD_BACKEND="numpy")
    assert status == 0
    assert out.endswith(f"drawn in {path}\n")
    assert path.stat().st_size


class Job:
    """A job of workers.py; too short for a process of its own."""

    seconds = 0.1

    def __init__(self, label, compile):
        self.label, self.compile = label, compile


def test_warmup_runs_every_job_with_progress(monkeypatch, capsys):
    from fastgrad.__main__ import main
    from fastgrad.kernels.cpu import warmup

    done, asked = [], []

    def jobs(groups, chars):
        asked.append((groups, chars))
        return [Job("gemm", lambda: done.append("gemm")), Job("step", lambda: done.append("step"))]

    monkeypatch.setattr(warmup, "warmup_jobs", jobs)
    assert main(["warmup"]) == 0
    assert done == ["gemm", "step"]
    out, err = capsys.readouterr()
    assert "2/2" in err
    assert re.fullmatch(r"2 kernels and drivers in \d+ s\n", out)
    assert main(["warmup", "--only", "lstm", "conv", "--dtype", "float64"]) == 0
    assert asked == [(tuple(warmup.GROUPS), "fd"), (["lstm", "conv"], "d")]


def test_an_error_of_warmup_is_one_line(monkeypatch, capsys):
    from fastgrad.__main__ import main
    from fastgrad.kernels.cpu import warmup

    def fails():
        raise OSError("no space left")

    monkeypatch.setattr(warmup, "warmup_jobs", lambda groups, chars: [Job("gemm", fails)])
    assert main(["warmup"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "fastgrad: no space left"


def test_the_jobs_of_warmup_have_labels_and_can_be_sent():
    from fastgrad.cli import warmup as command
    from fastgrad.kernels.cpu import warmup

    jobs = warmup.warmup_jobs()
    assert jobs
    assert all(isinstance(job.label, str) and job.seconds > 0 for job in jobs)
    assert pickle.loads(pickle.dumps(jobs)) == jobs
    assert len({*jobs}) == len(jobs)
    assert tuple(warmup.GROUPS) == command.GROUPS


@pytest.mark.full
def test_warmup_leaves_nothing_to_compile():
    """What it compiles, in the cache that the other tests use, the next process loads; and steps after it ask for no more."""
    assert run("warmup")[0] == 0
    code = """
import numpy as np, fastgrad as fg
from fastgrad.kernels.cpu import warmup
from fastgrad.kernels.cpu.engine import compile
from fastgrad.kernels.cpu.engine.cache import Cache

load, save, asked = Cache.load_overload, Cache.save_overload, []

def counted(cache, *rest):
    asked.append(cache.function.__name__)
    return load(cache, *rest)

def compiled(cache, *rest):
    raise AssertionError(f"{cache.function.__name__} was compiled")

Cache.load_overload, Cache.save_overload = counted, compiled
for job in warmup.warmup_jobs():
    job.compile()
assert len(asked) > len(compile.KERNELS)
asked.clear()
for dtype in ("float32", "float64"):
    x, y = np.ones((300, 64), dtype), np.zeros(300, np.int64)
    chain = fg.nn.DenseChain([64, 64, 10], output="softmax", dtype=dtype)
    trainer = fg.Trainer(chain)
    trainer.step(x, y)
    trainer.fit(x, y)
    trainer.predict(x)
    out, backward = fg.dense(x, chain.weights[0], activation="gelu", residual=x)
    backward(fg.mse(out, x)[1])
    fg.cross_entropy(out, y), fg.binary_cross_entropy(out, x)
assert asked == [], asked
"""
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "FASTGRAD_BACKEND": "cpu"}, check=True)
