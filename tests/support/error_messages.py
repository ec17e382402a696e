"""Errors with their whole message."""

import numpy as np
import pytest


def refuses(kind, message, function, *arguments, **options):
    """The call raises this kind of error with exactly this message."""
    with pytest.raises(kind) as caught:
        function(*arguments, **options)
    assert str(caught.value) == message


def refuses_other_types(op, name, array, call, *, first=False):
    """call(value) takes no list, no masked array and no array of another dtype in place of an array of float32.

    The first array of a call may be of float64: it says the dtype of the others.
    """

    def fails(value, message):
        refuses(TypeError, f"{op}: {name} must be {message}", call, value)

    fails(array.tolist(), "a NumPy array, got list; np.asarray(value, dtype) makes one")
    fails(np.ma.array(array), "a NumPy array, got MaskedArray; np.asarray(value, dtype) makes one")
    for kind in ("int64", "bool", "float16", "complex64", ">f4"):
        fails(array.astype(kind), f"float32 or float64 in native byte order, got {np.dtype(kind)}")
    if not first:
        fails(array.astype(np.float64), "float32, got float64 (one call has one dtype)")
