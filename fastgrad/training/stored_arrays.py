"""Arrays of a safetensors file: the check of their shape and dtype, and their values in a model's dtype."""

import json
from typing import Any

import numpy as np

from fastgrad.core.errstate import silent

DTYPES = {"F32": "float32", "F64": "float64", "I64": "int64", "BOOL": "bool"}
# what is read into float32 or float64, whichever the model has
FLOATS = "F16", "BF16", "F32", "F64"


def check_stored(path: Any, name: str, part: Any, array: np.ndarray) -> None:
    """Raise unless an array of the file, a slice of safetensors, can be read into this one."""
    shape, code = tuple(part.get_shape()), part.get_dtype()
    if shape != array.shape:
        raise ValueError(f"load: {path}: {name} must be {array.shape}, got {shape}")
    if DTYPES.get(code) != array.dtype and not (array.dtype.kind == "f" and code in FLOATS):
        raise TypeError(f"load: {path}: {name} must be {array.dtype}, got {DTYPES.get(code, code)}")


@silent
def stored_value(path: Any, file: Any, name: str, part: Any, dtype: np.dtype) -> np.ndarray:
    """An array of the file, in this dtype."""
    stored = _bfloat16(path, name) if part.get_dtype() == "BF16" else file.get_tensor(name)
    value = stored.astype(dtype, copy=False)
    if value is not stored and (np.isfinite(stored) & ~np.isfinite(value)).any():
        raise ValueError(f"load: {path}: {name} has a value that is infinite in {dtype}")
    return value


def _bfloat16(path: Any, name: str) -> np.ndarray:
    """An array of bfloat16, which NumPy has not, as float32, of which it is the upper half."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(size))[name]
        start, end = entry["data_offsets"]
        file.seek(8 + size + start)
        upper = np.frombuffer(file.read(end - start), "<u2")
    return (upper.astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])
