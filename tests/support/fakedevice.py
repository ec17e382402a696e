"""A pytest plugin: a fake GPU stands for the device, so that tests which need one run."""


def pytest_configure(config):
    from fakegpu import FakeGPU

    from fastgrad.core import device as gpu
    from fastgrad.kernels.cuda.engine import device

    gpu.missing = lambda: ""
    device.GPU = FakeGPU
