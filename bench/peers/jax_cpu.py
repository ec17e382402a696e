"""JAX: a whole training step, with an Adam written in this file, in one jit with donated state."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from bench.peers import Runner
from bench.workloads import residual


def setup(threads):
    """XLA takes all processors that the process may use."""


def forward(net, layers, x):
    activation = jax.nn.relu if net.activation == "relu" else jnp.tanh
    for w, b in layers[:-1]:
        x = activation(x @ w + b)
    w, b = layers[-1]
    return x @ w + b


def mean_loss(net, logits, y):
    if net.loss == "binary_cross_entropy":
        return jnp.mean(jax.nn.softplus(logits) - logits * y)
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1)
    return -jnp.mean(picked)


def clipped(gradients, max_norm):
    """The norm of all gradients, and the gradients clipped to max_norm."""
    norm = jnp.sqrt(sum(jnp.vdot(g, g) for g in jax.tree.leaves(gradients)))
    scale = jnp.minimum(1, max_norm / (norm + 1e-6))
    return norm, jax.tree.map(lambda g: g * scale, gradients)


def adam(lr, params, gradients, m, v, t):
    """Update number t."""
    tree = jax.tree.map
    m = tree(lambda m, g: 0.9 * m + 0.1 * g, m, gradients)
    v = tree(lambda v, g: 0.999 * v + 0.001 * g * g, v, gradients)
    rate, root = lr / (1 - 0.9**t), jnp.sqrt(1 - 0.999**t)
    return tree(lambda p, m, v: p - rate * m / (jnp.sqrt(v) / root + 1e-8), params, m, v), m, v


class Step(Runner):
    def __init__(self, net):
        choose_precision(net)
        self.net = net
        self.inputs = [(jnp.asarray(x), jnp.asarray(y)) for x, y in net.batches()]
        tree = jax.tree.map

        def loss_of(params, running, x, y):
            logits, running = self.forward(params, running, x)
            return mean_loss(net, logits, y), running

        @functools.partial(jax.jit, donate_argnums=0)
        def step(state, x, y):
            params, running, m, v, t = state
            (loss, running), grads = jax.value_and_grad(loss_of, has_aux=True)(params, running, x, y)
            if net.clip_norm is not None:
                _, grads = clipped(grads, net.clip_norm)
            if net.optimizer == "sgd":
                if net.momentum:
                    grads = m = tree(lambda m, g: net.momentum * m + g, m, grads)
                return loss, (tree(lambda p, g: p - net.lr * g, params, grads), running, m, v, t)
            t = t + 1
            params, m, v = adam(net.lr, params, grads, m, v, t)
            return loss, (params, running, m, v, t)

        self.step = step

    def forward(self, params, running, x):
        """Logits, and the running statistics after this batch: a dense chain has none."""
        return forward(self.net, params, x), running

    def restart(self):
        params = jax.tree.map(jnp.array, self.net.parameters())
        zeros = functools.partial(jax.tree.map, jnp.zeros_like, params)
        state = params, self.running(), zeros(), zeros(), jnp.zeros((), self.net.dtype)
        self.state = jax.block_until_ready(state)

    def running(self):
        return []

    def call(self, x, y):
        loss, self.state = self.step(self.state, x, y)
        return loss


def convolve(x, w, stride, padding, groups=1):
    layouts = "NHWC", "HWIO", "NHWC"
    steps, pads = (stride,) * 2, [(padding,) * 2] * 2
    return jax.lax.conv_general_dilated(x, w, steps, pads, dimension_numbers=layouts, feature_group_count=groups)


def normalise(x, gamma, beta):
    """Normalised x, and mean and variance of the batch."""
    axes = tuple(range(x.ndim - 1))
    mean, var = x.mean(axes), x.var(axes)
    return (x - mean) * jax.lax.rsqrt(var + 1e-5) * gamma + beta, mean, var


def through(layers, params, statistics, x):
    """The output of the layers for x. They take parameters from the iterator params; batch norms append mean and variance to statistics."""
    for layer in layers:
        match layer:
            case residual.Dense():
                x = x @ next(params) + next(params)
            case residual.Conv():
                x = convolve(x, next(params), layer.stride, layer.padding)
            case residual.BatchNorm():
                rows = x.size // layer.n
                x, mean, var = normalise(x, next(params), next(params))
                statistics += [mean, var * rows / (rows - 1)]
            case residual.Mean():
                x = x.mean((1, 2))
            case residual.Residual():
                body = through(layer.body, params, statistics, x)
                x = body + through(layer.shortcut, params, statistics, x)
        if layer.relu:
            x = jax.nn.relu(x)
    return x


class Blocks(Step):
    def forward(self, params, running, x):
        statistics = []
        logits = through(self.net.layers, iter(params), statistics, x)
        return logits, [0.9 * before + 0.1 * now for before, now in zip(running, statistics, strict=True)]

    def running(self):
        return [jnp.asarray(array) for array in self.net.statistics()]

    def fetch(self, loss):
        return self.net.outcome(*jax.tree.map(np.asarray, (loss, self.state[1])))


class Forward(Runner):
    def __init__(self, net):
        self.inputs = [(jnp.asarray(x),) for x, _ in net.batches()]
        self.layers = jax.tree.map(jnp.array, net.parameters())
        self.predict = jax.jit(lambda layers, x: jax.nn.softmax(forward(net, layers, x)))

    def call(self, x):
        return self.predict(self.layers, x)


def lstm_cell(w, b, w_proj, x, h, c):
    """One product with w = [w_ih, w_hh]: faster than one of all steps with w_ih before the scan."""
    i, f, g, o = jnp.split(jnp.concatenate([x, h], axis=1) @ w + b, 4, axis=1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return h @ w_proj[0] if w_proj else h, c


def lstm_layer(lstm, mask, x, weights, reverse):
    """y (T, N, P) of x (T, N, C)."""
    w_ih, w_hh, b, *w_proj = weights
    w = jnp.concatenate([w_ih, w_hh])

    def step(state, inputs):
        x, *inside = inputs
        h, c = lstm_cell(w, b, w_proj, x, *state)
        if inside:
            # where a sequence is over its state stays
            h, c = (jnp.where(inside[0], new, old) for new, old in zip((h, c), state, strict=True))
        return (h, c), h

    start = tuple(jnp.zeros((lstm.batch, n), x.dtype) for n in (lstm.n_out, lstm.hidden))
    # unrolled, single rows are faster and batches slower
    y = jax.lax.scan(step, start, (x, *mask), reverse=reverse, unroll=4 if lstm.batch == 1 else 1)[1]
    return y * mask[0] if mask else y


def layers_forward(layer, lstm, mask, layers, x):
    x = x.transpose(1, 0, 2)
    for directions in layers:
        ys = [layer(lstm, mask, x, weights, bool(reverse)) for reverse, weights in enumerate(directions)]
        x = jnp.concatenate(ys, axis=-1)
    return x.transpose(1, 0, 2)


def choose_precision(lstm):
    jax.config.update("jax_enable_x64", lstm.dtype == "float64")


class Lstm(Runner):
    layer = staticmethod(lstm_layer)

    def __init__(self, lstm):
        choose_precision(lstm)
        self.lstm = lstm
        x, self.dy = map(jnp.asarray, lstm.sequences())
        self.inputs = [(x,)]
        self.layers = jax.tree.map(jnp.asarray, lstm.parameters())
        mask = () if lstm.shortest is None else (jnp.asarray(lstm.mask().transpose(1, 0, 2)),)
        self.forward = functools.partial(layers_forward, self.layer, lstm, mask)
        self.compiled = jax.jit(self.compute)

    def compute(self, layers, x, dy):
        y, backward = jax.vjp(self.forward, layers, x)
        gradients, dx = backward(dy)
        return y, dx, jax.tree.leaves(gradients)

    def call(self, x):
        return self.compiled(self.layers, x, self.dy)

    def fetch(self, result):
        return self.lstm.outcome(*jax.tree.map(np.asarray, result))


def gru_layer(gru, mask, x, weights, reverse):
    """y (T, N, H) of x (T, N, C)."""
    w_ih, w_hh, b, b_hn = weights

    def step(h, inputs):
        of_x, *inside = inputs
        of_h = h @ w_hh
        (r, z), n = jnp.split(jax.nn.sigmoid((of_x + of_h)[:, : 2 * gru.hidden]), 2, axis=1), 2 * gru.hidden
        n = jnp.tanh(of_x[:, n:] + r * (of_h[:, n:] + b_hn))
        new = (1 - z) * n + z * h
        new = jnp.where(inside[0], new, h) if inside else new
        return new, new

    start = jnp.zeros((gru.batch, gru.hidden), x.dtype)
    # the product of all steps with w_ih before the scan
    y = jax.lax.scan(step, start, (x @ w_ih + b, *mask), reverse=reverse)[1]
    return y * mask[0] if mask else y


class Gru(Lstm):
    layer = staticmethod(gru_layer)


def normalised(x):
    from_mean = x - x.mean(axis=-1, keepdims=True)
    return from_mean * jax.lax.rsqrt((from_mean**2).mean(axis=-1, keepdims=True) + 1e-5)


def layer_norm_lstm_layer(lstm, mask, x, weights, reverse):
    """y (T, N, H) of x (T, N, C), full sequences forwards."""
    w_ih, w_hh, b, gamma_x, gamma_h, gamma_c, beta_c = weights

    def step(state, of_x):
        h, c = state
        i, f, g, o = jnp.split(of_x + normalised(h @ w_hh) * gamma_h, 4, axis=1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(normalised(c) * gamma_c + beta_c)
        return (h, c), h

    start = jnp.zeros((lstm.batch, lstm.hidden), x.dtype)
    return jax.lax.scan(step, (start, start), normalised(x @ w_ih) * gamma_x + b)[1]


class LayerNormLstm(Lstm):
    layer = staticmethod(layer_norm_lstm_layer)


class LstmForward(Lstm):
    def compute(self, layers, x, _):
        return (self.forward(layers, x),)


class LstmCell(Runner):
    """A jit for the step, and one for its backward, which takes the step again and adds to the gradients."""

    def __init__(self, lstm):
        choose_precision(lstm)
        self.lstm = lstm
        x, dy = (jnp.asarray(array.transpose(1, 0, 2)) for array in lstm.sequences())
        self.inputs, self.dy = [(list(x),)], list(dy)
        (((w_ih, w_hh, b),),) = lstm.parameters()
        self.weights = jnp.concatenate([w_ih, w_hh]), jnp.asarray(b)
        self.state = jnp.zeros((lstm.batch, lstm.hidden), x.dtype)

        def step(weights, x, h, c):
            return lstm_cell(*weights, (), x, h, c)

        @functools.partial(jax.jit, donate_argnums=0)
        def backward(total, dy, dh, dc, *inputs):
            dweights, dx, dh, dc = jax.vjp(step, *inputs)[1]((dh + dy, dc))
            return jax.tree.map(jnp.add, total, dweights), dx, dh, dc

        self.step, self.backward = jax.jit(step), backward

    def call(self, x):
        h = c = self.state
        saved, ys, dxs = [], [], []
        for x_t in x:
            saved.append((self.weights, x_t, h, c))
            h, c = self.step(*saved[-1])
            ys.append(h)
        dh = dc = self.state
        total = jax.tree.map(jnp.zeros_like, self.weights)
        for dy_t, inputs in zip(reversed(self.dy), reversed(saved), strict=True):
            total, dx, dh, dc = self.backward(total, dy_t, dh, dc, *inputs)
            dxs.append(dx)
        return jnp.stack(ys, 1), jnp.stack(dxs[::-1], 1), total

    def fetch(self, result):
        y, dx, (dw, db) = jax.tree.map(np.asarray, result)
        return self.lstm.outcome(y, dx, [*np.split(dw, [self.lstm.n_in]), db])


class Conv(Runner):
    def __init__(self, conv):
        choose_precision(conv)
        self.conv = conv
        x, self.w, self.dy = map(jnp.asarray, conv.arrays())
        self.inputs = [(x,)]
        self.compiled = jax.jit(self.compute)

    def forward(self, x, w):
        return convolve(x, w, self.conv.stride, self.conv.padding, self.conv.groups)

    def compute(self, x, w, dy):
        y, backward = jax.vjp(self.forward, x, w)
        return y, *backward(dy)

    def call(self, x):
        return self.compiled(x, self.w, self.dy)

    def fetch(self, result):
        return self.conv.outcome(*map(np.asarray, result))


class ConvForward(Conv):
    def compute(self, x, w, dy):
        return super().compute(x, w, dy)[:1]


class ConvInputs(Conv):
    def compute(self, x, w, dy):
        return super().compute(x, w, dy)[1:2]


class ConvWeights(Conv):
    def compute(self, x, w, dy):
        return super().compute(x, w, dy)[2:]


class Clip(Runner):
    def __init__(self, clip):
        choose_precision(clip)
        self.clip, self.first = clip, clip.arrays()
        self.clipped = jax.jit(clipped, donate_argnums=0)

    def restart(self):
        self.calls, self.gradients = 0, jax.tree.map(jnp.array, self.first)

    def call(self):
        self.calls += 1
        norm, self.gradients = self.clipped(self.gradients, self.clip.max_norm(self.calls))
        return norm

    def fetch(self, norm):
        return self.clip.outcome(np.asarray(norm), jax.tree.map(np.asarray, self.gradients))


class Update(Runner):
    def __init__(self, update):
        choose_precision(update)
        self.update, self.gradients = update, jax.tree.map(jnp.asarray, update.arrays())

        @functools.partial(jax.jit, donate_argnums=0)
        def step(state, gradients):
            params, m, v, t = state
            _, gradients = clipped(gradients, update.max_norm())
            return *adam(update.lr, params, gradients, m, v, t + 1), t + 1

        self.step = step

    def restart(self):
        zeros = functools.partial(jax.tree.map, jnp.zeros_like, self.gradients)
        self.state = jax.block_until_ready((zeros(), zeros(), zeros(), jnp.zeros((), self.update.dtype)))

    def call(self):
        self.state = self.step(self.state, self.gradients)

    def fetch(self, _):
        return self.update.outcome(jax.tree.map(np.asarray, self.state[0]))


class BatchNorm(Runner):
    def __init__(self, norm):
        choose_precision(norm)
        self.norm = norm
        (x, self.residual, self.dy), self.factors = jax.tree.map(jnp.asarray, norm.arrays())
        self.inputs = [(x,)]
        self.compiled = jax.jit(self.compute)

    def forward(self, x, residual, gamma, beta):
        z, _, _ = normalise(x, gamma, beta)
        return jax.nn.relu(z + residual if self.norm.adds else z)

    def compute(self, x, residual, gamma, beta, dy):
        y, backward = jax.vjp(self.forward, x, residual, gamma, beta)
        dx, dresidual, dgamma, dbeta = backward(dy)
        return y, dx, dgamma, dbeta, dresidual if self.norm.adds else None

    def call(self, x):
        return self.compiled(x, self.residual, *self.factors, self.dy)

    def fetch(self, result):
        return self.norm.outcome(*map(np.asarray, result[:4]))


class LayerNorm(BatchNorm):
    def forward(self, x, residual, gamma, beta):
        from_mean = x - x.mean(axis=-1, keepdims=True)
        rstd = jax.lax.rsqrt((from_mean**2).mean(axis=-1, keepdims=True) + 1e-5)
        z = from_mean * rstd * gamma + beta
        return jax.nn.relu(z + residual if self.norm.adds else z)


class Call(Runner):
    """fastgrad's function, compiled."""

    def __init__(self, call):
        # JAX itself is timed without it
        import fastgrad.jax as fgj

        choose_precision(call)
        self.call_of, self.dy = call, jnp.asarray(call.dy())
        weights, biases = (list(map(jnp.asarray, arrays)) for arrays in zip(*call.parameters(), strict=True))
        self.arguments = weights, biases, self.dy
        self.inputs = [(jnp.asarray(x),) for x, _ in call.batches()]
        self.chain = lambda x, weights, biases: fgj.dense_chain(x, weights, biases, call.activations)
        self.compiled = jax.jit(self.compute)

    def compute(self, x, weights, biases, dy):
        return (self.chain(x, weights, biases),)

    def call(self, x):
        return jax.block_until_ready(self.compiled(x, *self.arguments))

    def fetch(self, result):
        y, *dweights = map(np.asarray, result)
        return self.call_of.outcome(y, dweights)


class CallBack(Call):
    def compute(self, x, weights, biases, dy):
        y, backward = jax.vjp(lambda w: self.chain(x, w, biases), weights)
        return y, *backward(dy)[0]
