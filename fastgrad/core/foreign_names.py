"""Names of PyTorch, Keras and other libraries, and what is here in their place: for errors that tell a user the name to write.

`unknown_name` makes the AttributeError of a module; `foreign_keywords` puts it into the TypeError of a function or class that got a keyword
argument which it does not have.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

Callee = TypeVar("Callee", bound=Callable[..., Any])

ACTIVATION = "an activation is an argument of a layer: fg.nn.Dense(n_in, n_out, {!r})"
LOSS = "a loss is a function, or a name for the Trainer: {0}, fg.Trainer(model, loss={1!r})"
TRAINER = "fg.Trainer(model, loss, optimizer) has step, fit, evaluate and predict"
# names of modules' members elsewhere, in lower case and without "_", and what a user has to write here
NAMES = {
    "linear": "fg.nn.Dense(n_in, n_out), or the function fg.dense",
    "mlp": "fg.nn.DenseChain(sizes)",
    "conv2d": "fg.nn.Conv2d, or the function fg.conv2d",
    "convolution2d": "fg.nn.Conv2d",
    "conv1d": "there is no convolution of sequences; fg.nn.Conv2d takes them as images (N, 1, T, C)",
    "conv3d": "there are no convolutions in three dimensions, only fg.nn.Conv2d",
    "convtranspose2d": "there are no transposed convolutions",
    "batchnorm1d": "fg.nn.BatchNorm(n), for rows, sequences and images",
    "batchnormalization": "fg.nn.BatchNorm(n), with momentum=0.01, eps=1e-3, unbiased=False as Keras's",
    "layernormalization": "fg.nn.LayerNorm(n), with eps=1e-3 as Keras's",
    "dropout1d": "fg.nn.Dropout(rate)",
    "embedding": "there is no embedding layer; the rows of an array are w[indices], which an fg.Updater can train",
    "maxpooling2d": "fg.nn.MaxPool2d(size)",
    "averagepooling2d": "fg.nn.AvgPool2d(size)",
    "globalaveragepooling2d": "fg.nn.GlobalAvgPool2d()",
    "adaptiveavgpool2d": "fg.nn.GlobalAvgPool2d(), which makes one value of each channel",
    "lstmcell": "the function fg.lstm_cell; fg.nn.LSTM runs step by step with run",
    "grucell": "the function fg.gru_cell; fg.nn.GRU runs step by step with run",
    "bidirectional": "fg.nn.LSTM(input_size, hidden_size, bidirectional=True)",
    "multiheadattention": "there is no attention",
    "module": "fg.nn.Model",
    "layer": "fg.nn.Model",
    "modulelist": "fg.nn.Sequential(*layers), or a list",
    "identity": 'fg.nn.Residual takes None as its shortcut; a layer without an activation has "identity"',
    "input": "a layer is told the size of its input: fg.nn.Dense(n_in, n_out)",
    "activation": ACTIVATION.format("relu"),
    **{
        name.replace("_", ""): ACTIVATION.format(name)
        for name in "relu leaky_relu elu selu gelu silu sigmoid tanh softmax softplus".split()
    },
    "relu6": '("clipped_relu", 6.0) as the activation of a layer',
    "logsoftmax": "leave the activation out: fg.cross_entropy and the Trainer take logits",
    "crossentropyloss": LOSS.format("fg.cross_entropy", "cross_entropy"),
    "sparsecategoricalcrossentropy": LOSS.format("fg.cross_entropy", "cross_entropy"),
    "categoricalcrossentropy": LOSS.format("fg.cross_entropy", "cross_entropy"),
    "nllloss": LOSS.format("fg.cross_entropy", "cross_entropy") + ", both of logits",
    "bceloss": LOSS.format("fg.binary_cross_entropy", "binary_cross_entropy") + ", both of logits",
    "bcewithlogitsloss": LOSS.format("fg.binary_cross_entropy", "binary_cross_entropy"),
    "binarycrossentropy": LOSS.format("fg.binary_cross_entropy", "binary_cross_entropy"),
    "mseloss": LOSS.format("fg.mse", "mse"),
    "meansquarederror": LOSS.format("fg.mse", "mse"),
    "l1loss": LOSS.format("fg.mae", "mae"),
    "meanabsoluteerror": LOSS.format("fg.mae", "mae"),
    "huberloss": LOSS.format("fg.huber", "huber"),
    "smoothl1loss": LOSS.format("fg.huber", "huber") + "; that of beta is huber of delta=beta, over beta",
    "poissonnllloss": LOSS.format("fg.poisson_nll", "poisson_nll"),
    "clipgradnorm": "fg.clip_grad_norm, or clip_norm of the Trainer",
    "clipgradvalue": "fg.clip_grad_value",
    "tensor": "arrays are NumPy's: np.asarray(values, np.float32)",
    "nograd": "there is no graph: predict keeps nothing for gradients",
    "manualseed": "seeds are arguments: seed=0 of a model and of a Trainer",
    "setrandomseed": "seeds are arguments: seed=0 of a model and of a Trainer",
    "compile": TRAINER,
    "fit": TRAINER,
    "functional": "the functions are fg.dense, fg.conv2d, fg.lstm, ...",
    "layers": "the layers are in fg.nn",
    "optimizers": "the optimisers are in fg.optim",
    "losses": "fg.cross_entropy, fg.binary_cross_entropy, fg.mse, fg.mae, fg.huber and fg.poisson_nll; for a Trainer with options: fg.loss",
    "savemodel": "fg.save(path, model)",
    "loadmodel": "fg.load(path, model)",
    "nadam": "there is none; fg.optim.Adam is the nearest",
    "radam": "there is none; fg.optim.Adam with fg.schedule.WarmUp is the nearest",
    "lamb": "there is none; fg.optim.AdamW is the nearest",
    "lbfgs": 'there is none; fastgrad.sklearn\'s estimators take solver="lbfgs"',
    "adadelta": "there is none; fg.optim.RMSprop is the nearest",
    "glorotuniform": "fg.init.xavier_uniform",
    "glorotnormal": "fg.init.xavier_normal",
    "kaiminguniform": "fg.init.he_uniform",
    "kaimingnormal": "fg.init.he_normal",
    "truncnormal": "fg.init.truncated_normal",
    "ones": "fg.init.constant with value=1",
    "torch": "import fastgrad.torch as fgt",
    "jax": "import fastgrad.jax as fgj",
    "sklearn": "import fastgrad.sklearn",
    "steplr": "fg.schedule.Steps, as lr of an optimiser",
    "exponentiallr": "fg.schedule.Exponential, as lr of an optimiser",
    "cosineannealinglr": "fg.schedule.Cosine, as lr of an optimiser",
    "cosinedecay": "fg.schedule.Cosine, as lr of an optimiser",
    "reducelronplateau": "fg.schedule.ReduceOnPlateau, as lr of an optimiser",
    "lrscheduler": "the schedules are in fg.schedule, and one is the lr of an optimiser",
}
NAMES |= {"batchnorm2d": NAMES["batchnorm1d"], "batchnorm3d": NAMES["batchnorm1d"], "dropout2d": NAMES["dropout1d"]}
# what is in another module of fastgrad
MEMBERS = {
    "fg.nn": "AvgPool2d BatchNorm Dense DenseChain Dropout Flatten GRU GlobalAvgPool2d LSTM LayerNorm MaxPool2d Model ResNet Residual "
    "Sequential",
    "fg.optim": "Adagrad Adam AdamW MaxNorm MaxValue Optimizer RMSprop SGD",
    "fg": "Trainer Updater",
}
NAMES |= {name.lower(): f"{module}.{name}" for module, names in MEMBERS.items() for name in names.split()}

# keyword arguments elsewhere, and what they are called here, of which a function has one at most
KEYWORDS = {
    "learning_rate": "lr",
    "learning_rate_init": "lr",
    "epsilon": "eps",
    "rho": "alpha",
    "beta_1": "betas",
    "beta_2": "betas",
    "decay": "weight_decay",
    "decoupled_weight_decay": "decoupled",
    "in_features": "n_in",
    "in_channels": "n_in",
    "input_dim": "n_in input_size",
    "out_features": "n_out",
    "out_channels": "n_out",
    "units": "n_out hidden_size",
    "filters": "n_out",
    "kernel_size": "size",
    "pool_size": "size",
    "strides": "stride",
    "dilation_rate": "dilation",
    "use_bias": "bias",
    "unit_forget_bias": "forget_bias",
    "kernel_initializer": "init",
    "num_features": "n",
    "normalized_shape": "n",
    "num_classes": "n_out",
    "classes": "n_out",
    "count_include_pad": "include_pad",
    "p": "rate",
    "go_backwards": "reverse",
    "return_sequences": "pool",
    "random_state": "seed",
    "criterion": "loss",
    "loss_fn": "loss",
    "weight": "weights",
    "ignore_class": "ignore_index",
    "clipnorm": "clip_norm",
    "global_clipnorm": "clip_norm",
    "max_grad_norm": "clip_norm",
    "validation_data": "validation",
    "verbose": "progress",
    "n_epochs": "epochs",
    "max_iter": "epochs",
}
# sentences for several keywords
CONSTRAINT = "constraint is an argument of the Trainer"
INITIAL = "initial values are written into the arrays of parameters()"
L2 = "weight_decay of an optimiser is the L2 term"
NO_BIAS = "Dense, DenseChain and Conv2d alone can be without a bias"
NORM = "a norm always has gamma, 1 at first, and beta, 0"
PARAMETERS = "fg.Trainer(model, loss, optimizer), or fg.Updater(params, optimizer), has the parameters"
SEQUENCES = "sequences are always (N, T, C)"
STATES = "run of the model takes and returns states"
USELESS = "leave it out: it changes no result"
# where a function has none of these, and for those that are nowhere
SENTENCES = {
    "clipnorm": "clip_norm is an argument of the Trainer and the Updater",
    "global_clipnorm": "clip_norm is an argument of the Trainer and the Updater",
    "clipvalue": "fg.clip_grad_value clips arrays",
    "validation_split": "validation=(x, y) is the data that is held out",
    "metrics": "evaluate and the history of fit have the accuracy",
    "batch_first": SEQUENCES,
    "time_major": SEQUENCES,
    "data_format": "images are always (N, H, W, C)",
    "axis": "it is always the last axis",
    "input_shape": "the first argument is the number of columns or channels",
    **{f"{name}_regularizer": L2 for name in "activity beta bias gamma kernel recurrent".split()},
    **{f"{name}_constraint": CONSTRAINT for name in "beta bias gamma kernel recurrent".split()},
    "activation": "Dense, DenseChain, Conv2d, Residual and the norms alone have one",
    "recurrent_activation": "gates are sigmoids",
    "bias": NO_BIAS,
    "use_bias": NO_BIAS,
    **{f"{name}_initializer": INITIAL for name in "beta bias gamma kernel recurrent".split()},
    **dict.fromkeys("affine elementwise_affine center scale".split(), NORM),
    "track_running_stats": "a batch norm always has running statistics",
    "padding_mode": "the padding of a convolution is zeros",
    "start_dim": "all axes but the first are joined",
    "end_dim": "all axes but the first are joined",
    "output_size": "it makes one value of each channel",
    "return_state": STATES,
    "stateful": STATES,
    "name": "layers have no names; a parameter is named by its place in the model",
    "trainable": 'groups={"0.*": {"frozen": True}} of an optimiser',
    "params": PARAMETERS,
    "parameters": PARAMETERS,
    "dampening": "there is no dampening: it is 0",
    "centered": "there is no centred RMSprop",
    "beta": "SmoothL1Loss of beta is Huber of delta=beta, over beta",
    "lr_decay": "lr may be a schedule of fg.schedule",
    "initial_accumulator_value": "the sums of squares begin at 0",
    "reduction": "a Trainer takes the mean; functions such as fg.cross_entropy have another reduction",
    "from_logits": "losses are always of logits",
    **dict.fromkeys("capturable foreach fused implementation inplace jit_compile unroll".split(), USELESS),
    "device": 'model.to("cuda") moves a model',
}


def unknown_name(module: str, name: str) -> AttributeError:
    """The AttributeError of a module that has not this name."""
    hint = NAMES.get(name.lower().replace("_", "")) if not name.startswith("_") else None
    text = f"module {module!r} has no attribute {name!r}" + (f"; here: {hint}" if hint else "")
    return AttributeError(text, name=name)


def foreign_keywords(callee: Callee) -> Callee:
    """The same function or class; its TypeError for a keyword argument that another library has tells the name here."""
    function = callee.__init__ if inspect.isclass(callee) else callee  # type: ignore[misc]
    name = callee.__qualname__

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except TypeError:
            if kwargs:
                _check(name, kwargs, function)
            raise

    if inspect.isclass(callee):
        callee.__init__ = call  # type: ignore[method-assign]
        return callee
    return call  # type: ignore[return-value]


def _check(op: str, keywords: dict[str, Any], function: Callable[..., Any]) -> None:
    """Raise TypeError for a keyword that the function has not, and that is in the tables."""
    known = inspect.signature(function).parameters
    for keyword in keywords:
        names = [name for name in KEYWORDS.get(keyword, "").split() if name in known]
        text = f"here it is {names[0]!r}" if names else SENTENCES.get(keyword)
        if keyword not in known and text:
            raise TypeError(f"{op}: there is no argument {keyword!r}; {text}") from None
