"""fastgrad on a GPU: its arrays lie there."""

from bench.peers import OnGpu, fastgrad
from fastgrad.core import device


def setup(threads):
    # says what is missing
    device.cuda_device()


def there(value):
    """Arrays in lists and tuples, on the GPU."""
    return type(value)(map(there, value)) if isinstance(value, list | tuple) else device.to_gpu(value)


def here(value):
    """And back."""
    if isinstance(value, list | tuple):
        return type(value)(map(here, value))
    return device.to_host(value) if device.on_gpu(value) else value


class OnCuda(OnGpu):
    def wait(self):
        device.cuda_device().xp.cuda.Device().synchronize()

    def fetch(self, result):
        return super().fetch(here(result))


class Step(OnCuda, fastgrad.Step):
    @staticmethod
    def build(net):
        return fastgrad.build(net).to("cuda")

    def __init__(self, net):
        super().__init__(net)
        self.inputs = there(self.inputs)

    def fetch(self, loss):
        return super().fetch(float(loss))


class Blocks(Step):
    @staticmethod
    def build(net):
        return fastgrad.Blocks.build(net).to("cuda")

    def fetch(self, loss):
        return self.net.outcome(float(loss), map(here, self.model.statistics().values()))


class Lstm(OnCuda, fastgrad.Lstm):
    def __init__(self, lstm):
        super().__init__(lstm)
        self.inputs, self.dy = there(self.inputs), there(self.dy)
        self.model.to("cuda")

    def fetch(self, result):
        return self.outcome(*here(result), map(here, self.model.gradients().values()))


class BatchNorm(OnCuda, fastgrad.BatchNorm):
    def __init__(self, norm):
        super().__init__(norm)
        self.inputs, self.residual, self.dy, self.factors = there((self.inputs, self.residual, self.dy, self.factors))


class Update(OnCuda, fastgrad.Update):
    def __init__(self, update):
        super().__init__(update)
        self.gradients = there(self.gradients)

    def fetch(self, _):
        return self.update.outcome(here(self.params))
