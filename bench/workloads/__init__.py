"""All that is timed, by name: a file an op or kind, whose lists of workloads meet in WORKLOADS.

Every contender draws the same weights and batches from a workload, which knows its operations, bytes and targets too.
"""

from bench.workloads.adapters import ADAPTERS
from bench.workloads.batch_norm import NORMS
from bench.workloads.clip import CLIPS
from bench.workloads.conv import CONVS
from bench.workloads.dense import FITS, FORWARD, STEPS
from bench.workloads.gemm import GEMMS
from bench.workloads.gpu import CUDA
from bench.workloads.init import WEIGHTS
from bench.workloads.lstm import LSTMS
from bench.workloads.residual import BLOCKS
from bench.workloads.scaling import SCALING

# of the benchmarks, and of the chart of sizes
BENCHMARKS = [*STEPS, *FITS, *BLOCKS, FORWARD, *GEMMS, *LSTMS, *CONVS, *NORMS, *CLIPS, *WEIGHTS, *ADAPTERS, *CUDA]
WORKLOADS = {workload.name: workload for workload in (*BENCHMARKS, *SCALING)}
