"""Random convolution and pooling problems for tests, run through the public API, and the same problems in PyTorch."""

from dataclasses import dataclass, field, replace

import numpy as np
from arrays import unwritten
from chains import torch_activation

import fastgrad as fg
from fastgrad.core import check
from fastgrad.kernels.types import ConvGradients, Geometry, LayerSaved

# the order of the gradients
INPUTS = ("x", "w", "b", "residual")
POOLS = ("max_pool2d", "avg_pool2d", "avg_pool2d_without_pad", "global_avg_pool2d")


def pair(value):
    return value if isinstance(value, tuple) else (value, value)


def geometry(image, size, stride=1, padding=0, dilation=1, ceil_mode=False):
    """(pads, outputs) by the formulas of the docstrings; pads are (top, left, bottom, right)."""
    padding = 0 if padding == "valid" else padding
    pads, outputs = [], []
    for axis in (0, 1):
        n, s = image[axis], pair(stride)[axis]
        reach = pair(dilation)[axis] * (size[axis] - 1) + 1
        if padding == "same":
            outputs.append((n + s - 1) // s)
            total = max((outputs[-1] - 1) * s + reach - n, 0)
            pads.append((total // 2, total - total // 2))
        else:
            before, after = pair(pair(padding)[axis])
            outputs.append((before + n + after - reach + (s - 1 if ceil_mode else 0)) // s + 1)
            # PyTorch's rule: the last window begins inside the image or the padding before it
            if ceil_mode and (outputs[-1] - 1) * s >= before + n:
                outputs[-1] -= 1
            pads.append((before, after))
    return (pads[0][0], pads[1][0], pads[0][1], pads[1][1]), tuple(outputs)


@dataclass
class Conv:
    """The arguments of fg.conv2d, and an upstream gradient."""

    x: np.ndarray
    w: np.ndarray
    b: np.ndarray | None
    residual: np.ndarray | None
    dy: np.ndarray
    options: dict = field(default_factory=dict)

    def named(self, names=(*INPUTS, "dy")):
        """The arrays of these names that are not None."""
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def map(self, function):
        """The same problem with every array replaced by function(array)."""
        return replace(self, **{name: function(array) for name, array in self.named().items()})

    def only(self, rows):
        """The problem of these images."""
        return replace(self, **{name: a[rows] for name, a in self.named(("x", "residual", "dy")).items()})

    def geometry(self):
        options = {name: self.options[name] for name in ("stride", "padding", "dilation") if name in self.options}
        return geometry(self.x.shape[1:3], self.w.shape[:2], **options)

    def groups(self):
        return self.options.get("groups", 1)


def random_conv(
    rng, n, image, channels, outputs, size, dtype=np.float64, *, bias=True, residual=False, **options
):  # fmt: skip
    """Random everything: zeros hide swaps. options are fg.conv2d's."""

    def normal(*shape, scale=1.0):
        return (scale * rng.standard_normal(shape)).astype(dtype)

    image, size = pair(image), pair(size)
    each = channels // options.get("groups", 1)
    found = Conv(
        x=normal(n, *image, channels),
        w=normal(*size, each, outputs, scale=1 / np.sqrt(size[0] * size[1] * each)),
        b=normal(outputs, scale=0.5) if bias else None,
        residual=None,
        dy=np.empty(0, dtype),
        options=options,
    )
    shape = n, *found.geometry()[1], outputs
    return replace(found, dy=normal(*shape), residual=normal(*shape) if residual else None)


def conv_forward(problem):
    """What fg.conv2d returns."""
    return fg.conv2d(**problem.named(INPUTS), **problem.options)


def conv_run(problem):
    """y and the gradients by name: y, dx, dw, db, dresidual."""
    y, backward = conv_forward(problem)
    names = [f"d{name}" for name in problem.named(INPUTS)]
    return dict(zip(["y", *names], [y, *backward(problem.dy)], strict=True))


def kernel_run(kernels, problem, pads=None, *, without=(), within=lambda a: a):
    """What conv_run gives from a backend, the gradients named in `without` being None; outputs, first NaN, from `within`.

    pads are the problem's own where none are given.
    """
    p, dtype = problem, problem.x.dtype
    f = check.activation("test", p.options.get("activation", "identity"))
    stride, dilation = (pair(p.options.get(name, 1)) for name in ("stride", "dilation"))
    pads = pads or p.geometry()[0]

    def output(array):
        return within(unwritten(array.shape, dtype))

    y = output(p.dy)
    saved = LayerSaved(output(p.dy) if f.needs_input else y, y)
    sides = Geometry(stride, pads, dilation)
    kernels.conv2d_forward(p.x, p.w, p.b, sides, p.residual, f, saved)
    dz = output(p.dy)
    gradients = {f"d{name}": output(array) for name, array in p.named(("x", "w", "b")).items()}
    gradients |= dict.fromkeys(without)
    wanted = ConvGradients(dz, *(gradients.get(name) for name in ("dx", "dw", "db")))
    kernels.conv2d_backward(p.dy, p.x, p.w, sides, f, saved, wanted)
    return {"y": y, "dresidual": dz} | {name: a for name, a in gradients.items() if a is not None}


def conv_loss(problem):
    """The scalar of which conv_run's gradients are the gradients."""
    return float((conv_forward(problem)[0] * problem.dy).sum())


def torch_conv_run(torch, problem):
    """What conv_run gives, from torch.nn.functional.conv2d in float64."""
    functional = torch.nn.functional
    leaves = {name: torch.tensor(a.astype(np.float64), requires_grad=True) for name, a in problem.named(INPUTS).items()}
    (top, left, bottom, right), _ = problem.geometry()
    options = {name: problem.options[name] for name in ("stride", "dilation", "groups") if name in problem.options}
    padded = functional.pad(leaves["x"].permute(0, 3, 1, 2), (left, right, top, bottom))
    z = functional.conv2d(padded, leaves["w"].permute(3, 2, 0, 1), leaves.get("b"), **options).permute(0, 2, 3, 1)
    if "residual" in leaves:
        z = z + leaves["residual"]
    y = torch_activation(check.activation("test", problem.options.get("activation", "identity")), z)
    y.backward(torch.tensor(problem.dy.astype(np.float64)))
    return {"y": y.detach().numpy()} | {f"d{name}": leaf.grad.numpy() for name, leaf in leaves.items()}


def conv_terms(problem):
    """The length of the longest sum behind each of conv_run's results."""
    kh, kw, channels, outputs = problem.w.shape
    per_output, per_pixel = kh * kw * channels, kh * kw * outputs // problem.groups()
    pixels = problem.dy.size // outputs
    return {"y": per_output, "dx": per_pixel, "dw": pixels, "db": pixels, "dresidual": per_output}


@dataclass
class Pool:
    """The arguments of a pool, the name of which is one of POOLS, and an upstream gradient."""

    kind: str
    x: np.ndarray
    size: object
    dy: np.ndarray
    options: dict

    def map(self, function):
        return replace(self, x=function(self.x), dy=function(self.dy))

    def geometry(self):
        if self.kind == "global_avg_pool2d":
            return (0, 0, 0, 0), (1, 1)
        size = pair(self.size)
        options = {"stride": size, "padding": 0} | self.options
        return geometry(self.x.shape[1:3], size, **options)


def random_pool(rng, kind, n, image, channels, size, dtype=np.float64, **options):
    """A problem whose images are full of ties where the maximum is asked for."""
    image = pair(image)
    x = rng.standard_normal((n, *image, channels)).astype(dtype)
    if kind == "max_pool2d":
        x = np.round(2 * x) / 2
    found = Pool(kind, x, size, np.empty(0), options)
    shape = (n, channels) if kind == "global_avg_pool2d" else (n, *found.geometry()[1], channels)
    return replace(found, dy=rng.standard_normal(shape).astype(dtype))


def pool_forward(problem):
    """What the pool returns."""
    if problem.kind == "global_avg_pool2d":
        return fg.global_avg_pool2d(problem.x)
    if problem.kind == "max_pool2d":
        return fg.max_pool2d(problem.x, problem.size, **problem.options)
    include_pad = problem.kind == "avg_pool2d"
    return fg.avg_pool2d(problem.x, problem.size, **problem.options, include_pad=include_pad)


def pool_run(problem):
    """y and dx by name."""
    y, backward = pool_forward(problem)
    return {"y": y, "dx": backward(problem.dy)}


def torch_pool_run(torch, problem):
    """What pool_run gives, from torch.nn.functional in float64."""
    functional = torch.nn.functional
    leaf = torch.tensor(problem.x.astype(np.float64), requires_grad=True)
    x = leaf.permute(0, 3, 1, 2)
    (top, left, bottom, right), _ = problem.geometry()
    if problem.kind == "global_avg_pool2d":
        y = functional.adaptive_avg_pool2d(x, 1).flatten(1)
    else:
        size, stride = pair(problem.size), problem.options.get("stride")
        around = left, right, top, bottom
        if problem.options.get("ceil_mode"):
            assert (top, left) == (bottom, right)
            options = {"stride": stride, "padding": (top, left), "ceil_mode": True}
            if problem.kind == "max_pool2d":
                y = functional.max_pool2d(x, size, **options)
            else:
                y = functional.avg_pool2d(x, size, **options, count_include_pad=problem.kind == "avg_pool2d")
        elif problem.kind == "max_pool2d":
            y = functional.max_pool2d(functional.pad(x, around, value=-torch.inf), size, stride)
        else:
            y = functional.avg_pool2d(functional.pad(x, around), size, stride)
            if problem.kind == "avg_pool2d_without_pad":
                # the share of each window that lies in the image
                y = y / functional.avg_pool2d(functional.pad(torch.ones_like(x), around), size, stride)
        y = y.permute(0, 2, 3, 1)
    y.backward(torch.tensor(problem.dy.astype(np.float64)))
    return {"y": y.detach().numpy(), "dx": leaf.grad.numpy()}
