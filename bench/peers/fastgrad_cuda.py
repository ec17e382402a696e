"""fastgrad on a GPU, with its arrays in GPU memory."""

from bench.peers import GpuRunner, fastgrad_cpu
from fastgrad.core import device


def setup(threads):
    # says what is missing
    device.cuda_device()


def to_gpu(value):
    """Arrays in lists and tuples, on the GPU."""
    return type(value)(map(to_gpu, value)) if isinstance(value, list | tuple) else device.to_gpu(value)


def to_host(value):
    """Arrays in lists and tuples, in NumPy."""
    if isinstance(value, list | tuple):
        return type(value)(map(to_host, value))
    return device.to_host(value) if device.on_gpu(value) else value


class CudaRunner(GpuRunner):
    def wait(self):
        device.cuda_device().xp.cuda.Device().synchronize()

    def fetch(self, result):
        return super().fetch(to_host(result))


class Step(CudaRunner, fastgrad_cpu.Step):
    @staticmethod
    def build(net):
        return fastgrad_cpu.build(net).to("cuda")

    def __init__(self, net):
        super().__init__(net)
        self.inputs = to_gpu(self.inputs)

    def fetch(self, loss):
        return super().fetch(float(loss))


class Blocks(Step):
    @staticmethod
    def build(net):
        return fastgrad_cpu.Blocks.build(net).to("cuda")

    def fetch(self, loss):
        return self.net.outcome(float(loss), map(to_host, self.model.statistics().values()))


class Lstm(CudaRunner, fastgrad_cpu.Lstm):
    def __init__(self, lstm):
        super().__init__(lstm)
        self.inputs, self.dy = to_gpu(self.inputs), to_gpu(self.dy)
        self.model.to("cuda")

    def fetch(self, result):
        return self.outcome(*to_host(result), map(to_host, self.model.gradients().values()))


class BatchNorm(CudaRunner, fastgrad_cpu.BatchNorm):
    def __init__(self, norm):
        super().__init__(norm)
        self.inputs, self.residual, self.dy, self.factors = to_gpu((self.inputs, self.residual, self.dy, self.factors))


class Update(CudaRunner, fastgrad_cpu.Update):
    def __init__(self, update):
        super().__init__(update)
        self.gradients = to_gpu(self.gradients)

    def fetch(self, _):
        return self.update.outcome(to_host(self.params))
