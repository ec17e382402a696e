"""Compare the contenders of a few workloads: check them against the float64 reference, then time them in turns (A B C A B C).

python -m bench.compare step-784 step-100 --peers PyTorch JAX --rounds 9
"""

import argparse

from bench.harness import report
from bench.harness.comparison import compare
from bench.harness.machine import machine
from bench.harness.workers import Workers
from bench.peers import FASTGRAD, MODULES, VARIANTS, contenders, device
from bench.workloads import WORKLOADS
from fastgrad.core.backend import missing


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="+", metavar="WORKLOAD", help=f"part of a name: {', '.join(WORKLOADS)}")
    parser.add_argument("--peers", nargs="+", choices=MODULES, default=list(MODULES), metavar="PEER",
                        help=f"of {', '.join(MODULES)}; default: all")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender (default: 5)")
    options = parser.parse_args(arguments)
    rows = []
    with Workers() as workers:
        for workload in WORKLOADS.values():
            chosen = any(part in workload.name for part in options.workloads)
            if chosen and not (device(workload) == "cuda" and missing("cuda")):
                names = [name for name in contenders(workload) if name in (FASTGRAD, *VARIANTS, *options.peers)]
                rows.append(compare(workers, workload, names, options.rounds))
        print(report.markdown(rows, machine(workers)))


if __name__ == "__main__":
    main()
