"""What a run says at its end: the counts of the ONNX cases, and what the CUDA kernels need of a multiprocessor."""

import pytest

ONNX_COUNTS = pytest.StashKey[list[str]]()
# (registers, bytes of shared memory) by kernel, dtype and compute capability
CUDA_RESOURCES = pytest.StashKey[dict]()


def summary_lines(stash):
    return [*stash.get(ONNX_COUNTS, ()), *resource_table(stash.get(CUDA_RESOURCES, {}))]


def resource_table(resources):
    """Lines of a row a kernel: registers of a thread + bytes of a block's shared memory, for each dtype and compute capability."""
    if not resources:
        return []
    columns = sorted({(dtype, cc) for _, dtype, cc in resources})
    lines = [["registers + shared bytes", *(f"{dtype} sm_{major}{minor}" for dtype, (major, minor) in columns)]]
    for name in sorted({name for name, _, _ in resources}):
        needs_by_column = [resources.get((name, *column)) for column in columns]
        lines.append([name, *("-" if needs is None else f"{needs[0]} + {needs[1]}" for needs in needs_by_column)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
