"""The progress bar of Trainer.fit, in a terminal or a notebook."""

import sys
from typing import Any

from fastgrad.training.history import History


def has_bar(progress: bool | None) -> bool:
    """Whether a bar is shown; None shows it where stderr is a terminal, and in a notebook."""
    if progress is not None:
        return bool(progress)
    return (sys.stderr is not None and sys.stderr.isatty()) or _in_notebook()


def epoch_bar(epochs: int, finished: int) -> Any:
    """A bar of this many epochs, of which some are finished."""
    # created only if it is shown: an interrupt in its destructor would be lost
    from tqdm.auto import tqdm

    return tqdm(total=epochs, initial=finished, unit="epoch")


def show(bar: Any, history: History) -> None:
    """Show the last epoch of a history."""
    bar.set_postfix({name: f"{values[-1]:.4g}" for name, values in vars(history).items() if values})
    bar.update()


def _in_notebook() -> bool:
    # IPython's own mark of a notebook's kernel, which tqdm.auto reads too
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return "IPKernelApp" in getattr(shell, "config", ())
