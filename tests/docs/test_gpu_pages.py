"""The pages' Python runs unchanged where CUDA is in force, over a fake GPU, and so do the blocks that need a GPU."""

import importlib
import re
import sys

import numpy as np
import pytest
from test_pages import PEERS, ROOT, head, imported, programs, skip_without

import fastgrad as fg

PAGES = [
    "guide/functions",
    "guide/gradient-health",
    "guide/images",
    "guide/layers-and-trainer",
    "guide/optimisers-and-clipping",
    "guide/pruning",
    "guide/sequences",
    "quickstart",
]
# what says that a block trains for seconds, which emulated are minutes
TRAINS = "fit(", "train(", "for _ in range", "ResNet("
# fewer steps of sequences and of a training: each is emulated for milliseconds
FEWER_STEPS = {
    "(8, 30, 4)": "(8, 6, 4)",
    "integers(1, 31, 8)": "integers(1, 7, 8)",
    "np.empty(30)": "np.empty(6)",
    "(4, 400, 3)": "(4, 40, 3)",
    "window=50": "window=5",
    "long[:, :100]": "long[:, :10]",
    "long[:, 100:]": "long[:, 10:]",
}
FEWER_ROWS = {":1500": ":480", "epochs=20": "epochs=1", "> 0.9": "> 0.1"}


def text_of(page):
    return (ROOT / "docs" / f"{page}.md").read_text("utf-8")


def changed(text, changes):
    for before, after in changes.items():
        assert before in text
        text = text.replace(before, after)
    return text


@pytest.fixture
def in_cuda(fake_gpu, tmp_path, monkeypatch):
    """Runs blocks that share their names: those that train by the CPU's kernels over the fake GPU's arrays, others by the emulated ones."""
    from fakegpu import HostKernels

    from fastgrad.core.host_transfer import HostArrayAdapter

    monkeypatch.chdir(tmp_path)
    loaded, on_host = importlib.import_module("fastgrad.core.backend")._loaded, HostKernels(fake_gpu)
    emulated = loaded["cuda"]

    def run(blocks, page):
        names = {}
        before = on_host.calls, len(fake_gpu.launches), fake_gpu.copies
        for block in blocks:
            trains = any(word in block for word in TRAINS)
            monkeypatch.setitem(loaded, "cuda", HostArrayAdapter(on_host) if trains else emulated)
            with fg.use_backend("cuda"):
                exec(compile(block, f"{page}.md", "exec"), names)
        assert (on_host.calls, len(fake_gpu.launches), fake_gpu.copies) != before, "the page ran elsewhere"
        return names

    return run


@pytest.mark.full
@pytest.mark.parametrize("page", PAGES)
def test_pages_run_unchanged_where_cuda_is_in_force(in_cuda, page):
    text = text_of(page)
    skip_without(head(text).get("needs", "").split())
    if page == "guide/sequences":
        text = changed(text, FEWER_STEPS)
    # other libraries' arrays are the host's, and comparisons of many trained nets say nothing of a GPU
    in_cuda([block for block in programs(text) if not imported(block) & PEERS and "trained(" not in block], page)


@pytest.mark.full
def test_the_blocks_that_need_a_gpu_run_over_a_fake_one(in_cuda, fake_gpu, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", fake_gpu.xp)
    pytest.importorskip("torch", reason="a block of the page shows it")
    blocks = re.findall(r"^```py\n(.*?)^```$", text_of("gpu"), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 4
    in_cuda(blocks, "gpu")


@pytest.mark.full
def test_the_digits_are_learnt_by_the_emulated_kernels(fake_gpu, tmp_path, monkeypatch):
    """Fewer rows and epochs than the page's, which would take minutes."""
    pytest.importorskip("sklearn", reason="the page's data is scikit-learn's")
    monkeypatch.chdir(tmp_path)
    block = changed(next(programs(text_of("guide/layers-and-trainer"))), FEWER_ROWS)
    losses = []
    for backend in ("cpu", "cuda"):
        names = {}
        with fg.use_backend(backend):
            exec(compile(block, "layers-and-trainer.md", "exec"), names)
        losses.append(names["history"].loss)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)
