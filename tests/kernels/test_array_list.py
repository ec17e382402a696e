"""Lists of arrays: lists of uniform arrays are told from others, copies are written back, and what is no such list is refused."""

import numpy as np
import pytest
from arrays import LAYOUTS, laid_out

from fastgrad.core.array_list import ArrayList, check_same_shapes


def test_uniform_lists_are_told_from_others(backend):
    single, double = np.zeros((2, 3), np.float32), np.zeros(2)
    for arrays in ([single], [single, single[:0], single[0]], [double] * 20):
        assert backend.are_uniform(arrays)
    read_only, text = laid_out(single, "read_only"), "no array"
    for other in (
        single.T,
        double,
        read_only,
        text,
        None,
        1.0,
        np.float32(1),
        single.astype(int),
        single.astype(">f4"),
    ):
        assert not backend.are_uniform([single, other])
        assert not backend.are_uniform([other, other]) or other is double
    for other in (np.zeros(2).view(np.recarray), np.ma.zeros(2), np.zeros(2, np.int64), laid_out(double, "misaligned")):
        assert not backend.are_uniform([other])


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "read_only"])
def test_copies_are_written_back(in_force, layout, dtype, rng):
    values = rng.standard_normal((4, 5)).astype(dtype)
    array, other, expected = laid_out(values, layout), values.copy(), 2 * values
    arrays = ArrayList("op", "grads", [other, array])
    for flat in arrays.flat:
        assert flat.flags.carray
        flat *= 2
    arrays.write()
    np.testing.assert_array_equal(array, expected)
    np.testing.assert_array_equal(other, expected)


def test_lists_that_are_refused(in_force):
    single, double = np.zeros((2, 3), np.float32), np.zeros(2)
    with pytest.raises(ValueError, match=r"^op: grads must have length at least 1, got 0$"):
        ArrayList("op", "grads", [])
    with pytest.raises(TypeError, match=r"^op: grads must be a list or tuple, got dict$"):
        ArrayList("op", "grads", {"w": single})
    with pytest.raises(TypeError, match=r"^op: grads\[1\] must be float32, got float64 \(one call has one dtype\)$"):
        ArrayList("op", "grads", (single, double))
    with pytest.raises(TypeError, match=r"^op: grads\[0\] must be float64, got float32"):
        ArrayList("op", "grads", [single], double)
    with pytest.raises(TypeError, match=r"^op: grads\[1\] must be a NumPy array, got NoneType"):
        ArrayList("op", "grads", [single, None])
    with pytest.raises(TypeError, match=r"^op: grads must be float32 or float64 in native byte order, got int64$"):
        ArrayList("op", "grads", np.zeros(2, np.int64))
    with pytest.raises(ValueError, match=r"^op: grads\[0\] must be writable, got a read-only array$"):
        ArrayList("op", "grads", [laid_out(single, "read_only")])
    assert ArrayList("op", "params", [laid_out(single, "read_only")], written=False).flat[0].shape == (2, 3)
    with pytest.raises(ValueError, match=r"^op: grads must have length 2 like params, got 1$"):
        check_same_shapes("op", "grads", [single], "params", [single, double])
    with pytest.raises(ValueError, match=r"^op: grads\[0\] must be \(2,\) like params\[0\], got \(2, 3\)$"):
        check_same_shapes("op", "grads", [single], "params", [double])
