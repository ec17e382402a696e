"""The CUDA kernels compiled without a GPU: in Numba's simulator, through ptxas, and their PTX in files.

That they are right is for the tests of each op, which run over the backend "cuda" too (see conftest.py).
"""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from summary import CUDA_RESOURCES, resource_table

pytest.importorskip("numba_cuda", reason="needs the extra [cuda]")

from emulation import CAPABILITY
from ptxsim.compile import CAPABILITIES, assembled, lowered_once, ptxas

from fastgrad.kernels import disk_cache
from fastgrad.kernels.cuda.engine import device

# tests of ops that the simulator runs, with every kernel in at least one
SIMULATED = [
    "kernels/test_activation.py::test_any_shape",
    "kernels/test_dense.py::test_bias_and_residual_may_be_missing",
    "kernels/test_loss.py::test_impossible_classes",
    "kernels/test_loss.py::test_elementwise_losses_take_rows_of_any_length",
    "kernels/test_optim.py::test_momentum_starts_from_the_gradient",
    "kernels/test_optim.py::test_norm_adds_in_float64",
    "kernels/test_clip.py::test_an_array_may_come_alone",
    "kernels/test_clip.py::test_adaptive_clipping_leaves_alone_what_is_nan",
    "kernels/test_pruning.py::test_what_is_pruned_stays_and_counts",
    "kernels/test_init.py::test_values_have_the_same_bits_on_every_backend_in_both_dtypes[cuda-7]",
    "kernels/test_dropout.py::test_it_may_run_in_place_and_nan_stays",
    "kernels/test_health.py::test_what_is_not_finite_is_counted",
    "kernels/test_health.py::test_outputs_are_described[float32-cuda-1.0-0.0-shape2]",
    "gpu/test_cuda_launches.py::test_ratios_of_updates_are_the_references",
    "gpu/test_cuda_lstm.py::test_an_lstm_on_cuda_is_the_reference[float32-all-True]",
    "kernels/test_lstm.py::test_an_empty_sequence_gives_zeros_and_its_states_pass_through[float32-cuda-True]",
    "kernels/test_pool.py::test_zeros_of_either_sign_are_equal",
    "kernels/test_pool.py::test_one_pixel_is_its_own_maximum_and_mean[float32-avg_pool2d-cuda]",
    "kernels/test_pool.py::test_is_what_the_definition_says[float32-avg_pool2d-cuda-ceil_padding]",
    "kernels/test_batch_norm.py::test_statistics_need_not_be_kept",
    "kernels/test_batch_norm.py::test_evaluation_reads_the_running_statistics_and_leaves_them",
    "kernels/test_conv.py::test_one_pixel_under_a_padded_kernel_meets_its_middle_only",
]
# all that a loss may do in float64 where its values are float32: add up, meet in shared memory, and leave the sum. Norms are of float64
SUMS = {
    "add.f64",
    "cvt.f64.f32",
    "ld.shared.f64",
    "st.shared.f64",
    "ld.global.f64",
    "st.global.f64",
    "mov.f64",
    "selp.f64",
}
ALL_KERNELS = device.KERNELS
# bytes of shared memory and registers that leave room for four blocks of 256 threads on a multiprocessor
MOST_SHARED, MOST_REGISTERS = 48 << 10, 64


@pytest.mark.full
def test_in_the_simulator():
    """In a process of its own: the simulator takes the compiler's place."""
    tests = [str(Path(__file__).parent.parent / name) for name in SIMULATED]
    # random numbers overflow, of which NumPy's scalars warn
    quiet = "-W", "ignore::RuntimeWarning"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *quiet, "-k", "cuda", *tests]
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "FASTGRAD_EMULATED_CASES": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


@pytest.mark.skipif(not ptxas(), reason="needs ptxas on the PATH")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kernel", device.KERNELS, ids=lambda k: k.name)
def test_compiles_for_a_gpu(kernel, dtype, request):
    """Without spills, and in float32 without float64 where sums are not meant to be of it."""
    dtype = np.dtype(dtype)
    # what a capability changes shows in float32
    capabilities = CAPABILITIES if dtype == np.float32 else [CAPABILITY]
    with ThreadPoolExecutor() as pool, lowered_once(kernel):
        # ptxas, a process, works while the next capability is compiled for
        found = [(cc, ptx := kernel.ptx(dtype, cc), pool.submit(assembled, ptx, cc)) for cc in capabilities]
    for cc, ptx, job in found:
        if dtype == np.float32:
            wide = {
                word
                for word in re.findall(r"^\s*(?:@\S+\s+)?([a-z]\S*\.f64\S*)", ptx, re.MULTILINE)
                if ".param" not in word
            }
            room = kernel.function.__module__.rpartition(".")[2]
            allowed = SUMS if kernel.wide and room in ("loss", "reduce") else wide if kernel.wide else set()
            assert wide <= allowed, cc
        needs = job.result()
        assert needs.spilled == needs.stack == 0, cc
        assert needs.registers <= MOST_REGISTERS, cc
        assert needs.shared <= MOST_SHARED, cc
        request.config.stash.setdefault(CUDA_RESOURCES, {})[kernel.name, dtype.name, cc] = needs.registers, needs.shared


@pytest.mark.parametrize("cc", [(8, 0), (10, 0)])
def test_a_kernel_lowered_for_another_capability_differs_in_names_alone(cc):
    def code(ptx):
        assert re.search(rf"^\.target sm_{cc[0]}{cc[1]}$", ptx, re.MULTILINE)
        return re.sub(r"_ZN\w+|_cudapy_smem_\d+|//.*", "", ptx)

    (kernel,), dtype = (k for k in device.KERNELS if k.name == "join_sums"), np.dtype("f4")
    with lowered_once(kernel):
        kernel._compile(dtype, CAPABILITY)
        once = kernel._compile(dtype, cc)
    assert code(once) == code(kernel._compile(dtype, cc))


@pytest.fixture
def ptx_folder(tmp_path, monkeypatch):
    """An empty folder for PTX. Kernels that a test makes are in no list."""
    monkeypatch.setattr(disk_cache, "_candidates", lambda version: [tmp_path / "version"])
    monkeypatch.setattr(device, "KERNELS", [])
    return tmp_path / "version"


def compiled(cc=CAPABILITY, dtype="f4"):
    """(PTX of a kernel, how often it was compiled), as in a new process."""
    (source,) = (k for k in ALL_KERNELS if k.name == "add_rows")
    kernel = device.Kernel(source.function)
    kernel._compile, calls = (lambda *key: calls.append(key) or device.Kernel._compile(kernel, *key)), []
    ptx = [kernel.ptx(np.dtype(dtype), cc) for _ in range(2)]
    assert ptx[0] == ptx[1]
    return ptx[0], len(calls)


def test_ptx_is_compiled_once_and_kept_in_a_file(ptx_folder):
    first, times = compiled()
    assert times == 1
    assert compiled() == (first, 0)
    # other code
    assert compiled(dtype="f8")[1] == compiled(cc=(8, 0))[1] == 1
    assert len(list(ptx_folder.iterdir())) == 3


def test_a_damaged_file_of_ptx_is_compiled_again_and_replaced(ptx_folder):
    compiled()
    (file,) = ptx_folder.iterdir()
    file.write_bytes(file.read_bytes()[:-9])
    assert compiled()[1] == 1
    assert compiled()[1] == 0
    assert [*ptx_folder.iterdir()] == [file]


def test_ptx_needs_no_folder(monkeypatch):
    monkeypatch.setattr(device, "KERNELS", [])
    monkeypatch.setattr(disk_cache, "_candidates", lambda version: [])
    assert compiled()[1] == compiled()[1] == 1


def test_what_kernels_need_is_a_table():
    found = {
        (name, "float32", cc): (20 + cc[0], 1024) for name in ("relu_values", "add_rows") for cc in ((8, 0), (10, 0))
    }
    del found["add_rows", "float32", (10, 0)]
    assert resource_table(found) == [
        "registers + shared bytes  float32 sm_80  float32 sm_100",
        "add_rows                  28 + 1024      -",
        "relu_values               28 + 1024      30 + 1024",
    ]


@pytest.mark.parametrize("name", ["uniform_values", "normal_values"])
def test_no_product_of_initial_weights_is_fused_with_a_sum(name, dtype):
    """ptxas may fuse a mul that does not say how to round, which executing PTX does not show."""
    (kernel,) = (k for k in device.KERNELS if k.name == name)
    ptx = kernel.ptx(dtype, (9, 0))
    products = re.findall(r"^\s*(?:@\S+\s+)?((?:mul|mad|fma)\S*\.f(?:32|64))", ptx, re.MULTILINE)
    assert len(products) >= (1 if name == "uniform_values" else 15)
    assert set(products) <= {"mul.rn.f32", "mul.rn.f64"}
    assert "approx" not in ptx
