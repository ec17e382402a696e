"""PTX's types as NumPy's, and the error that everything here raises."""

import numpy as np

TYPES = {
    name: np.dtype(kind)
    for name, kind in {
        "pred": "?", "b8": "u1", "u8": "u1", "s8": "i1", "b16": "u2", "u16": "u2", "s16": "i2", "f16": "f2",
        "b32": "u4", "u32": "u4", "s32": "i4", "f32": "f4", "b64": "u8", "u64": "u8", "s64": "i8", "f64": "f8",
    }.items()
}  # fmt: skip
UNSIGNED = {n: np.dtype(f"u{n}") for n in (1, 2, 4, 8)}
SIGNED = {n: np.dtype(f"i{n}") for n in (1, 2, 4, 8)}
PREDICATE = TYPES["pred"]


class PTXError(RuntimeError):
    """The kernel does what a GPU does not allow, or what this executor does not know."""


def reinterpret(values, dtype):
    """A register's values as an instruction of this type sees them: the low bytes where it is narrower."""
    if values.dtype is dtype or values.dtype == PREDICATE or dtype == PREDICATE:
        return values
    if values.itemsize < dtype.itemsize:
        raise PTXError(f"a register of {8 * values.itemsize} bits is narrower than {dtype}")
    if values.itemsize > dtype.itemsize:
        values = values.astype(UNSIGNED[dtype.itemsize])
    return values.view(dtype)


def stored(values, dtype):
    """Values as bits of a register of this unsigned type: integers are extended as their sign asks."""
    if values.dtype is dtype:
        return values
    if values.dtype == PREDICATE or dtype == PREDICATE:
        return values.astype(dtype)
    if values.itemsize != dtype.itemsize and values.dtype.kind in "iu":
        values = values.astype((SIGNED if values.dtype.kind == "i" else UNSIGNED)[dtype.itemsize])
    return np.ascontiguousarray(values).view(dtype)
