"""Workloads of layer normalisation: random rows, forward and backward."""

from dataclasses import dataclass

from bench.workloads.batch_norm import BatchNorm


@dataclass(frozen=True)
class LayerNorm(BatchNorm):
    """Layer normalisation, then a residual if `adds`, then relu: forward and backward."""

    kind = "layer_norm"
    runner = "LayerNorm"

    @property
    def title(self):
        return super().title.replace("batch norm", "layer norm")

    @property
    def memory_bytes(self):
        """Five passes: x and y; dy, x and dx; y too. A residual adds two: itself and dz. 0 if the arrays fit a cache."""
        size = super().memory_bytes // (11 if self.adds else 8)
        return (8 if self.adds else 6) * size


LAYER_NORMS = [
    LayerNorm("layer-norm-add", (4096, 512), adds=True, target_ratio=2, target_peer="PyTorch", target_share=0.85)
]
