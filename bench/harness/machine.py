"""A description of the machine of a run: processor, measured limits, GPU, versions of all libraries."""

import platform
import statistics
from importlib import metadata
from pathlib import Path

from bench.harness.workers import available_threads
from fastgrad.core.backend import missing

PACKAGES = ("fastgrad", "numpy", "numba", "torch", "jax", "tensorflow", "tensorflow-cpu", "keras", "scikit-learn",
            "numba-cuda", "cupy-cuda13x")  # fmt: skip


def machine(workers):
    """The description as a dictionary, for results.json and `describe`."""

    def limit(name, threads):
        worker = workers.get("limits", threads)
        return statistics.median(worker.ask("limit", name) for _ in range(5))

    return {
        "processor": processor(),
        "threads": available_threads(),
        "gflops_one": limit("fma", 1) / 1e9,
        "gflops_all": limit("fma", None) / 1e9,
        "triad_gbytes": limit("triad", None) / 1e9,
        "versions": versions(),
        "gpu": graphics(workers),
    }


def graphics(workers):
    """The GPU and its measured limits, or the reason why no workload runs on one."""
    if lacks := missing("cuda"):
        return f"Nothing ran on a GPU: {lacks}"
    worker = workers.get("limits", device="cuda")
    gflops, gbytes = (statistics.median(worker.ask("limit", name) for _ in range(5)) / 1e9 for name in ("fma", "triad"))
    return (
        f"{worker.ask('limit', 'name')}. Limits measured in this run: float32 matrix product {gflops:.0f} GFLOP/s; "
        f"memory (copy) {gbytes:.0f} GB/s"
    )


def processor():
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def versions():
    """{package: version} of those that are installed."""
    installed = {}
    for package in PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed


def describe(machine):
    """Two sentences: the processor and its limits, and the versions."""
    packages = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['processor']}, {machine['threads']} threads. Limits measured in this run: float32 FMA "
        f"{machine['gflops_one']:.0f} GFLOP/s on one thread, {machine['gflops_all']:.0f} on all; "
        f"memory (triad) {machine['triad_gbytes']:.0f} GB/s. {packages}."
    )
