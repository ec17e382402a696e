"""Keras on TensorFlow: the whole training step as one tf.function, compiled by XLA (as Keras does by itself)."""

import keras
import tensorflow as tf

from bench.peers import Runner


def setup(threads):
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)


def build(net):
    layers = [keras.layers.Dense(n, activation=net.activation) for n in net.sizes[1:-1]]
    model = keras.Sequential([keras.Input(net.sizes[:1]), *layers, keras.layers.Dense(net.sizes[-1])])
    model.set_weights([array for layer in net.parameters() for array in layer])
    return model


class Step(Runner):
    def __init__(self, net):
        self.inputs = [(tf.constant(x), tf.constant(y)) for x, y in net.batches()]
        model = build(net)
        if net.loss == "cross_entropy":
            mean_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        else:
            mean_loss = keras.losses.BinaryCrossentropy(from_logits=True)
        if net.optimizer == "adam":
            optimizer = keras.optimizers.Adam(net.lr, epsilon=1e-8, global_clipnorm=net.clip_norm)
        else:
            optimizer = keras.optimizers.SGD(net.lr, global_clipnorm=net.clip_norm)
        optimizer.build(model.trainable_variables)
        self.variables = [*model.trainable_variables, *optimizer.variables]
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


class Forward(Runner):
    def __init__(self, net):
        self.inputs = [(tf.constant(x),) for x, _ in net.batches()]
        model = build(net)
        self.call = tf.function(lambda x: tf.nn.softmax(model(x, training=False)), jit_compile=True)
