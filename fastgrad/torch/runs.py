"""SequentialReplacement: the forward of an accelerated nn.Sequential. It is fused in runs of layers, each with its own choice."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import nn

from fastgrad.torch.choice import MOST_KEYS, Choice, first_gradient, has_key, key_of
from fastgrad.torch.fusion import ChainStep, ConvolutionStep, LayerNormStep, Plan, apply_layers, apply_steps
from fastgrad.torch.layers import known_class, runs_layers_in_order
from fastgrad.torch.replacement import ForwardReplacement, with_gradient_format
from fastgrad.torch.twin import twin

Tensor = torch.Tensor


class Run:
    """Layers in a row of an nn.Sequential that are fused together: dense layers, a layer norm, or convolutions and batch norms.

    names: of the layers in the Sequential. A call is always fused; `choice` is for the Sequential to ask.
    """

    def __init__(self, names: Sequence[str], steps: Sequence[Any], choice: Choice | None = None) -> None:
        self.names, self.steps, self.choice = tuple(names), steps, choice
        self.layers = tuple(layer for step in steps for layer in step.layers)
        norms = [step.norm for step in steps if isinstance(step, ConvolutionStep) and step.norm is not None]
        self._modal_layer = norms[0] if norms else self.layers[0]

    def __call__(self, x: Tensor) -> Tensor:
        return apply_steps(self.steps, x)

    def fused(self, x: Tensor) -> Tensor:
        return apply_steps(self.steps, with_gradient_format(x))

    def original(self, x: Tensor) -> Tensor:
        return apply_layers(self.layers, x)

    def unit_mode(self) -> tuple[bool, bool]:
        return self._modal_layer.training, first_gradient(self.layers[0])

    def can_fuse(self) -> bool:
        return True

    def twin(self) -> "Run":
        memo: dict[int, Any] = {}

        def twins(layers: Iterable[Any]) -> list[Any]:
            return [twin(layer, memo) for layer in layers]

        def twin_of(step: Any) -> Any:
            if isinstance(step, ChainStep):
                return ChainStep(list(zip(twins(step.linears), twins(step.activations), strict=True)))
            if isinstance(step, LayerNormStep):
                return LayerNormStep(*twins((step.norm, step.activation)))
            return ConvolutionStep(*twins((step.conv, step.norm, step.activation)))

        return Run(self.names, list(map(twin_of, self.steps)))

    def parameters(self) -> Iterable[nn.Parameter]:
        return nn.ModuleList(self.layers).parameters()

    def __repr__(self) -> str:
        return ", ".join(map(str, self.steps))


class RunPlan(Plan):
    """A Plan whose fused steps are grouped to runs. chooses: whether these have a choice; then layers alone are runs too."""

    def __init__(self, module: nn.Module, chooses: bool) -> None:
        super().__init__()
        self.module, self.chooses = module, chooses
        # by names and shapes: what is planned again after a change of other layers is not timed again
        self._choices: dict[tuple, Choice] = {}

    def update(self, layers: tuple[Any, ...]) -> list[Any]:
        plan = Plan()
        units = self._grouped(plan.update(layers))
        # at once, for other threads
        self._state = *plan._state[:2], units
        return units

    def _grouped(self, steps: list[Any]) -> list[Any]:
        names, at, units = list(self.module._modules), 0, []
        steps = [self._step_alone(step) if self.chooses else step for step in steps]
        for are_images, group in groupby(steps, lambda step: isinstance(step, ConvolutionStep)):
            for run in [list(group)] if are_images else [[step] for step in group]:
                is_fused = isinstance(run[0], ChainStep | ConvolutionStep | LayerNormStep)
                size = sum(len(step.layers) for step in run) if is_fused else 1
                units.append(self._run(names[at : at + size], run) if is_fused else run[0])
                at += size
        return units

    def _run(self, names: list[str], steps: list[Any]) -> Run:
        run = Run(names, steps)
        if self.chooses:
            key = run.names, tuple(p.shape for p in run.parameters())
            # layers alone are PyTorch's where nothing can be timed
            is_default = any(len(step.layers) > 1 for step in steps)
            run.choice = self._choices.setdefault(key, Choice(is_default))
        return run

    @staticmethod
    def _step_alone(step: Any) -> Any:
        """The step of a convolution or norm that nothing is fused with; any other step as it is."""
        kind = known_class(step) if isinstance(step, nn.Module) else None
        if kind is nn.Conv2d:
            return ConvolutionStep(step, None, None)
        if kind is nn.LayerNorm:
            return LayerNormStep(step, None)
        return ConvolutionStep(None, step, None) if kind is nn.BatchNorm2d else step


class SequentialReplacement(ForwardReplacement):
    """The replacement of an nn.Sequential's forward. Its runs have choices, not itself."""

    def __init__(self, module: nn.Module, chooses: bool = False) -> None:
        super().__init__(module)
        self.plan = RunPlan(module, chooses)
        self.plan.update(tuple(module._modules.values()))
        # the keys for which all runs are PyTorch's
        self._originals: set[tuple] = set()

    def runs(self) -> list[Run]:
        """The runs of the layers as they were at the last call."""
        return [step for step in self.plan.steps if isinstance(step, Run)]

    def forward(self, input: Tensor) -> Tensor:
        if self.stopped:
            return type(self.module).forward(self.module, input)
        if self.plan.chooses and has_key(input):
            return self._chosen(input)
        return self.fused(input)

    def fused(self, x: Tensor) -> Tensor:
        if not runs_layers_in_order(self.module):
            return self.original(x)
        return self.plan(self.module, x)

    def _chosen(self, x: Tensor) -> Tensor:
        """The output for x, in which each run goes the way of its choice."""
        module, input = self.module, x
        if (self._originals and key_of(self.unit_mode(), x) in self._originals) or not runs_layers_in_order(module):
            return type(module).forward(module, x)
        ways = []
        for step in self.plan.steps_of(module):
            if isinstance(step, Run):
                ways.append(step.choice.fuses(step, x))  # type: ignore[union-attr]
                x = step.fused(x) if ways[-1] else step.original(x)
            else:
                x = step(x)
        if ways and all(way is False for way in ways) and len(self._originals) < MOST_KEYS:
            self._originals.add(key_of(self.unit_mode(), input))
        return x
