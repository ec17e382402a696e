"""Whole models from PyTorch and to it: PyTorch's outputs, gradients and statistics from ours, and back to the same bits."""

import sys
from copy import deepcopy

import numpy as np
import pytest
from arrays import bits
from error_messages import refuses

import fastgrad as fg
from fastgrad.nn import (
    GRU,
    LSTM,
    AvgPool2d,
    BatchNorm,
    Conv2d,
    Dense,
    DenseChain,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    LayerNorm,
    MaxPool2d,
    Residual,
    Sequential,
)

# name: (layers of torch.nn, shape of the inputs); each image is 9 x 12 pixels
SIZE = 9, 12
MODULES = {
    "linear": (lambda nn: nn.Linear(4, 3), (5, 4)),
    "linear without bias": (lambda nn: nn.Linear(4, 3, bias=False), (5, 4)),
    "conv alone": (lambda nn: nn.Conv2d(3, 4, 3), (2, 3, *SIZE)),
    "nested": (
        lambda nn: nn.Sequential(
            nn.Linear(4, 8),
            nn.ReLU(),
            nn.Identity(),
            nn.Sequential(nn.Sequential(nn.BatchNorm1d(8, momentum=0.3), nn.Tanh()), nn.Linear(8, 3)),
            nn.Softmax(-1),
        ),
        (5, 4),
    ),
    "one layer": (lambda nn: nn.Sequential(nn.Linear(4, 3), nn.Flatten()), (5, 4)),
    "images": (
        lambda nn: nn.Sequential(
            nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=(2, 0), dilation=(2, 1), groups=2, bias=False),
            nn.BatchNorm2d(6, eps=1e-3),
            nn.SiLU(),
            nn.MaxPool2d(3, 1, 1),
            nn.Conv2d(6, 5, 3, padding="same"),
            nn.Softmax(1),
        ),
        (2, 4, *SIZE),
    ),
    "flatten": (
        lambda nn: nn.Sequential(
            nn.Conv2d(3, 4, 3, 2, 1), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(24, 5), nn.BatchNorm1d(5)
        ),
        (2, 3, *SIZE),
    ),
    "flatten and batch norm": (
        lambda nn: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.Flatten(), nn.BatchNorm1d(60), nn.GELU("tanh"), nn.Linear(60, 2)
        ),
        (4, 3, *SIZE),
    ),
    "layer norm": (
        lambda nn: nn.Sequential(
            nn.LayerNorm(4, 1e-3), nn.Linear(4, 6), nn.LayerNorm(6, bias=False), nn.Tanh(), nn.Linear(6, 3)
        ),
        (5, 4),
    ),
    "flatten and layer norm": (
        lambda nn: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.Flatten(), nn.LayerNorm(60), nn.ReLU(), nn.Linear(60, 2)
        ),
        (4, 3, *SIZE),
    ),
    "pools to the end": (
        lambda nn: nn.Sequential(
            nn.Conv2d(3, 4, 3, padding="valid"),
            nn.MaxPool2d(3, 2, 1, ceil_mode=True),
            nn.AvgPool2d((2, 3), 2, ceil_mode=True, count_include_pad=False),
        ),
        (2, 3, *SIZE),
    ),
    "flatten first": (lambda nn: nn.Sequential(nn.Flatten(), nn.Linear(324, 5), nn.ELU(0.5)), (2, 3, *SIZE)),
    "global pool": (
        lambda nn: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)),
        (2, 3, *SIZE),
    ),
}
ACTIVATIONS = {
    "ReLU": lambda nn: nn.ReLU(),
    "ReLU6": lambda nn: nn.ReLU6(),
    "LeakyReLU": lambda nn: nn.LeakyReLU(0.2),
    "Hardtanh": lambda nn: nn.Hardtanh(0, 0.5),
    "Sigmoid": lambda nn: nn.Sigmoid(),
    "Tanh": lambda nn: nn.Tanh(),
    "ELU": lambda nn: nn.ELU(),
    "SELU": lambda nn: nn.SELU(),
    "GELU": lambda nn: nn.GELU(),
    "GELU of tanh": lambda nn: nn.GELU(approximate="tanh"),
    "SiLU": lambda nn: nn.SiLU(),
    "Softplus": lambda nn: nn.Softplus(),
    "Softmax": lambda nn: nn.Softmax(dim=1),
}


def module_of(torch, make, dtype):
    """The module with running statistics and weights that are not those of a new one."""
    torch.manual_seed(0)
    module = make(torch.nn).to(getattr(torch, str(dtype)))
    for part in module.modules():
        if hasattr(part, "running_mean"):
            for values in (part.weight, part.bias, part.running_mean, part.running_var):
                values.data.uniform_(0.5, 2)
    return module


def ours_of(array):
    """Images as ours: channels last."""
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1)) if array.ndim == 4 else array


def theirs_of(torch, array):
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)) if array.ndim == 4 else array)


def close(actual, expected):
    rtol = 1e-12 if actual.dtype == np.float64 else 1e-5
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=rtol * max(1, np.abs(expected).max(initial=0)))


@pytest.mark.parametrize("name", MODULES)
def test_models_have_pytorchs_outputs_and_go_back_to_the_same_bits(in_force, dtype, name, torch, rng):
    make, shape = MODULES[name]
    theirs = module_of(torch, make, dtype)
    before = {key: value.clone() for key, value in theirs.state_dict().items()}
    model = fg.convert.model_from_torch(theirs, SIZE)
    assert isinstance(model, Sequential) == isinstance(theirs, torch.nn.Sequential)
    assert model.dtype == dtype
    x = rng.standard_normal(shape).astype(dtype)
    y = theirs.eval()(torch.from_numpy(x)).detach().numpy()
    close(model.predict(ours_of(x)), ours_of(y))
    back = fg.convert.model_to_torch(model, SIZE)
    assert back.training
    assert torch.equal(back.eval()(torch.from_numpy(x)), theirs(torch.from_numpy(x)))
    again = fg.convert.model_from_torch(back, SIZE)
    assert bits(again.params) == bits(model.params)
    for a, b in zip(again.statistics().values(), model.statistics().values(), strict=True):
        assert bits(a) == bits(b)
    assert repr(again) == repr(model if isinstance(model, Sequential) else Sequential(model))
    assert all(torch.equal(value, before[key]) for key, value in theirs.state_dict().items())


@pytest.mark.parametrize("name", ["nested", "images", "flatten", "flatten and batch norm"])
def test_a_training_step_has_pytorchs_gradients_and_statistics(name, torch, rng):
    make, shape = MODULES[name]
    theirs = module_of(torch, make, "float64").train()
    model = fg.convert.model_from_torch(theirs, SIZE)
    x = rng.standard_normal(shape)
    tensor = torch.from_numpy(x).requires_grad_()
    y, backward = model.forward(ours_of(x), training=True)
    v = rng.standard_normal(y.shape)
    dx = backward(v)
    (theirs(tensor) * theirs_of(torch, v)).sum().backward()
    np.testing.assert_allclose(dx, ours_of(tensor.grad.numpy()), rtol=1e-9, atol=1e-11)
    # the gradients in PyTorch's layout: those of a model with them as its parameters
    gradients = deepcopy(model)
    gradients.params[...] = model.grads
    back = fg.convert.model_to_torch(gradients, SIZE)
    for ours, own in zip(back.parameters(), theirs.parameters(), strict=True):
        np.testing.assert_allclose(ours.detach(), own.grad, rtol=1e-9, atol=1e-11)
    for ours, own in zip(back.buffers(), theirs.buffers(), strict=True):
        if own.ndim:
            np.testing.assert_allclose(ours, own, rtol=1e-12)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(dtype, name, torch, rng):
    theirs = module_of(torch, lambda nn: nn.Sequential(nn.Linear(3, 7), ACTIVATIONS[name](nn)), dtype)
    model = fg.convert.model_from_torch(theirs)
    x = (3 * rng.standard_normal((11, 3))).astype(dtype)
    close(model.predict(x), theirs(torch.from_numpy(x)).detach().numpy())
    back = fg.convert.model_to_torch(model)
    assert type(back[1]) is type(theirs[1])
    assert torch.equal(back(torch.from_numpy(x)), theirs(torch.from_numpy(x)))


def test_activations_after_a_pool_and_a_flatten_come_before_them(torch, rng):
    nn = torch.nn
    layers = (
        nn.Conv2d(3, 4, 3),
        nn.MaxPool2d(3, 2, 1),
        nn.Tanh(),
        nn.Conv2d(4, 2, 3),
        nn.Flatten(),
        nn.SiLU(),
        nn.Linear(12, 2),
    )
    theirs = nn.Sequential(*layers).double()
    model = fg.convert.model_from_torch(theirs, (9, 12))
    kinds = "Conv2d MaxPool2d Conv2d Flatten Dense"
    assert [type(layer).__name__ for layer in model.layers] == kinds.split()
    x = rng.standard_normal((2, 3, *SIZE))
    tensor = torch.from_numpy(x).requires_grad_()
    expected = theirs(tensor)
    y, backward = model.forward(ours_of(x), training=True)
    close(y, expected.detach().numpy())
    expected.sum().backward()
    np.testing.assert_allclose(backward(np.ones_like(y)), ours_of(tensor.grad.numpy()), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_recurrent_layers_as_the_last_layer(dtype, cell, torch, rng):
    options = {"batch_first": True, "bidirectional": True, "dropout": 0.25, "dtype": getattr(torch, str(dtype))}
    theirs = getattr(torch.nn, cell)(3, 4, 2, **options).eval()
    model = fg.convert.model_from_torch(theirs)
    assert isinstance(model, getattr(fg.nn, cell))
    dtypes = "" if dtype == np.float32 else ", dtype='float64'"
    assert repr(model) == f"{cell}(3, 4, num_layers=2, bidirectional=True, dropout=0.25{dtypes})"
    x = rng.standard_normal((2, 5, 3)).astype(dtype)
    close(model.predict(x), theirs(torch.from_numpy(x))[0].detach().numpy())
    back = fg.convert.model_to_torch(model).eval()
    close(model.predict(x), back(torch.from_numpy(x))[0].detach().numpy())
    assert bits(fg.convert.model_from_torch(back).params) == bits(model.params)


def test_same_padding_with_a_stride_is_pytorchs_where_both_sides_are_equal(torch, rng):
    model = Sequential(Conv2d(3, 4, 3, stride=2, padding="same"), AvgPool2d(3, padding="same"), seed=0)
    message = 'model_to_torch: layer "0" (Conv2d) has padding "same" with a stride, which depends on image_size=(H, W); give that'
    refuses(ValueError, message, fg.convert.model_to_torch, model)
    back = fg.convert.model_to_torch(model, (17, 5))
    x = rng.standard_normal((2, 17, 5, 3), np.float32)
    close(model.predict(x), ours_of(back(theirs_of(torch, x)).detach().numpy()))
    message = (
        'model_to_torch: layer "0" (Conv2d) has other padding on one side, (0, 1, 1, 1) at (top, left, bottom, right); '
        "PyTorch has not"
    )
    refuses(ValueError, message, fg.convert.model_to_torch, model, (16, 5))


def test_parts_of_models_of_our_own(torch, rng):
    """What model_from_torch does not make: chains, inner Sequentials, a batch norm of Keras's kind, a pool that makes rows."""
    model = Sequential(
        Sequential(BatchNorm(3, "relu", unbiased=False), Conv2d(3, 6, 3, activation=("elu", 0.5))),
        GlobalAvgPool2d(),
        BatchNorm(6),
        DenseChain([6, 5, 2], "tanh", "softmax"),
        seed=0,
    )
    x = rng.standard_normal((2, 8, 7, 3), np.float32)
    theirs = fg.convert.model_to_torch(model).eval()
    close(model.predict(x), theirs(theirs_of(torch, x)).detach().numpy())
    names = "BatchNorm2d ReLU Conv2d ELU AdaptiveAvgPool2d Flatten BatchNorm1d Linear Tanh Linear Softmax"
    assert [type(module).__name__ for module in theirs] == names.split()


@pytest.mark.parametrize(
    "model", [BatchNorm(3, "softmax"), Sequential(Dropout(), BatchNorm(3, "softmax"))], ids=["alone", "two layers"]
)
def test_batch_norms_alone_are_of_images_where_an_image_size_is_given(model, torch, rng):
    x = rng.standard_normal((2, *SIZE, 3), np.float32)
    model.forward(x, training=True)
    theirs = fg.convert.model_to_torch(model, SIZE).eval()
    close(model.predict(x), ours_of(theirs(theirs_of(torch, x)).detach().numpy()))
    theirs = fg.convert.model_to_torch(model).eval()
    close(model.predict(x[:, 0, 0]), theirs(torch.from_numpy(x[:, 0, 0])).detach().numpy())


def test_with_a_dense_layer_norms_are_of_rows_whatever_the_image_size(torch):
    theirs = fg.convert.model_to_torch(Sequential(BatchNorm(3, "softmax"), Dense(3, 2)), SIZE)
    assert [str(module).partition("(")[0] for module in theirs] == ["BatchNorm1d", "Softmax", "Linear"]
    assert theirs[1].dim == -1


def test_pytorchs_generator_is_left_alone(torch):
    state = torch.random.get_rng_state()
    fg.convert.model_to_torch(Dense(3, 4))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_layers_of_equal_weights_keep_them(torch):
    """The default weights of a layer, which a Sequential would otherwise draw anew."""
    model = Sequential(Dense(4, 4, seed=0), Dense(4, 4, seed=0))
    assert bits(fg.convert.model_from_torch(fg.convert.model_to_torch(model)).params) == bits(model.params)


NOT = ", which fg.nn has not"
ORDER = "makes rows of images, whose order depends on their height and width"
HINT = (
    "image_size=(H, W) of the model's inputs tells them",
    "is an activation, and fg.nn has these in Dense, Conv2d, BatchNorm and LayerNorm alone, one each: "
    "it must come right after such a layer",
)
REFUSED = {
    "option of conv": (
        lambda nn: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
        f"the model (Conv2d) has padding_mode 'reflect'{NOT}",
    ),
    "no affine": (lambda nn: nn.BatchNorm1d(3, affine=False), f"the model (BatchNorm1d) has affine=False{NOT}"),
    "no statistics": (
        lambda nn: nn.BatchNorm1d(3, track_running_stats=False),
        f"the model (BatchNorm1d) has track_running_stats=False{NOT}",
    ),
    "average": (lambda nn: nn.BatchNorm1d(3, momentum=None), f"the model (BatchNorm1d) has momentum=None{NOT}"),
    "layer norm without affine": (
        lambda nn: nn.LayerNorm(3, elementwise_affine=False),
        f"the model (LayerNorm) has elementwise_affine=False{NOT}",
    ),
    "layer norm of two axes": (
        lambda nn: nn.LayerNorm((3, 4)),
        f"the model (LayerNorm) has normalized_shape (3, 4){NOT}",
    ),
    "layer norm of images": (
        lambda nn: nn.Sequential(nn.Conv2d(3, 4, 3), nn.LayerNorm(4)),
        f'layer "1" (LayerNorm) has images, of which it normalises the last axis and no channels{NOT}',
    ),
    "layer norm after a batch norm of images": (
        lambda nn: nn.Sequential(nn.BatchNorm2d(4), nn.LayerNorm(4)),
        f'layer "1" (LayerNorm) has images, of which it normalises the last axis and no channels{NOT}',
    ),
    **{
        f"layer norm before {name}": (
            lambda nn, name=name, arguments=arguments: nn.Sequential(nn.LayerNorm(4), getattr(nn, name)(*arguments)),
            f'layer "1" ({name}) has a LayerNorm before it, over the last axis{NOT}',
        )
        for name, arguments in {
            "Conv2d": (4, 4, 3),
            "BatchNorm2d": (4,),
            "MaxPool2d": (2,),
            "AvgPool2d": (2,),
            "AdaptiveAvgPool2d": (1,),
            "Flatten": (),
        }.items()
    },
    "batch norm of steps": (
        lambda nn: nn.Sequential(nn.BatchNorm1d(3), nn.GRU(3, 4)),
        f'layer "1" (GRU) has a BatchNorm1d before it, over dim 1, which is the steps of sequences{NOT}',
    ),
    "softmax of steps": (
        lambda nn: nn.Sequential(nn.Linear(3, 3), nn.Softmax(1), nn.LSTM(3, 4)),
        f'layer "2" (LSTM) has a Softmax before it, over dim 1, which is the steps of sequences{NOT}',
    ),
    "dilated pool": (
        lambda nn: nn.Sequential(nn.Sequential(nn.MaxPool2d(2, dilation=2))),
        f'layer "0.0" (MaxPool2d) has dilation 2{NOT}',
    ),
    "pool dilation": (lambda nn: nn.MaxPool2d(2, dilation=2), f"the model (MaxPool2d) has dilation 2{NOT}"),
    "indices": (lambda nn: nn.MaxPool2d(2, return_indices=True), f"the model (MaxPool2d) has return_indices=True{NOT}"),
    "divisor": (lambda nn: nn.AvgPool2d(2, divisor_override=3), f"the model (AvgPool2d) has divisor_override 3{NOT}"),
    "adaptive": (lambda nn: nn.AdaptiveAvgPool2d(7), f"the model (AdaptiveAvgPool2d) has output_size 7{NOT}"),
    "adaptive last": (
        lambda nn: nn.Sequential(nn.AdaptiveAvgPool2d(1)),
        'layer "0" (AdaptiveAvgPool2d) must come before a Flatten, for fg.nn.GlobalAvgPool2d makes rows',
    ),
    "adaptive before another": (
        lambda nn: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 4, 1)),
        'layer "1" (Conv2d) comes after an AdaptiveAvgPool2d; only a Flatten may, for fg.nn.GlobalAvgPool2d makes rows',
    ),
    "flatten": (lambda nn: nn.Flatten(2), f"the model (Flatten) has dimensions 2 to -1{NOT}"),
    "softmax": (
        lambda nn: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softmax(-1)),
        'layer "1" (Softmax) has dim -1; the softmax of fg.nn is over the channels, dim 1',
    ),
    "softplus": (lambda nn: nn.Sequential(nn.Linear(3, 4), nn.Softplus(2)), f'layer "1" (Softplus) has beta 2{NOT}'),
    "hardtanh": (
        lambda nn: nn.Sequential(nn.Linear(3, 4), nn.Hardtanh()),
        f'layer "1" (Hardtanh) has min_val -1.0{NOT}',
    ),
    "activation first": (lambda nn: nn.Sequential(nn.ReLU()), f'layer "0" (ReLU) {HINT[1]}'),
    "two activations": (lambda nn: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Tanh()), f'layer "2" (Tanh) {HINT[1]}'),
    "activation of a pool": (
        lambda nn: nn.Sequential(nn.Conv2d(3, 3, 3), nn.MaxPool2d(2), nn.SiLU()),
        f'layer "2" (SiLU) {HINT[1]}',
    ),
    "after an LSTM": (
        lambda nn: nn.Sequential(nn.LSTM(3, 4), nn.Linear(4, 2)),
        'layer "1" (Linear) comes after an LSTM, whose outputs in PyTorch are a tuple',
    ),
    "after a GRU": (
        lambda nn: nn.Sequential(nn.Linear(3, 3), nn.GRU(3, 4), nn.ReLU()),
        'layer "2" (ReLU) comes after a GRU, whose outputs in PyTorch are a tuple',
    ),
    "rate": (
        lambda nn: nn.Sequential(nn.Dropout(1.0)),
        'layer "0" (Dropout): Dropout: rate must be at least 0 and below 1, got 1.0',
    ),
    "no layer": (lambda nn: nn.Sequential(), "the model has no layer"),
    "size": (
        lambda nn: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(280, 2)),
        f'layer "1" (Flatten) {ORDER}; {HINT[0]}',
    ),
    "flatten last": (
        lambda nn: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()),
        f'layer "1" (Flatten) {ORDER}; {HINT[0]}',
    ),
    "widths": (
        lambda nn: nn.Sequential(nn.Linear(3, 4), nn.Linear(3, 4)),
        "Sequential: layers[1] must take 4 columns, got 3",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_fastgrad_has_not_is_an_error_that_names_the_layer(name, torch):
    make, message = REFUSED[name]
    refuses(ValueError, f"model_from_torch: {message}", fg.convert.model_from_torch, make(torch.nn))


def test_an_image_size_that_does_not_fit_is_named(torch):
    nn = torch.nn
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(280, 2))
    fg.convert.model_from_torch(module, SIZE)
    message = 'model_from_torch: layer "1" (Flatten) makes rows of images (8, 10, 4), which do not give 280 columns'
    refuses(ValueError, message, fg.convert.model_from_torch, module, (10, 12))
    message = (
        'model_from_torch: layer "1" (Flatten) is the model\'s output, in another order here; it needs a Dense after it'
    )
    refuses(ValueError, message, fg.convert.model_from_torch, module[:2], SIZE)
    message = "model_from_torch: image_size must be an integer or a pair (vertical, horizontal), got (1, 2, 3)"
    refuses(ValueError, message, fg.convert.model_from_torch, module, (1, 2, 3))


def test_layers_that_are_not_known_are_named_with_those_that_are(torch):
    nn, convert = torch.nn, fg.convert.model_from_torch
    known = (
        "known are AdaptiveAvgPool2d, AvgPool2d, BatchNorm1d, BatchNorm2d, Conv2d, Dropout, ELU, Flatten, GELU, GRU, Hardtanh, "
        "Identity, LSTM, LayerNorm, LeakyReLU, Linear, MaxPool2d, ReLU, ReLU6, SELU, Sequential, SiLU, Sigmoid, Softmax, Softplus, Tanh"
    )
    module = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Embedding(3, 4)))
    refuses(TypeError, f'model_from_torch: layer "1.0" (Embedding) has no equal in fg.nn; {known}', convert, module)

    class Linear(nn.Linear):
        """Its forward may be another."""

    refuses(TypeError, f"model_from_torch: the model (Linear) has no equal in fg.nn; {known}", convert, Linear(3, 4))
    hint = "fgt.accelerate takes models of any kind"

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 4)

    refuses(TypeError, f"model_from_torch: the model (Net) has no equal in fg.nn; {hint}; {known}", convert, Net())
    refuses(TypeError, "model_from_torch: module must be a torch.nn.Module, got int", convert, 3)


def test_hooks_shared_layers_and_other_dtypes_are_refused(torch):
    nn, convert = torch.nn, fg.convert.model_from_torch
    module = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    module[1].register_forward_hook(lambda module, inputs, output: output + 1)
    refuses(ValueError, 'model_from_torch: layer "1" (ReLU) has forward hooks, which fg.nn has not', convert, module)
    layer = nn.Linear(3, 3)
    message = 'model_from_torch: layer "2" (Linear) is layer "0" once more; layers of fg.nn have weights of their own'
    refuses(ValueError, message, convert, nn.Sequential(layer, nn.ReLU(), layer))
    relu = nn.ReLU()
    assert len(convert(nn.Sequential(nn.Linear(3, 3), relu, nn.Linear(3, 3), relu)).layers) == 2
    message = 'model_from_torch: w of layer "0" (Linear) must be float32 or float64, got torch.bfloat16'
    refuses(TypeError, message, convert, nn.Sequential(nn.Linear(3, 3).bfloat16()))
    message = 'model_from_torch: w of layer "1" (Linear) must be float32, got float64 (one call has one dtype)'
    refuses(TypeError, message, convert, nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3).double()))


def test_what_pytorch_has_not_is_an_error_that_names_the_layer(torch):
    convert = fg.convert.model_to_torch
    message = 'model_to_torch: layer "1" (Residual) has no equal among the layers of a torch.nn.Sequential'
    refuses(TypeError, message, convert, Sequential(Dense(3, 3), Residual(Dense(3, 3))))
    message = "model_to_torch: the model (LSTM) has pool 'mean', which PyTorch's LSTM has not"
    refuses(ValueError, message, convert, LSTM(2, 3, pool="mean"))
    message = "model_to_torch: the model (LSTM): to_torch: the layer has peephole, which PyTorch's LSTM has not"
    refuses(ValueError, message, convert, LSTM(2, 3, peephole=True))
    message = (
        'model_to_torch: layer "0" (BatchNorm) is of sequences, whose steps are the channels of PyTorch\'s BatchNorm1d'
    )
    refuses(ValueError, message, convert, Sequential(BatchNorm(2), LSTM(2, 3)))
    message = 'model_to_torch: layer "1" (Dense) comes after an LSTM, whose outputs in PyTorch are a tuple'
    refuses(ValueError, message, convert, Sequential(LSTM(2, 3), Dense(3, 2)))
    message = "model_to_torch: the model (GRU) has pool 'last', which PyTorch's GRU has not"
    refuses(ValueError, message, convert, GRU(2, 3, pool="last"))
    message = "model_to_torch: the model (GRU): to_torch: the layer has reset_after=False, which PyTorch's GRU has not"
    refuses(ValueError, message, convert, GRU(2, 3, reset_after=False))
    message = 'model_to_torch: layer "1" (Dense) comes after a GRU, whose outputs in PyTorch are a tuple'
    refuses(ValueError, message, convert, Sequential(GRU(2, 3), Dense(3, 2)))
    message = (
        'model_to_torch: layer "1" (Flatten) makes rows of images, whose order depends on their height and width; '
        "image_size=(H, W) of the model's inputs tells them"
    )
    refuses(ValueError, message, convert, Sequential(MaxPool2d(2), Flatten(), Dense(12, 2)))
    message = (
        'model_to_torch: layer "1" (Flatten) needs a Dense after it, for PyTorch\'s order of the values is another'
    )
    refuses(ValueError, message, convert, Sequential(Conv2d(3, 4, 3), Flatten()), SIZE)
    message = "model_to_torch: model must be a model of fastgrad.nn, got torch's Linear"
    refuses(TypeError, message, convert, torch.nn.Linear(3, 4))
    message = (
        "model_to_torch: the model (LayerNorm) is of images, whose channels PyTorch's LayerNorm does not normalise"
    )
    refuses(ValueError, message, convert, LayerNorm(3), SIZE)


def test_without_pytorch_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    message = "model_to_torch: PyTorch is needed; pip install fastgrad[torch] installs it"
    refuses(ImportError, message, fg.convert.model_to_torch, Dense(3, 4))
