"""python -m fastgrad info | warmup | health"""

import argparse
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

import fastgrad
from fastgrad import experiment
from fastgrad.backend import BACKENDS, BackendError, load, missing


def info(options: argparse.Namespace) -> None:
    """What is installed, which backends run, and how the "cpu" backend is set up."""
    print(f"fastgrad {fastgrad.__version__}, Python {platform.python_version()}, {platform.machine()}")
    print(", ".join(f"{package} {_version(package)}" for package in ("numpy", "numba", "llvmlite")))
    for name in BACKENDS:
        reason = missing(name)
        chosen = ", in force" if name == fastgrad.backend() else ""
        print(f"backend {name}: {reason or 'runs'}{chosen}")
    if fastgrad.backend() not in BACKENDS:
        print(f"backend {fastgrad.backend()}: unknown, but named by FASTGRAD_BACKEND")
    if missing("cpu"):
        return
    from fastgrad.kernels.cpu import cache, parallel, simd

    print(f"threads: {parallel.get_num_threads()}")
    print(f"vectors: {simd.vector_bits()} bits")
    folders = cache.folders()
    for folder in folders:
        size = sum(file.stat().st_size for file in folder.iterdir())
        print(f"cache: {folder}, {size / 1e6:.1f} MB{'' if os.access(folder, os.W_OK) else ', not writable'}")
    if not folders:
        print("cache: none, since no folder can be had that others cannot write to; each process compiles its kernels")


def warmup(options: argparse.Namespace) -> None:
    """Compile the kernels of the "cpu" backend into the cache, which takes some minutes."""
    from tqdm import tqdm

    tasks = load("cpu").warmup_tasks()
    with tqdm(tasks, unit="kernel") as bar:
        for label, compile_kernel in bar:
            bar.set_description(label)
            compile_kernel()


def health(options: argparse.Namespace) -> None:
    """Train a deep net on digits for some steps, and tell and draw how its gradients fare."""
    experiment.run(options)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m fastgrad", description=fastgrad.__doc__)
    parser.add_argument("--version", action="version", version=f"fastgrad {fastgrad.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="info | warmup | health")
    for command in (info, warmup, health):
        subparser = commands.add_parser(command.__name__, help=command.__doc__, description=command.__doc__)
        subparser.set_defaults(run=command)
        if command is health:
            experiment.arguments(subparser)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (BackendError, ImportError, OSError, ValueError) as error:
        print(f"fastgrad: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    sys.exit(main())
