"""JAX: the whole step, with its own Adam, in one jit whose state is donated."""

import functools

import jax
import jax.numpy as jnp

from bench.peers import Runner


def setup(threads):
    """XLA takes all processors that the process may use."""


def forward(net, layers, x):
    activation = jax.nn.relu if net.activation == "relu" else jnp.tanh
    for w, b in layers[:-1]:
        x = activation(x @ w + b)
    w, b = layers[-1]
    return x @ w + b


def mean_loss(net, layers, x, y):
    logits = forward(net, layers, x)
    if net.loss == "binary_cross_entropy":
        return jnp.mean(jax.nn.softplus(logits) - logits * y)
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1)
    return -jnp.mean(picked)


class Step(Runner):
    def __init__(self, net):
        self.net = net
        self.inputs = [(jnp.asarray(x), jnp.asarray(y)) for x, y in net.batches()]
        tree = jax.tree.map

        @functools.partial(jax.jit, donate_argnums=0)
        def step(state, x, y):
            params, m, v, t = state
            loss, grads = jax.value_and_grad(functools.partial(mean_loss, net))(params, x, y)
            if net.clip_norm is not None:
                norm = jnp.sqrt(sum(jnp.vdot(g, g) for g in jax.tree.leaves(grads)))
                scale = jnp.minimum(1, net.clip_norm / (norm + 1e-6))
                grads = tree(lambda g: g * scale, grads)
            if net.optimizer == "sgd":
                return loss, (tree(lambda p, g: p - net.lr * g, params, grads), m, v, t)
            t = t + 1
            m = tree(lambda m, g: 0.9 * m + 0.1 * g, m, grads)
            v = tree(lambda v, g: 0.999 * v + 0.001 * g * g, v, grads)
            rate, root = net.lr / (1 - 0.9**t), jnp.sqrt(1 - 0.999**t)
            params = tree(lambda p, m, v: p - rate * m / (jnp.sqrt(v) / root + 1e-8), params, m, v)
            return loss, (params, m, v, t)

        self.step = step

    def restart(self):
        params = jax.tree.map(jnp.array, self.net.parameters())
        zeros = functools.partial(jax.tree.map, jnp.zeros_like, params)
        self.state = jax.block_until_ready((params, zeros(), zeros(), jnp.float32(0)))

    def call(self, x, y):
        loss, self.state = self.step(self.state, x, y)
        return loss


class Forward(Runner):
    def __init__(self, net):
        self.inputs = [(jnp.asarray(x),) for x, _ in net.batches()]
        self.layers = jax.tree.map(jnp.array, net.parameters())
        self.predict = jax.jit(lambda layers, x: jax.nn.softmax(forward(net, layers, x)))

    def call(self, x):
        return self.predict(self.layers, x)
