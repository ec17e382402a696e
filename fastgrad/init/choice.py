"""The init of a model: the function of its name, and a check of the weights that it draws."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from fastgrad.core import check
from fastgrad.core.errstate import silent
from fastgrad.init import distributions, scaled
from fastgrad.init.gains import MODES

DISTRIBUTIONS = "zeros constant normal truncated_normal uniform"
SCALED = "fan_in_uniform xavier_uniform xavier_normal he_uniform he_normal lecun_uniform lecun_normal orthogonal"
INITS: dict[str, Callable[..., np.ndarray]] = {
    name: getattr(module, name)
    for module, names in ((distributions, DISTRIBUTIONS), (scaled, SCALED))
    for name in names.split()
}
# the option that the second of a pair is
OPTIONS = {
    "constant": "value",
    "normal": "std",
    "truncated_normal": "std",
    "uniform": "limit",
    "fan_in_uniform": "c",
    "he_uniform": "mode",
    "he_normal": "mode",
    "orthogonal": "gain",
}


def init_function(op: str, init: Any) -> Callable[..., np.ndarray]:
    """The function of this name, or of this pair of a name and its option, or the caller's own."""
    if callable(init):
        return init
    name, *option = init if isinstance(init, tuple) and len(init) == 2 else (init,)
    check.choice(op, "init", name, INITS)
    if not option:
        return INITS[name]
    if name not in OPTIONS:
        raise ValueError(f"{op}: init {name!r} takes no option; {', '.join(OPTIONS)} do")
    what = f"the {OPTIONS[name]} of init {name!r}"
    if OPTIONS[name] == "mode":
        check.choice(op, what, option[0], MODES)
    else:
        check.finite(op, what, option[0])
    return functools.partial(INITS[name], **{OPTIONS[name]: option[0]})


@silent
def checked_weights(op: str, values: Any, like: np.ndarray) -> np.ndarray:
    """The weights that an init, which may be a user's function, returned: finite numbers of the shape and dtype of `like`."""
    values = np.asarray(values)
    weights = values.astype(like.dtype) if values.dtype.kind in "fiu" else None
    if weights is None or weights.shape != like.shape or not np.isfinite(weights).all():
        dtype = "" if values.dtype == like.dtype else f" of {like.dtype}"
        raise ValueError(
            f"{op}: init must return finite numbers {like.shape}{dtype}, got {values.dtype} {values.shape}"
        )
    return weights
