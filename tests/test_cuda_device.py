"""The CUDA backend on a GPU. Where there is one, the tests of each op run there too, as the backend "device" (see conftest.py)."""

import numpy as np
import pytest
from arrays import bits
from conftest import no_gpu
from fastgrad.kernels.names import ACTIVATIONS

pytestmark = [pytest.mark.device, pytest.mark.skipif(bool(no_gpu()), reason=f"needs a GPU: {no_gpu()}")]

# of these the GPU does nothing that is rounded otherwise than here
EXACT = ["identity", "relu", "leaky_relu", "relu6", "clipped_relu"]


@pytest.mark.parametrize("name", EXACT)
def test_the_gpu_gives_the_emulators_bits(on_device, name, dtype, rng):
    from emulation import Emulator
    from fastgrad.kernels import cuda
    from fastgrad.kernels.cuda import device

    z, dy = rng.standard_normal((2, 100, 33)).astype(dtype)
    f, found = ACTIVATIONS[name], []
    for kernels, executor in ((on_device, None), (cuda, Emulator())):
        before = device.use(executor)
        try:
            y, dz = np.empty_like(z), np.empty_like(z)
            kernels.activation_forward(z, y, f)
            kernels.activation_backward(dy, z, y, dz, f)
        finally:
            device.use(before)
        found.append((bits(y), bits(dz)))
    assert found[0] == found[1]
