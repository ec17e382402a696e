"""PyTorch, eager: fused Adam, foreach clipping."""

import copy
import multiprocessing
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from bench.peers import Runner
from bench.workloads import residual


def setup(threads):
    torch.set_num_threads(threads)


def as_torch(array):
    """Rows as they are; images (N, H, W, C) as PyTorch takes them, channels last; without a copy."""
    return torch.as_tensor(array).permute(0, 3, 1, 2) if array.ndim == 4 else torch.as_tensor(array)


def build(net):
    """The layers of a net, with its first weights."""
    layers = []
    for w, b in net.parameters():
        linear = nn.Linear(*w.shape)
        with torch.no_grad():
            linear.weight.copy_(torch.as_tensor(w.T))
            linear.bias.copy_(torch.as_tensor(b))
        layers += [linear, nn.ReLU() if net.activation == "relu" else nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def optimizer(net, parameters):
    if net.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=net.lr, fused=True)
    return torch.optim.SGD(parameters, lr=net.lr, momentum=net.momentum, fused=True)


class Step(Runner):
    build = staticmethod(build)

    def __init__(self, net):
        self.net = net
        self.inputs = [(as_torch(x), torch.as_tensor(y)) for x, y in net.batches()]
        self.model = model = self.build(net)
        self.criterion = criterion = nn.CrossEntropyLoss() if net.loss == "cross_entropy" else nn.BCEWithLogitsLoss()
        self.parameters = list(model.parameters())
        self.first = copy.deepcopy(model.state_dict())
        self.loss = self.prepare(lambda x, y: criterion(model(x), y))
        self.clip_norm = net.clip_norm

    def prepare(self, loss):
        return loss

    def restart(self):
        self.model.load_state_dict(self.first)
        self.optimizer = optimizer(self.net, self.parameters)

    def call(self, x, y):
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(x, y)
        loss.backward()
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip_norm, foreach=True)
        self.optimizer.step()
        return loss

    def fetch(self, loss):
        return loss.numpy(force=True)


class Shared(Step):
    """Steps of several processes: rank 0 is the worker, starts the other ranks and sends them every request."""

    def __init__(self, net, rank=0, store=None):
        self.rank, self.others = rank, []
        if rank == 0:
            # what a forked child would have of its parent's threads is not the same everywhere
            context = multiprocessing.get_context("spawn")
            self.folder = tempfile.TemporaryDirectory()
            store = Path(self.folder.name, "store").as_uri()
            for other in range(1, net.processes):
                here, there = context.Pipe()
                process = context.Process(target=worker_loop, args=(type(self), net, other, store, there), daemon=True)
                process.start()
                self.others.append((here, process))
        distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=net.processes)
        super().__init__(net)
        self.inputs = [(x[rank :: net.processes], y[rank :: net.processes]) for x, y in self.inputs]

    def reset(self):
        self._tell("reset")
        super().reset()

    def run(self, count):
        self._tell("run", count)
        return super().run(count)

    def fetch(self, loss):
        total = loss.detach().clone()
        distributed.all_reduce(total)
        return (total / self.net.processes).numpy()

    def _tell(self, *request):
        for pipe, _ in self.others:
            pipe.send(request)

    def __del__(self):
        for pipe, process in self.others:
            pipe.close()
            process.join()
        if self.others:
            distributed.destroy_process_group()


def worker_loop(kind, net, rank, store, pipe):
    """The loop of another rank: runs the requests of rank 0 until it closes the pipe."""
    setup(net.threads)
    runner = kind(net, rank, store)
    while True:
        try:
            name, *arguments = pipe.recv()
        except EOFError:
            break
        getattr(runner, name)(*arguments)
    distributed.destroy_process_group()


class Residual(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.body, self.shortcut, self.relu = sequential(layer.body), sequential(layer.shortcut), layer.relu

    def forward(self, x):
        y = self.body(x)
        y += self.shortcut(x)
        return nn.functional.relu(y, inplace=True) if self.relu else y


def sequential(layers):
    return nn.Sequential(*(module for layer in layers for module in modules_of(layer)))


def modules_of(layer):
    match layer:
        case residual.Dense():
            return [nn.Linear(layer.n_in, layer.n_out)]
        case residual.Conv():
            return [nn.Conv2d(layer.n_in, layer.n_out, layer.size, layer.stride, layer.padding, bias=False)]
        case residual.BatchNorm():
            norm = nn.BatchNorm2d(layer.n) if layer.images else nn.BatchNorm1d(layer.n)
            return [norm, nn.ReLU(inplace=True)] if layer.relu else [norm]
        case residual.Mean():
            return [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        case residual.Residual():
            return [Residual(layer)]


class Blocks(Step):
    @staticmethod
    def build(net):
        dtype = getattr(torch, net.dtype)
        model = sequential(net.layers).to(dtype=dtype, memory_format=torch.channels_last)
        with torch.no_grad():
            for parameter, array in zip(model.parameters(), net.parameters(), strict=True):
                parameter.copy_(torch.as_tensor(array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T))
        return model

    def fetch(self, loss):
        statistics = [a.numpy(force=True) for a in self.model.buffers() if a.ndim]  # without the counts of batches
        return self.net.outcome(super().fetch(loss), statistics)


class Forward(Runner):
    def __init__(self, net):
        self.inputs = [(torch.as_tensor(x),) for x, _ in net.batches()]
        self.model = self.prepare(nn.Sequential(build(net), nn.Softmax(-1)).eval())

    def prepare(self, model):
        return model

    def run(self, count):
        with torch.inference_mode():
            return super().run(count)

    def call(self, x):
        return self.model(x)


class Gemm(Runner):
    def __init__(self, gemm):
        a, b = map(torch.as_tensor, gemm.operands())
        self.inputs = [(a, b)]
        self.out = torch.empty(gemm.m, gemm.n)

    def call(self, a, b):
        return torch.mm(a, b, out=self.out)


def write(parameters, arrays):
    """(weight_ih, weight_hh, bias_ih, bias_hh[, weight_hr]) = (w_ih, w_hh, b[, w_proj])."""
    w_ih, w_hh, b, *w_proj = arrays
    with torch.no_grad():
        for parameter, array in zip(parameters, (w_ih, w_hh, b, np.zeros_like(b), *w_proj), strict=True):
            parameter.copy_(torch.as_tensor(array.T))


def write_gru(parameters, arrays):
    """(weight_ih, weight_hh, bias_ih, bias_hh) = (w_ih, w_hh, b, b_hn), a bias_hh whose first two parts are 0."""
    w_ih, w_hh, b, b_hn = arrays
    write(parameters, (w_ih, w_hh, b))
    with torch.no_grad():
        parameters[3][-len(b_hn) :] = torch.as_tensor(b_hn)


class Lstm(Runner):
    layer, write = nn.LSTM, staticmethod(write)
    pack, pad = staticmethod(pack_padded_sequence), staticmethod(pad_packed_sequence)

    def __init__(self, lstm):
        x, dy = map(torch.as_tensor, lstm.sequences())
        self.inputs, self.dy = [(x.requires_grad_(),)], dy
        options = {"proj_size": lstm.proj_size} if lstm.proj_size else {}
        self.model = self.layer(lstm.n_in, lstm.hidden, lstm.layers, batch_first=True, bidirectional=lstm.bidirectional,
                             dtype=dy.dtype, **options)  # fmt: skip
        directions = [arrays for layer in lstm.parameters() for arrays in layer]
        for parameters, arrays in zip(self.model.all_weights, directions, strict=True):
            self.write(parameters, arrays)
        self.parameters = [parameter for group in self.model.all_weights for parameter in group]
        lengths = lstm.lengths()
        self.lengths = None if lengths is None else torch.as_tensor(lengths)
        self.lstm = lstm

    def forward(self, x):
        if self.lengths is None:
            return self.model(x)[0]
        packed = self.pack(x, self.lengths, batch_first=True, enforce_sorted=False)
        return self.pad(self.model(packed)[0], batch_first=True, total_length=x.shape[1])[0]

    def call(self, x):
        y = self.forward(x)
        return y, *torch.autograd.grad(y, (x, *self.parameters), self.dy)

    def fetch(self, result):
        y, dx, *gradients = (array.numpy(force=True) for array in result)
        # the second bias has the first one's gradient
        del gradients[3 :: 5 if self.lstm.proj_size else 4]
        return self.lstm.outcome(y, dx, [gradient.T for gradient in gradients])


class Gru(Lstm):
    layer, write = nn.GRU, staticmethod(write_gru)

    def fetch(self, result):
        y, dx, *gradients = (array.numpy(force=True) for array in result)
        # of the second bias that of n alone
        gradients[3::4] = [db[-self.lstm.hidden :] for db in gradients[3::4]]
        return self.lstm.outcome(y, dx, [gradient.T for gradient in gradients])


class LayerNormLstm(Lstm):
    """A loop over cells; x's product and its norm are of all steps at once."""

    def __init__(self, lstm):
        x, self.dy = map(torch.as_tensor, lstm.sequences())
        self.inputs, self.lstm = [(x.requires_grad_(),)], lstm
        self.parameters = [torch.tensor(array, requires_grad=True) for array in lstm.parameters()[0][0]]

    def forward(self, x):
        w_ih, w_hh, b, gamma_x, gamma_h, gamma_c, beta_c = self.parameters
        norm = nn.functional.layer_norm
        h = c = x.new_zeros(len(x), len(gamma_c))
        ys = []
        for of_x in norm(x @ w_ih, gamma_x.shape, gamma_x, b).unbind(1):
            i, f, g, o = (of_x + norm(h @ w_hh, gamma_h.shape, gamma_h)).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * norm(c, gamma_c.shape, gamma_c, beta_c).tanh()
            ys.append(h)
        return torch.stack(ys, 1)

    def fetch(self, result):
        y, dx, *gradients = (array.numpy(force=True) for array in result)
        return self.lstm.outcome(y, dx, gradients)


class LstmForward(Lstm):
    def run(self, count):
        with torch.inference_mode():
            return super().run(count)

    def call(self, x):
        return self.forward(x)

    def fetch(self, y):
        return self.lstm.outcome(y.numpy())


class LstmCell(Lstm):
    def __init__(self, lstm):
        x, dy = (torch.as_tensor(array) for array in lstm.sequences())
        self.inputs, self.dy = [(x.transpose(0, 1).contiguous().requires_grad_(),)], dy
        self.cell = nn.LSTMCell(lstm.n_in, lstm.hidden, dtype=dy.dtype)
        self.parameters = list(self.cell.parameters())
        write(self.parameters, lstm.parameters()[0][0])
        self.lstm = lstm

    def forward(self, x):
        state, ys = None, []
        for x_t in x.unbind():
            state = self.cell(x_t, state)
            ys.append(state[0])
        return torch.stack(ys, 1)

    def call(self, x):
        y, dx, *gradients = super().call(x)
        return y, dx.transpose(0, 1), *gradients


class Conv(Runner):
    wanted = True, True

    def __init__(self, conv):
        x, w, dy = conv.arrays()
        self.inputs = [(as_torch(x),)]
        w = torch.as_tensor(w).permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
        self.w, self.dy, self.conv = w, as_torch(dy), conv

    def forward(self, x):
        conv = self.conv
        return nn.functional.conv2d(x, self.w, None, conv.stride, conv.padding, groups=conv.groups)

    def backward(self, x):
        stride, padding = [self.conv.stride] * 2, [self.conv.padding] * 2
        options = stride, padding, [1, 1], False, [0, 0], self.conv.groups
        return torch.ops.aten.convolution_backward(self.dy, x, self.w, [0], *options, [*self.wanted, False])[:2]

    def call(self, x):
        return self.forward(x), *self.backward(x)

    def fetch(self, result):
        # every array as (N, H, W, C), and dw as (kh, kw, C, K)
        arrays = [a.permute(0, 2, 3, 1) for a in result[:2]] + [a.permute(2, 3, 1, 0) for a in result[2:]]
        return self.conv.outcome(*(np.ascontiguousarray(a.numpy()) for a in arrays))


class ConvForward(Conv):
    def call(self, x):
        return (self.forward(x),)


class ConvInputs(Conv):
    wanted = True, False

    def call(self, x):
        return self.backward(x)[:1]


class ConvWeights(Conv):
    wanted = False, True

    def call(self, x):
        return self.backward(x)[1:]

    def fetch(self, result):
        return self.conv.outcome(np.ascontiguousarray(result[0].permute(2, 3, 1, 0).numpy()))


class Clip(Runner):
    def __init__(self, clip):
        self.clip, self.first = clip, [torch.as_tensor(g) for g in clip.arrays()]
        self.parameters = [nn.Parameter(torch.zeros_like(g)) for g in self.first]

    def restart(self):
        self.calls = 0
        for parameter, g in zip(self.parameters, self.first, strict=True):
            parameter.grad = g.clone()

    def call(self):
        self.calls += 1
        return nn.utils.clip_grad_norm_(self.parameters, self.clip.max_norm(self.calls), foreach=True)

    def fetch(self, norm):
        return self.clip.outcome(norm.item(), [parameter.grad.numpy() for parameter in self.parameters])


class Update(Runner):
    clip = staticmethod(nn.utils.clip_grad_norm_)
    adam = staticmethod(partial(torch.optim.Adam, fused=True))

    def __init__(self, update):
        self.update, self.gradients = update, [torch.as_tensor(g) for g in update.arrays()]

    def restart(self):
        self.parameters = [nn.Parameter(torch.zeros_like(g)) for g in self.gradients]
        for parameter, g in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = g.clone()
        self.optimizer = self.adam(self.parameters, lr=self.update.lr)

    def call(self):
        self.clip(self.parameters, self.update.max_norm(), foreach=True)
        self.optimizer.step()

    def fetch(self, _):
        return self.update.outcome([parameter.numpy(force=True) for parameter in self.parameters])


class BatchNorm(Runner):
    def __init__(self, norm):
        arrays, factors = norm.arrays()
        x, residual, self.dy = map(as_torch, arrays)
        self.residual = residual.requires_grad_() if norm.adds else None
        self.gamma, self.beta = (torch.as_tensor(array).requires_grad_() for array in factors)
        self.inputs = [(x.requires_grad_(),)]
        self.norm = norm

    def forward(self, x):
        z = nn.functional.batch_norm(x, None, None, self.gamma, self.beta, training=True)
        if self.residual is not None:
            z = z + self.residual
        return nn.functional.relu(z, inplace=True)

    def call(self, x):
        y = self.forward(x)
        extra = () if self.residual is None else (self.residual,)
        return y, *torch.autograd.grad(y, (x, self.gamma, self.beta, *extra), self.dy)[:3]

    def fetch(self, result):
        arrays = [a.numpy(force=True) for a in result]
        if arrays[0].ndim == 4:
            arrays[:2] = [a.transpose(0, 2, 3, 1) for a in arrays[:2]]
        return self.norm.outcome(*map(np.ascontiguousarray, arrays))


class LayerNorm(BatchNorm):
    def forward(self, x):
        z = nn.functional.layer_norm(x, x.shape[-1:], self.gamma, self.beta)
        if self.residual is not None:
            z = z + self.residual
        return nn.functional.relu(z, inplace=True)


class HeNormal(Runner):
    def __init__(self, weights):
        self.weights = weights
        # (C_out, C_in) here
        self.w = torch.empty(weights.shape[::-1], dtype=getattr(torch, weights.dtype))

    def call(self):
        return nn.init.kaiming_normal_(self.w, nonlinearity="relu")

    def fetch(self, w):
        return self.weights.outcome(w.numpy().T)


class TorchOutside(Runner):
    """A net of torchvision, as it is. torchvision has its own import time and operators: it is loaded for this alone."""

    def __init__(self, net):
        from torchvision import models

        torch.manual_seed(0)
        has_auxiliary = net.builder in ("googlenet", "inception_v3")
        options = {"aux_logits": False, "init_weights": True} if has_auxiliary else {}
        images, labels = net.arrays()
        self.inputs = [(torch.as_tensor(images), torch.as_tensor(labels))]
        self.model = getattr(models, net.builder)(weights=None, **options)
        self.first = copy.deepcopy(self.model.state_dict())

    def restart(self):
        self.model.load_state_dict(self.first)
        torch.manual_seed(1)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)

    def call(self, x, y):
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.model(x), y)
        loss.backward()
        self.optimizer.step()
        return loss

    def fetch(self, loss):
        return loss.numpy(force=True)


class Call(Runner):
    """fastgrad's module."""

    def __init__(self, call):
        # PyTorch itself is timed without it
        import fastgrad.torch as fgt

        self.call_of, self.dy = call, torch.as_tensor(call.dy())
        self.inputs = [(torch.as_tensor(x),) for x, _ in call.batches()]
        self.model = fgt.MLP(call.sizes, call.activation, dtype=self.dy.dtype)
        arrays = [array for layer in call.parameters() for array in layer]
        with torch.no_grad():
            for parameter, array in zip(self.model.parameters(), arrays, strict=True):
                parameter.copy_(torch.as_tensor(array.T))
        self.weights = [p for p in self.model.parameters() if p.ndim == 2]

    def run(self, count):
        with torch.no_grad():
            return super().run(count)

    def call(self, x):
        return (self.model(x),)

    def fetch(self, result):
        y, *dweights = result
        return self.call_of.outcome(y.detach().numpy(), [dw.numpy().T for dw in dweights])


class CallBack(Call):
    def run(self, count):
        return Runner.run(self, count)

    def call(self, x):
        y = self.model(x)
        return y, *torch.autograd.grad(y, self.weights, self.dy)


# the loops without fastgrad
TorchStep, TorchWholeStep, TorchLstm, TorchGru, TorchUpdate = Step, Step, Lstm, Gru, Update


class TorchShared(Shared):
    @staticmethod
    def build(net):
        return DistributedDataParallel(build(net), gradient_as_bucket_view=True)
