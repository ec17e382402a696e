"""The contenders: a module for each library, with the workloads of bench/workloads/ written as an expert of that library would.

A module is named library[_variant]_device, so that its name hides no library. It has `setup(threads)` and a class, a Runner, for each
workload that the library can express: Step, Blocks, Forward, Gemm, Lstm, LstmForward, LstmCell, LayerNormLstm, Gru, Fit, Conv,
ConvForward, ConvInputs, ConvWeights, BatchNorm, LayerNorm, Clip, Update, HeNormal, Call, CallBack.
"""

import importlib
import itertools
import time
from collections.abc import Sequence

import numpy as np

FASTGRAD, REFERENCE = "fastgrad", "NumPy"
# the first part of a module's name, before the device
MODULES = {
    "fastgrad": "fastgrad",
    "fastgrad, padded": "fastgrad_padded",
    "fastgrad, with health": "fastgrad_health",
    "fastgrad, alone": "fastgrad_alone",
    "NumPy": "numpy",
    "PyTorch": "torch",
    "torch.compile": "torch_compile",
    "JAX": "jax",
    "Keras": "keras",
    "scikit-learn": "sklearn",
}
# fastgrad in another way, which is no peer, and the target that asks for it
VARIANTS = {
    "fastgrad, padded": "target_padded",
    "fastgrad, with health": "target_health",
    "fastgrad, alone": "target_alone",
}
# what can train a net
NETS = [name for name in MODULES if name not in VARIANTS]
# by kind of workload
CONTENDERS = {
    "step": NETS,
    "fit": ["fastgrad", "scikit-learn"],
    "block": ["fastgrad", "PyTorch", "torch.compile", "JAX", "Keras"],
    "forward": NETS,
    "gemm": ["fastgrad", "NumPy", "PyTorch"],
    "lstm": ["fastgrad", "NumPy", "PyTorch", "JAX"],
    "gru": ["fastgrad", "NumPy", "PyTorch", "JAX"],
    "conv": ["fastgrad", "PyTorch", "JAX"],
    "batch_norm": ["fastgrad", "NumPy", "PyTorch", "JAX"],
    "layer_norm": ["fastgrad", "NumPy", "PyTorch", "JAX"],
    "clip": ["fastgrad", "NumPy", "PyTorch", "JAX"],
    "init": ["fastgrad", "NumPy", "PyTorch"],
    "torch": ["fastgrad", "PyTorch"],
    # fastgrad itself, and its adapters
    "call": ["fastgrad", "PyTorch", "JAX"],
    "cuda": ["fastgrad", "PyTorch", "torch.compile"],
}


def contenders(workload):
    """Names of the contenders that run a workload."""
    variants = [name for name, target in VARIANTS.items() if getattr(workload, target)]
    return variants + CONTENDERS[workload.kind]


def device(workload):
    """The device that a workload runs on: "cpu" or "cuda"."""
    return "cuda" if workload.kind == "cuda" else "cpu"


class UnsupportedWorkload(Exception):
    """The library has no such net or option."""


def load(contender, device="cpu"):
    """The contender's module."""
    return importlib.import_module(f"bench.peers.{MODULES[contender]}_{device}")


class Runner:
    """A workload in one library. `call` gets each of `inputs` in turn, again and again."""

    inputs: Sequence[tuple] = ((),)

    def restart(self):
        """Restore the initial weights and optimiser state."""

    def call(self, *inputs):
        raise NotImplementedError

    def fetch(self, result):
        """The result of the last call as a NumPy array; waits until it is computed."""
        return np.asarray(result)

    def reset(self):
        self.restart()
        self.feed = itertools.cycle(self.inputs)

    def repeat(self, count):
        """The result of the last of `count` calls, which may still be running."""
        call = self.call
        for inputs in itertools.islice(self.feed, count):
            result = call(*inputs)
        return result

    def run(self, count):
        return self.fetch(self.repeat(count))

    def seconds(self, count):
        """Seconds of `count` calls, until the result of the last one is computed."""
        start = time.perf_counter()
        self.run(count)
        return time.perf_counter() - start

    def answer(self, calls):
        """The results of the first calls, thinned to at most 1,000 values, to be compared with the reference."""
        self.reset()
        values = np.concatenate([np.ravel(self.run(1)).astype("f8") for _ in range(calls)])
        return values[:: -(-values.size // 1000)]


class GpuRunner(Runner):
    """A runner on a GPU: timed until the device has finished, without copies to the host."""

    def wait(self):
        """Wait until the device has finished."""
        raise NotImplementedError

    def seconds(self, count):
        self.wait()
        start = time.perf_counter()
        self.repeat(count)
        self.wait()
        return time.perf_counter() - start
