"""ChainModel: a PyTorch model read as a chain of dense layers, that is the linear layers and activations that its forward calls in a row.

An nn.Sequential calls its layers in order. The forward of any other module is traced by torch.fx, once, and again when an attribute of
the module has changed.
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from fastgrad.core import check
from fastgrad.kernels.types import Activation
from fastgrad.torch.layers import activation_of, has_hooks, known_class, runs_layers_in_order
from fastgrad.torch.modules import MLP
from fastgrad.torch.replacement import replacement_of

Tensor = torch.Tensor
F: Any = nn.functional
OP = "training_step"
TAKEN = f"{OP} takes chains of nn.Linear and activations"
# the layers that compute the same as these functions, and as the methods of these names, with the same arguments after the first
FUNCTIONS: dict[Any, Any] = {
    function: kind
    for kind, functions in {
        nn.ReLU: (F.relu, torch.relu, "relu"), nn.ReLU6: (F.relu6,), nn.Sigmoid: (F.sigmoid, torch.sigmoid, "sigmoid"),
        nn.Tanh: (F.tanh, torch.tanh, "tanh"), nn.SELU: (F.selu, torch.selu), nn.SiLU: (F.silu,), nn.ELU: (F.elu,), nn.GELU: (F.gelu,),
        nn.LeakyReLU: (F.leaky_relu,), nn.Softmax: (F.softmax, torch.softmax, "softmax"), nn.Flatten: (torch.flatten, "flatten"),
    }.items()
    for function in functions
}  # fmt: skip
WITHOUT_SETTINGS = nn.Identity, nn.ReLU, nn.Sigmoid, nn.Tanh, nn.SELU, nn.SiLU


class ChainModel:
    """The layers of a model, in order. names: of the linear layers; params: of each its weight, and its bias if it has one.

    flattens: whether x (N, ...) is made (N, C) first. table (L, 5) and parameters (L,): as kernels/reference/training_step.py has them.
    attributes, hooks: the dictionaries of all modules that were read; views: of those with what they compute with.
    """

    def __init__(self, model: nn.Module) -> None:
        self.names: list[str] = []
        self.linears: list[Any] = []
        self.activations: list[Activation] = []
        self.flattens = False
        self.attributes: list[dict] = []
        self.hooks: list[dict] = []
        self.views: list[Iterable[Any]] = []
        self._read("", model)
        if not self.linears:
            raise _unsupported("", f"{type(model).__name__} has no nn.Linear")
        for (before, after), name in zip(pairwise(self.linears), self.names[1:], strict=True):
            if before.weight.shape[0] != after.weight.shape[1]:
                raise _unsupported(name, f"takes {after.weight.shape[1]} columns, gets {before.weight.shape[0]}")
        named = [
            (f"{name}.{key}".lstrip("."), p)
            for name, linear in zip(self.names, self.linears, strict=True)
            for key in ("weight", "bias")
            if (p := linear._parameters[key]) is not None
        ]
        self.param_names = [name for name, _ in named]
        self.params: list[Tensor] = [p for _, p in named]
        self._check_parameters()
        self.sizes = [self.linears[0].weight.shape[1], *(linear.weight.shape[0] for linear in self.linears)]
        self.table, self.parameters = self._layout()

    def _read(self, name: str, module: Any) -> None:
        """Read the layers that the forward of a module calls."""
        kind = type(module)
        if not isinstance(module, nn.Module):
            raise _unsupported(name, f"{kind.__name__} is no nn.Module")
        if has_hooks(module):
            raise _unsupported(name, f"{kind.__name__} has hooks")
        if vars(module).get("forward") is not None and replacement_of(module) is None:
            raise _unsupported(name, f"the forward of {kind.__name__} has been replaced")
        attributes = vars(module)
        self.attributes.append(attributes)
        self.hooks += [attributes[f"_{when}_hooks"] for when in ("forward", "forward_pre", "backward", "backward_pre")]
        known = known_class(module)
        if runs_layers_in_order(module) or kind is MLP:
            self.views.append(module._modules.values())
            for key, layer in module._modules.items():
                self._read(f"{name}.{key}".lstrip("."), layer)
        elif known is nn.Linear:
            self.names.append(name)
            self.linears.append(module)
            self.activations.append(check.activation(OP, "identity"))
            self.views.append(module._parameters.values())
        elif kind is nn.Flatten or known in {*FUNCTIONS.values(), nn.Identity}:
            if kind not in WITHOUT_SETTINGS:
                self.views.append(vars(module).values())
            self._add(name, module)
        elif kind.__module__.startswith(("torch.", "fastgrad.")):
            why = (
                "is patched, parametrised or no dense float32 or float64 on the CPU"
                if kind is nn.Linear
                else "is no layer of a chain"
            )
            raise _unsupported(name, f"{kind.__name__} {why}")
        else:
            self.views += module._modules.values(), vars(module).values()
            self._trace(name, module)

    def _add(self, name: str, layer: nn.Module) -> None:
        """Put an activation behind the last linear layer, or note that x is flattened."""
        f, kind = _activation(layer), type(layer).__name__
        if isinstance(layer, nn.Flatten):
            if (layer.start_dim, layer.end_dim) != (1, -1):
                raise _unsupported(name, "Flatten must have start_dim 1 and end_dim -1")
            self.flattens = self.flattens or not self.linears
        elif f is None:
            raise _unsupported(name, f"{kind} with these settings is no activation of a chain")
        elif f != "identity":
            if not self.linears:
                raise _unsupported(name, f"{kind} comes before the first nn.Linear")
            if self.activations[-1].code:
                raise _unsupported(name, f"{kind} is a second activation behind one nn.Linear")
            self.activations[-1] = check.activation(OP, f)

    def _trace(self, name: str, module: nn.Module) -> None:
        """Read the forward of a module that is no nn.Sequential."""
        kind = type(module).__name__
        try:
            with torch.enable_grad():
                nodes = _Tracer().trace(module).nodes
        except Exception as error:
            raise _unsupported(name, f"the forward of {kind} cannot be traced ({error})") from error
        last = None
        for node in nodes:
            verb = "reads" if node.op == "get_attr" else "calls"
            what = f"the forward of {kind} {verb} {getattr(node.target, '__name__', node.target)}"
            if node.op == "placeholder" and (last is None or not node.users):
                last = last or node
                continue
            if node.all_input_nodes != [last] or node.args[:1] != (last,):
                raise _unsupported(name, f"{what}, which takes something else than the output of the layer before")
            if node.op == "call_module":
                self._read(f"{name}.{node.target}".lstrip("."), module.get_submodule(str(node.target)))
            elif node.op != "output":
                try:
                    layer = FUNCTIONS[node.target](*node.args[1:], **node.kwargs)
                except (KeyError, TypeError):
                    raise _unsupported(name, f"{what}, which is no layer of a chain") from None
                self._add(name, layer)
            last = node

    def _check_parameters(self) -> None:
        addresses: dict[int, str] = {}
        for name, p in zip(self.param_names, self.params, strict=True):
            if p.dtype is not self.params[0].dtype:
                raise TypeError(
                    f"{OP}: parameters must have one dtype, got {self.params[0].dtype} and {p.dtype} ({name})"
                )
            if not p.numel() or not p.is_contiguous():
                raise _unsupported(name, "the parameter has no values or is not contiguous")
            if p.is_neg():
                raise _unsupported(name, "the parameter is a negated view")
            if p._backward_hooks or p._post_accumulate_grad_hooks:
                raise _unsupported(name, "the parameter has hooks")
            if (other := addresses.setdefault(p.data_ptr(), name)) is not name:
                raise _unsupported(name, f"the parameter is shared with {other}")

    def _layout(self) -> tuple[Any, Any]:
        """The table of the layers and the parameters of their activations, for w and b one after the other in flat arrays."""
        rows, offset = [], 0
        for linear, f in zip(self.linears, self.activations, strict=True):
            n_out, n_in = linear.weight.shape
            has_bias = linear.bias is not None
            rows.append((n_in, n_out, offset, offset + n_in * n_out if has_bias else -1, f.code))
            offset += (n_in + has_bias) * n_out
        return np.array(rows, np.int64), np.array([f.parameter for f in self.activations])


class _Tracer(fx.Tracer):
    """Traces one forward; the modules that it calls are read by themselves."""

    def __init__(self) -> None:
        super().__init__()
        self._is_autocast = torch.is_autocast_enabled("cpu")

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        # a graph does not tell what is inside of these
        if not torch.is_grad_enabled():
            raise ValueError("it calls layers without gradients")
        if torch.is_autocast_enabled("cpu") != self._is_autocast:
            raise ValueError("it turns autocast on or off")
        return super().create_node(*args, **kwargs)


def _activation(layer: Any) -> str | tuple[str, float] | None:
    """activation_of, of x (N, C): there the axis 1 is the last one."""
    if type(layer) is nn.Softmax and layer.dim == 1:
        return "softmax"
    return activation_of(layer)


def _unsupported(name: str, why: str) -> ValueError:
    return ValueError(f"{OP}: {name or '(the model)'}: {why}; {TAKEN}")
