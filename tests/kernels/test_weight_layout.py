"""The two layouts of a convolution's weights: every value is where it belongs, in any size and at any thread count."""

import numpy as np
import pytest
from arrays import unwritten, with_threads

# a value, odd sizes, one channel, whole tiles and what is left beside them, past the threading threshold
SHAPES = [(1, 1, 1, 1), (3, 5, 3, 3), (96, 1, 5, 5), (64, 16, 1, 1), (65, 17, 3, 2), (130, 33, 7, 7), (300, 257, 3, 3)]


@pytest.mark.parametrize("shape", SHAPES)
def test_weights_are_copied_from_one_layout_to_the_other(backend, dtype, shape, rng):
    weight = rng.standard_normal(shape).astype(dtype)
    weight.flat[0] = np.nan
    expected = weight.transpose(2, 3, 1, 0)

    def copies():
        w, again = unwritten(expected.shape, dtype), unwritten(shape, dtype)
        backend.weights_to_taps(weight, w)
        backend.weights_from_taps(w, again)
        return w, again

    for w, again in with_threads(copies):
        np.testing.assert_array_equal(w, expected)
        np.testing.assert_array_equal(again, weight)
