"""All workloads, by name in WORKLOADS: a file for each op or kind, with a list of workloads.

A workload is a frozen dataclass. It gives every contender the same weights and batches, and has the number of operations, the bytes of
memory traffic and the targets.
"""

from bench.workloads.adapters import ADAPTERS
from bench.workloads.batch_norm import NORMS
from bench.workloads.clip import CLIPS
from bench.workloads.conv import CONVS
from bench.workloads.conv_grid import GRID
from bench.workloads.dense import FITS, FORWARD, STEPS
from bench.workloads.gemm import GEMMS
from bench.workloads.gpu import CUDA
from bench.workloads.init import WEIGHTS
from bench.workloads.layer_norm import LAYER_NORMS
from bench.workloads.lstm import LSTMS
from bench.workloads.nets import OUTSIDE
from bench.workloads.residual import BLOCKS
from bench.workloads.scaling import SCALING

# of the benchmarks, of the chart of sizes, of the grid of convolutions and of torchvision's nets
BENCHMARKS = [
    *STEPS,
    *FITS,
    *BLOCKS,
    FORWARD,
    *GEMMS,
    *LSTMS,
    *CONVS,
    *NORMS,
    *LAYER_NORMS,
    *CLIPS,
    *WEIGHTS,
    *ADAPTERS,
    *CUDA,
]
WORKLOADS = {workload.name: workload for workload in (*BENCHMARKS, *SCALING, *GRID.values(), *OUTSIDE)}
