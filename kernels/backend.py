"""The interface of a backend, as a typing.Protocol: every function of the module that `kernels(x)` returns, with its argument types.

reference/ defines what each function computes, in the file named after its op. Arrays are NumPy arrays or, in the backend "cuda", CuPy
arrays of the same shapes. All arrays of a call have one dtype, float32 or float64, unless types.py or the op's file names another. The
arrays that a function writes come last.
"""

from typing import Any, Protocol

import numpy as np

from .types import (
    Activation,
    Affine,
    Batches,
    Chain,
    ChainGradients,
    ChainSaved,
    ConvGradients,
    Geometry,
    GRUGradients,
    GRUSaved,
    GRUUpstream,
    GRUWeights,
    LayerSaved,
    Loss,
    LSTMGradients,
    LSTMSaved,
    LSTMUpstream,
    LSTMVariant,
    LSTMVariantGradients,
    LSTMVariantSaved,
    LSTMVariantWeights,
    LSTMWeights,
    Net,
    NormGradients,
    PackedBatch,
    Running,
    States,
    Statistics,
    UpdateRule,
    Watch,
)

Array = np.ndarray
Arrays = list[np.ndarray]
Pair = tuple[int, int]
# top, left, bottom, right
Pads = tuple[int, int, int, int]
# 0, or another of Status; on a GPU an array () that lies there
StatusOf = Any


class Backend(Protocol):
    """A module of kernels."""

    # activation.py
    def activation_forward(self, z: Array, y: Array, activation: Activation) -> None: ...
    def activation_backward(
        self, dy: Array, z: Array | None, y: Array | None, dz: Array, activation: Activation
    ) -> None: ...

    # dense.py
    def dense_chain_forward(self, chain: Chain, saved: ChainSaved) -> None: ...
    def dense_chain_backward(self, dy: Array, chain: Chain, saved: ChainSaved, gradients: ChainGradients) -> None: ...
    def dense_chain_infer(self, x: Array, table: Array, parameters: Array, params: Array, out: Array) -> None: ...

    # training_step.py
    def dense_chain_gradients(
        self,
        x: Any,
        target: Array,
        net: Net,
        record: Array,
        *,
        row_weights: Array | None = None,
        l2: float = 0.0,
        mean: bool = True,
        counts: Array | None = None,
    ) -> StatusOf: ...
    def dense_chain_step(
        self,
        x: Array,
        target: Array,
        net: Net,
        rule: UpdateRule,
        step: int,
        record: Array,
        *,
        row_weights: Array | None = None,
        l2: float = 0.0,
        watch: Watch | None = None,
        updates: Array | None = None,
        counts: Array | None = None,
    ) -> StatusOf: ...
    def dense_chain_epoch(
        self,
        x: Any,
        target: Array,
        batches: Batches,
        net: Net,
        rule: UpdateRule,
        step: int,
        record: Array,
        *,
        row_weights: Array | None = None,
        l2: float = 0.0,
        watch: Watch | None = None,
        updates: Array | None = None,
        counts: Array | None = None,
    ) -> tuple[StatusOf, int]: ...

    # optim.py
    def update_arrays(
        self,
        params: Arrays,
        grads: Arrays,
        rule: UpdateRule,
        step: int,
        record: Array | None,
        *,
        moved: Array | None = None,
        updates: Array | None = None,
        only_if: Any = None,
    ) -> StatusOf: ...

    # lstm.py
    def lstm_forward(
        self, xs: Array, weights: LSTMWeights, start: States, batch: PackedBatch, saved: LSTMSaved, end: States
    ) -> None: ...
    def lstm_backward(
        self,
        upstream: LSTMUpstream,
        xs: Array,
        weights: LSTMWeights,
        start: States,
        batch: PackedBatch,
        saved: LSTMSaved,
        gradients: LSTMGradients,
        accumulate: bool,
    ) -> None: ...

    # lstm_variants.py
    def lstm_variant_forward(
        self,
        xs: Array,
        weights: LSTMVariantWeights,
        start: States,
        batch: PackedBatch,
        variant: LSTMVariant,
        saved: LSTMVariantSaved,
        end: States,
    ) -> None: ...
    def lstm_variant_backward(
        self,
        upstream: LSTMUpstream,
        xs: Array,
        weights: LSTMVariantWeights,
        start: States,
        batch: PackedBatch,
        variant: LSTMVariant,
        saved: LSTMVariantSaved,
        gradients: LSTMVariantGradients,
    ) -> None: ...

    # gru.py
    def gru_forward(
        self,
        xs: Array,
        weights: GRUWeights,
        h_0: Array,
        batch: PackedBatch,
        saved: GRUSaved,
        h_n: Array,
        *,
        reset_after: bool,
    ) -> None: ...
    def gru_backward(
        self,
        upstream: GRUUpstream,
        xs: Array,
        weights: GRUWeights,
        h_0: Array,
        batch: PackedBatch,
        saved: GRUSaved,
        gradients: GRUGradients,
        accumulate: bool,
        *,
        reset_after: bool,
    ) -> None: ...

    # packing.py
    def gather_rows(self, x: Array, batch: PackedBatch, rows: Array) -> None: ...
    def scatter_rows(self, rows: Array, batch: PackedBatch, x: Array) -> None: ...

    # batch_norm.py
    def batch_norm_statistics(
        self, x: Array, running: Running, training: bool, eps: float, statistics: Statistics
    ) -> None: ...
    def batch_norm_forward(
        self,
        x: Array,
        statistics: Statistics,
        affine: Affine,
        residual: Array | None,
        activation: Activation,
        saved: LayerSaved,
    ) -> None: ...
    def batch_norm_backward(
        self,
        dy: Array,
        x: Array,
        statistics: Statistics,
        affine: Affine,
        activation: Activation,
        batch_statistics: bool,
        saved: LayerSaved,
        gradients: NormGradients,
    ) -> None: ...

    # layer_norm.py
    def layer_norm_forward(
        self,
        x: Array,
        affine: Affine,
        eps: float,
        residual: Array | None,
        activation: Activation,
        statistics: Statistics,
        saved: LayerSaved,
    ) -> None: ...
    def layer_norm_backward(
        self,
        dy: Array,
        x: Array,
        statistics: Statistics,
        affine: Affine,
        activation: Activation,
        saved: LayerSaved,
        gradients: NormGradients,
    ) -> None: ...

    # conv.py
    def conv2d_forward(
        self,
        x: Array,
        w: Array,
        b: Array | None,
        geometry: Geometry,
        residual: Array | None,
        activation: Activation,
        saved: LayerSaved,
    ) -> None: ...
    def conv2d_backward(
        self,
        dy: Array,
        x: Array,
        w: Array,
        geometry: Geometry,
        activation: Activation,
        saved: LayerSaved,
        gradients: ConvGradients,
    ) -> None: ...

    # pool.py
    def max_pool2d_forward(self, x: Array, size: Pair, stride: Pair, pads: Pads, y: Array) -> None: ...
    def max_pool2d_backward(
        self, dy: Array, x: Array, y: Array, size: Pair, stride: Pair, pads: Pads, dx: Array
    ) -> None: ...
    def avg_pool2d_forward(
        self, x: Array, size: Pair, stride: Pair, pads: Pads, include_pad: bool, y: Array
    ) -> None: ...
    def avg_pool2d_backward(
        self, dy: Array, size: Pair, stride: Pair, pads: Pads, include_pad: bool, dx: Array
    ) -> None: ...

    # dropout.py
    def dropout_forward(self, x: Array, rate: float, key: int, y: Array) -> None: ...

    # loss.py: (3,), float64
    def loss_gradient(
        self,
        y: Array,
        target: Array,
        loss: Loss,
        losses: Array,
        dy: Array,
        *,
        row_weights: Array | None = None,
        mean: bool = True,
    ) -> Any: ...

    # clip.py
    def array_norms(self, arrays: Arrays, widths: Array | None, p: float, norms: Array, nonfinite: Array) -> None: ...
    def joint_norm(self, norms: Array, p: float) -> Any: ...
    def scale_arrays(self, arrays: Arrays, widths: Array | None, scales: Array) -> None: ...
    def clamp_arrays(self, arrays: Arrays, limit: float) -> None: ...

    # pruning.py
    def prune_smallest(self, arrays: Arrays, masks: Array, count: int) -> None: ...
    def prune_below(self, arrays: Arrays, masks: Array, threshold: float) -> None: ...

    # health.py
    def array_health(self, arrays: Arrays, health: Array) -> None: ...
    def output_health(self, outputs: Arrays, bands: Array, health: Array) -> None: ...

    # init.py
    def uniform(self, out: Array, key: int, low: float, high: float) -> None: ...
    def normal(self, out: Array, key: int, mean: float, std: float) -> None: ...
    def orthogonal(self, out: Array, key: int, gain: float) -> None: ...

    # array_list.py; in cpu/engine/object_memory.py
    def are_uniform(self, arrays: list[Any]) -> bool: ...

    # weight_layout.py
    def weights_to_taps(self, weight: Array, w: Array) -> None: ...
    def weights_from_taps(self, w: Array, weight: Array) -> None: ...
