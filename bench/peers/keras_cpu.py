"""Keras on TensorFlow: the whole training step as one tf.function, compiled by XLA (as Keras does by itself)."""

import keras
import tensorflow as tf

from bench.peers import Runner
from bench.workloads import residual


def setup(threads):
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)


def build(net):
    layers = [keras.layers.Dense(n, activation=net.activation) for n in net.sizes[1:-1]]
    model = keras.Sequential([keras.Input(net.sizes[:1]), *layers, keras.layers.Dense(net.sizes[-1])])
    model.set_weights([array for layer in net.parameters() for array in layer])
    return model


class Step(Runner):
    build = staticmethod(build)

    def __init__(self, net):
        self.net = net
        self.inputs = [(tf.constant(x), tf.constant(y)) for x, y in net.batches()]
        self.model = model = self.build(net)
        if net.loss == "cross_entropy":
            mean_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        else:
            mean_loss = keras.losses.BinaryCrossentropy(from_logits=True)
        if net.optimizer == "adam":
            optimizer = keras.optimizers.Adam(net.lr, epsilon=1e-8, global_clipnorm=net.clip_norm)
        else:
            optimizer = keras.optimizers.SGD(net.lr, net.momentum, global_clipnorm=net.clip_norm)
        optimizer.build(model.trainable_variables)
        self.variables = [*model.variables, *optimizer.variables]
        self.first = [variable.numpy() for variable in self.variables]

        @tf.function(jit_compile=True)
        def step(x, y):
            with tf.GradientTape() as tape:
                loss = mean_loss(y, model(x, training=True))
            optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
            return loss

        self.call = step

    def restart(self):
        for variable, value in zip(self.variables, self.first, strict=True):
            variable.assign(value)


class Blocks(Step):
    """Its running variances move towards the batch's own, not the unbiased one: 0.2 % in 3 steps of 128 rows."""

    def build(self, net):
        self.arrays, self.norms = iter(net.parameters()), []
        x = keras.Input(net.batches()[0][0].shape[1:])
        return keras.Model(x, self.through(net.layers, x))

    def through(self, layers, x):
        """The output of the layers for x."""
        for layer in layers:
            match layer:
                case residual.Dense():
                    x = self.apply(keras.layers.Dense(layer.n_out), x)
                case residual.Conv():
                    # its own "same" pads one side alone where the stride is 2
                    x = keras.layers.ZeroPadding2D(layer.padding)(x)
                    x = self.apply(keras.layers.Conv2D(layer.n_out, layer.size, layer.stride, use_bias=False), x)
                case residual.BatchNorm():
                    self.norms.append(keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5))
                    x = self.apply(self.norms[-1], x)
                case residual.Mean():
                    x = keras.layers.GlobalAveragePooling2D()(x)
                case residual.Residual():
                    x = keras.layers.add([self.through(layer.body, x), self.through(layer.shortcut, x)])
            if layer.relu:
                x = keras.layers.ReLU()(x)
        return x

    def apply(self, layer, x):
        """layer(x), with the layer's first weights."""
        y = layer(x)
        for variable in layer.trainable_variables:
            variable.assign(next(self.arrays))
        return y

    def fetch(self, loss):
        statistics = [array for norm in self.norms for array in (norm.moving_mean, norm.moving_variance)]
        return self.net.outcome(loss, [array.numpy() for array in statistics])


class Forward(Runner):
    def __init__(self, net):
        self.inputs = [(tf.constant(x),) for x, _ in net.batches()]
        model = build(net)
        self.call = tf.function(lambda x: tf.nn.softmax(model(x, training=False)), jit_compile=True)
