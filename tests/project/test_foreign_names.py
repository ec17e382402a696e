"""Names of other libraries raise errors with the name that is here, and change nothing else: hasattr, dir, signatures and types."""

import copy
import inspect
import pickle

import numpy as np
import pytest
from error_messages import refuses

import fastgrad as fg
from fastgrad.core.foreign_names import KEYWORDS, NAMES, SENTENCES
from fastgrad.optim import Adam

MODULES = [fg, fg.nn, fg.optim, fg.init, fg.schedule]


@pytest.mark.parametrize(
    ("module", "name", "here"),
    [
        (fg.nn, "Linear", "fg.nn.Dense(n_in, n_out), or the function fg.dense"),
        (fg.nn, "BatchNorm2d", "fg.nn.BatchNorm(n), for rows, sequences and images"),
        (fg.nn, "ReLU", "an activation is an argument of a layer: fg.nn.Dense(n_in, n_out, 'relu')"),
        (fg.nn, "LeakyReLU", "an activation is an argument of a layer: fg.nn.Dense(n_in, n_out, 'leaky_relu')"),
        (fg.nn, "Conv2D", "fg.nn.Conv2d, or the function fg.conv2d"),
        (fg.nn, "MSELoss", "a loss is a function, or a name for the Trainer: fg.mse, fg.Trainer(model, loss='mse')"),
        (fg, "Dense", "fg.nn.Dense"),
        (fg.nn, "AdamW", "fg.optim.AdamW"),
        (fg, "Linear", "fg.nn.Dense(n_in, n_out), or the function fg.dense"),
        (fg, "torch_", "import fastgrad.torch as fgt"),
        (fg.optim, "Nadam", "there is none; fg.optim.Adam is the nearest"),
        (fg.init, "kaiming_normal_", "fg.init.he_normal"),
        (fg.schedule, "CosineAnnealingLR", "fg.schedule.Cosine, as lr of an optimiser"),
    ],
)  # fmt: skip
def test_a_name_of_another_library_tells_the_one_here(module, name, here):
    message = f"module {module.__name__!r} has no attribute {name!r}; here: {here}"
    refuses(AttributeError, message, getattr, module, name)
    assert not hasattr(module, name)


@pytest.mark.parametrize("module", MODULES)
def test_other_names_are_unknown_as_ever(module):
    for name in ("Nothing", "__path_of__", "_linear", "__wrapped__"):
        refuses(AttributeError, f"module {module.__name__!r} has no attribute {name!r}", getattr, module, name)
        assert not hasattr(module, name)
    assert "Linear" not in dir(module)
    assert "Linear" not in module.__all__


def test_what_the_tables_name_is_there():
    words = " ".join([*NAMES.values(), *SENTENCES.values()]).replace("(", " ").replace(",", " ").replace(")", " ")
    for word in words.replace(";", " ").replace(":", " ").replace("'", " ").split():
        if word.startswith("fg.") and word != "fg.":
            value = fg
            for part in word.rstrip(".").split(".")[1:]:
                value = getattr(value, part)
    functions = [
        fg.Trainer,
        fg.Trainer.fit,
        *vars(fg.optim).values(),
        fg.loss.CrossEntropy,
        *(getattr(fg.nn, n) for n in fg.nn.__all__),
    ]
    parameters = {
        p for f in functions if callable(f) and f is not fg.optim.Any for p in inspect.signature(f).parameters
    }
    for here in KEYWORDS.values():
        assert set(here.split()) <= parameters


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (Adam, {"learning_rate": 0.1}, "Adam: there is no argument 'learning_rate'; here it is 'lr'"),
        (fg.optim.AdamW, {"epsilon": 0.1}, "AdamW: there is no argument 'epsilon'; here it is 'eps'"),
        (fg.optim.RMSprop, {"rho": 0.9}, "RMSprop: there is no argument 'rho'; here it is 'alpha'"),
        (Adam, {"clipnorm": 1.0}, "Adam: there is no argument 'clipnorm'; clip_norm is an argument of the Trainer and the Updater"),
        (fg.nn.Dense, {"in_features": 3}, "Dense: there is no argument 'in_features'; here it is 'n_in'"),
        (fg.nn.Dense, {"units": 3}, "Dense: there is no argument 'units'; here it is 'n_out'"),
        (fg.nn.LSTM, {"units": 3}, "LSTM: there is no argument 'units'; here it is 'hidden_size'"),
        (fg.nn.LSTM, {"batch_first": True}, "LSTM: there is no argument 'batch_first'; sequences are always (N, T, C)"),
        (fg.nn.Conv2d, {"kernel_size": 3}, "Conv2d: there is no argument 'kernel_size'; here it is 'size'"),
        (fg.nn.Dropout, {"p": 0.1}, "Dropout: there is no argument 'p'; here it is 'rate'"),
        (fg.nn.LayerNorm, {"normalized_shape": 3}, "LayerNorm: there is no argument 'normalized_shape'; here it is 'n'"),
        (fg.nn.ResNet, {"num_classes": 3}, "ResNet: there is no argument 'num_classes'; here it is 'n_out'"),
        (fg.nn.LSTM, {"unit_forget_bias": True}, "LSTM: there is no argument 'unit_forget_bias'; here it is 'forget_bias'"),
        (fg.nn.Flatten, {"start_dim": 1}, "Flatten: there is no argument 'start_dim'; all axes but the first are joined"),
        (fg.loss.CrossEntropy, {"weight": [1.0]}, "CrossEntropy: there is no argument 'weight'; here it is 'weights'"),
        (fg.loss.Huber, {"beta": 1.0}, "Huber: there is no argument 'beta'; SmoothL1Loss of beta is Huber of delta=beta, over beta"),
    ],
)  # fmt: skip
def test_a_keyword_of_another_library_tells_the_one_here(function, arguments, message):
    refuses(TypeError, message, function, **arguments)
    refuses(TypeError, message, function, 3, **arguments)


# of PyTorch's and Keras's classes, those that change what is computed or say where something is
KEYWORDS_ELSEWHERE = {
    fg.nn.Dense: "in_features out_features device units use_bias kernel_initializer bias_initializer kernel_regularizer "
    "bias_regularizer activity_regularizer kernel_constraint bias_constraint name trainable input_shape input_dim",
    fg.nn.Conv2d: "in_channels out_channels kernel_size padding_mode device filters strides data_format dilation_rate",
    fg.nn.BatchNorm: "num_features affine track_running_stats device axis epsilon center scale beta_initializer "
    "gamma_initializer beta_regularizer gamma_constraint",
    fg.nn.LayerNorm: "normalized_shape elementwise_affine bias device axis epsilon center scale",
    fg.nn.Dropout: "p inplace name",
    fg.nn.LSTM: "bias batch_first device units activation recurrent_activation kernel_initializer recurrent_initializer "
    "recurrent_regularizer recurrent_constraint unit_forget_bias return_sequences return_state go_backwards stateful time_major",
    fg.nn.GRU: "bias batch_first device units activation recurrent_activation use_bias recurrent_initializer return_state",
    fg.nn.MaxPool2d: "kernel_size pool_size strides data_format",
    fg.nn.AvgPool2d: "kernel_size pool_size strides count_include_pad data_format",
    fg.nn.GlobalAvgPool2d: "output_size data_format",
    fg.nn.Flatten: "start_dim end_dim data_format",
    fg.nn.Sequential: "name",
    fg.loss.CrossEntropy: "weight reduction from_logits ignore_class axis",
    fg.loss.BinaryCrossEntropy: "reduction from_logits",
    fg.loss.Huber: "beta reduction",
    fg.optim.SGD: "params dampening foreach fused learning_rate clipnorm",
    Adam: "params foreach capturable fused decoupled_weight_decay beta_1 beta_2 epsilon jit_compile",
    fg.optim.AdamW: "params foreach fused beta_1 epsilon",
    fg.optim.RMSprop: "params centered rho epsilon",
    fg.optim.Adagrad: "params lr_decay initial_accumulator_value epsilon",
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "names"), KEYWORDS_ELSEWHERE.items(), ids=lambda value: getattr(value, "__name__", "")
)
def test_every_class_knows_the_keywords_of_its_like_elsewhere(kind, names):
    for name in names.split():
        with pytest.raises(TypeError, match=f"^{kind.__name__}: there is no argument '{name}'; .+"):
            kind(**{name: 1})


def test_keywords_of_fit_tell_the_ones_here(numpy_backend):
    trainer = fg.Trainer(fg.nn.Dense(4, 3))
    x, y = np.zeros((2, 4), np.float32), np.zeros(2, np.int64)
    message = "Trainer.fit: there is no argument 'validation_data'; here it is 'validation'"
    refuses(TypeError, message, trainer.fit, x, y, validation_data=(x, y))
    message = "Trainer: there is no argument 'criterion'; here it is 'loss'"
    refuses(TypeError, message, fg.Trainer, trainer.model, criterion="mse")
    with pytest.raises(TypeError, match=r"fit\(\) got an unexpected keyword argument 'batchsize'"):
        trainer.fit(x, y, batchsize=3)
    refuses(TypeError, "Trainer.fit: epochs must be an integer, got str", trainer.fit, x, y, epochs="2")


def test_classes_are_what_they_were():
    assert list(inspect.signature(Adam).parameters)[:3] == ["lr", "betas", "eps"]
    assert Adam(0.1) == Adam(lr=0.1)
    assert pickle.loads(pickle.dumps(Adam(0.1))) == copy.deepcopy(Adam(0.1)) == Adam(0.1)
    refuses(TypeError, "Adam: lr must be a number, got str", Adam, lr="0.1")
    refuses(TypeError, "Dense: sizes[0] must be an integer, got str", fg.nn.Dense, n_in="3", n_out=2)

    class Own(fg.nn.Dense):
        def __init__(self, units):
            super().__init__(3, units)

    assert Own(units=4).n_out == 4
