"""The command `python -m fastgrad warmup`: compile all kernels of the "cpu" backend into the cache ahead of time."""

from fastgrad.core.backend import load


def run() -> None:
    """Compile every kernel and driver, with a progress bar; raises BackendError where the backend cannot run."""
    from tqdm import tqdm

    load("cpu")
    from fastgrad.kernels.cpu.warmup import warmup_tasks

    with tqdm(warmup_tasks(), unit="kernel") as bar:
        for label, compile_kernel in bar:
            bar.set_description(label)
            compile_kernel()
