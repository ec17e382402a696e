"""Workloads of layer normalisation: random rows, forward and backward."""

from dataclasses import dataclass

import numpy as np

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
        """Six passes: x and y; dy, y, x and dx. A residual adds two: itself and dz."""
        return (8 if self.adds else 6) * 4 * int(np.prod(self.shape))


LAYER_NORMS = [
    LayerNorm("layer-norm-add", (4096, 512), adds=True, target_ratio=2, target_peer="PyTorch", target_share=0.85)
]
