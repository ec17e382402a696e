"""ptxsim against NumPy, against planted bugs and valid code that looks like them, and against mutants of sample kernels."""

import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="needs the extra [cuda]")

import ptxsim.samples
from numba import cuda, float32, types
from ptxsim import Module, PTXError, launch
from ptxsim.compile import compiled

BLOCK = ptxsim.samples.BLOCK
SCALAR = types.float32


def array(ndim):
    return types.Array(types.float32, ndim, "C")


def sigmoid(x):
    return 1 / (1 + np.exp(-x.astype(np.float64)))


class Sample:
    """A kernel's arguments, the grid, and what it must have made of them: pairs of an array and its expected values."""

    def __init__(self, signature, grid, block, arguments, expected):
        self.signature, self.grid, self.block, self.arguments, self.expected = (
            signature,
            grid,
            block,
            arguments,
            expected,
        )

    def run(self, function):
        launch(Module(compiled(function, self.signature)), self.grid, self.block, self.arguments)

    def right(self):
        return all(np.allclose(found, wanted, rtol=1e-5, atol=1e-5) for found, wanted in self.expected)


def sample(name):
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    if name == "block_sum":
        x, out = normal(1000), np.zeros(1, np.float32)
        return Sample((array(1), array(1)), 4, BLOCK, (x, out), [(out, x.sum(dtype=np.float64, keepdims=True))])
    if name == "lstm_gates":
        gates, before = normal(4, 200), normal(4, 50)
        c, h, acts = np.zeros_like(before), np.zeros_like(before), np.zeros_like(gates)
        i, f, g, o = np.split(gates.astype(np.float64), 4, axis=1)
        i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
        new = f * before + i * g
        expected = [(c, new), (h, o * np.tanh(new)), (acts, np.concatenate([i, f, g, o], axis=1))]
        return Sample((array(2),) * 5, 2, BLOCK, (gates, before, c, h, acts), expected)
    if name == "batch_norm":
        x, gamma, beta = 3 * normal(100, 3) + 1, normal(3), normal(3)
        y, mean, rstd = np.zeros_like(x), np.zeros(3, np.float32), np.zeros(3, np.float32)
        exact = x.astype(np.float64)
        spread = 1 / np.sqrt(exact.var(0) + 1e-5)
        expected = [(y, (exact - exact.mean(0)) * spread * gamma + beta), (mean, exact.mean(0)), (rstd, spread)]
        signature = array(2), array(1), array(1), SCALAR, array(2), array(1), array(1)
        return Sample(signature, 3, BLOCK, (x, gamma, beta, np.float32(1e-5), y, mean, rstd), expected)
    # far apart: without the right maximum its exponentials overflow
    x = 1000 * normal(8, 100)
    y = np.zeros_like(x)
    e = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
    return Sample((array(2), array(2)), 8, 32, (x, y), [(y, e / e.sum(1, keepdims=True))])


NAMES = ("block_sum", "lstm_gates", "batch_norm", "softmax_rows")


@pytest.mark.parametrize("name", NAMES)
def test_sample_kernels_are_right(name):
    case = sample(name)
    case.run(getattr(ptxsim.samples, name))
    assert case.right()


SOURCE = Path(ptxsim.samples.__file__).read_text()
CHANGES = [
    (r"cuda\.syncthreads\(\)", "pass"),
    (r"s //= 2", "s //= 4"),
    (r"if t < s:", "if t <= s:"),
    (r"if t == 0:", "if True:"),
    (r"s = BLOCK // 2", "s = BLOCK // 4"),
    (r"n = c_prev\.shape\[0\] \* c_prev\.shape\[1\]", "n = c_prev.shape[0] * c_prev.shape[1] + 1"),
    (r"range\(t, N, cuda\.blockDim\.x\)", "range(t, N + 1, cuda.blockDim.x)"),
    (r"\bH \+ j\b", "H + j + 1"),
    (r"cuda\.atomic\.add\(out, 0, sums\[0\]\)", "out[0] += sums[0]"),
    (r"step = 16", "step = 8"),
    (r"range\(lane, C, 32\):\n        total", "range(lane, C, 31):\n        total"),
]


def mutants():
    """(kernel's name, what was changed, the whole source)."""
    for name in NAMES:
        start = SOURCE.index(f"def {name}(")
        end = SOURCE.find("\n@cuda.jit", start)
        body = SOURCE[start : end if end > 0 else len(SOURCE)]
        for pattern, change in CHANGES:
            for found in re.finditer(pattern, body):
                at = start + found.start()
                mutant = SOURCE[:at] + change + SOURCE[at + len(found[0]) :]
                line = body[: found.start()].count("\n")
                yield pytest.param(name, mutant, id=f"{name}:{line}:{change}")


@pytest.mark.parametrize(("name", "mutant"), list(mutants()))
def test_mutants_are_caught(name, mutant):
    """By an error, or by wrong values. A broadcast barrier missing before sums are used again is among them."""
    scope = {"__name__": "mutant"}
    exec(compile(mutant, "mutant", "exec"), scope)
    case = sample(name)
    try:
        case.run(scope[name])
    except PTXError:
        return
    assert not case.right()


# kernels (a, out) over a thread for each value. A bug is caught where `wrong` says: always, or in several blocks only


def missing_barrier(a, out):
    values, t = cuda.shared.array(64, float32), cuda.threadIdx.x
    values[t] = t + 1
    out[t] = values[63 - t]


def barrier_that_half_a_block_leaves_out(a, out):
    if cuda.threadIdx.x < 32:
        cuda.syncthreads()
    out[cuda.grid(1)] = 1


def barriers_in_both_branches(a, out):
    t = cuda.threadIdx.x
    if t < 32:
        cuda.syncthreads()
        out[cuda.grid(1)] = 1
        cuda.syncthreads()
    else:
        cuda.syncthreads()


def read_by_all_and_written_by_the_last(a, out):
    i = cuda.grid(1)
    value = a[0]
    out[i] = value
    if i == a.size - 1:
        a[0] = value + 1


def sum_without_atomics(a, out):
    out[0] += a[cuda.grid(1)]


def read_of_what_others_still_add_to(a, out):
    cuda.atomic.add(a, 0, float32(1))
    out[cuda.grid(1)] = a[0]


def value_of_another_block(a, out):
    i = cuda.grid(1)
    a[i] = i
    cuda.syncthreads()
    out[i] = a[a.size - 1 - i]


def write_past_the_end(a, out):
    out[cuda.grid(1) + 1] = 1


def read_before_the_start(a, out):
    # a negative index counts from the end, once
    out[cuda.grid(1)] = a[cuda.grid(1) - 1 - a.size]


def exchange_in_a_warp_without_its_barrier(a, out):
    values, t = cuda.shared.array(64, float32), cuda.threadIdx.x
    values[t] = a[t]
    out[cuda.grid(1)] = values[t ^ 1]


def exchange_between_warps_with_a_warp_barrier(a, out):
    values, t = cuda.shared.array(64, float32), cuda.threadIdx.x
    values[t] = a[t]
    cuda.syncwarp()
    out[cuda.grid(1)] = values[(t + 32) % 64]


def shared_memory_used_again_too_early(a, out):
    values, t = cuda.shared.array(64, float32), cuda.threadIdx.x
    values[t] = a[t]
    cuda.syncthreads()
    value = values[0]
    values[t] = value + 1
    cuda.syncthreads()
    out[cuda.grid(1)] = values[63 - t]


def shuffle_of_half_a_warp(a, out):
    t = cuda.threadIdx.x
    if t < 16:
        out[t] = cuda.shfl_down_sync(0xFFFFFFFF, float32(t), 1)


def shared_write_past_the_end(a, out):
    values, t = cuda.shared.array(64, float32), cuda.threadIdx.x
    values[t + 1] = a[t]
    out[cuda.grid(1)] = values[t + 1]


BUGS = [
    missing_barrier, barrier_that_half_a_block_leaves_out, barriers_in_both_branches, read_by_all_and_written_by_the_last,
    sum_without_atomics, read_of_what_others_still_add_to, value_of_another_block, write_past_the_end, read_before_the_start,
    exchange_in_a_warp_without_its_barrier, exchange_between_warps_with_a_warp_barrier, shared_memory_used_again_too_early,
    shuffle_of_half_a_warp, shared_write_past_the_end,
]  # fmt: skip


def exchange_in_a_warp(a, out):
    values, t = cuda.shared.array(64, float32), cuda.threadIdx.x
    values[t] = a[t]
    cuda.syncwarp()
    out[cuda.grid(1)] = values[t ^ 1]


def atomics_and_a_barrier_in_a_blocks_own_place(a, out):
    b = cuda.blockIdx.x
    cuda.atomic.add(a, b, float32(1))
    cuda.syncthreads()
    out[cuda.grid(1)] = a[b]


def shared_memory_used_again(a, out):
    values, t, total = cuda.shared.array(64, float32), cuda.threadIdx.x, float32(0)
    for r in range(3):
        values[t] = a[t] + r
        cuda.syncthreads()
        total += values[63 - t]
        cuda.syncthreads()
    out[cuda.grid(1)] = total


def early_exit_without_a_barrier(a, out):
    if cuda.threadIdx.x > 40:
        return
    out[cuda.grid(1)] = a[cuda.grid(1)]


VALID = [
    exchange_in_a_warp,
    atomics_and_a_barrier_in_a_blocks_own_place,
    shared_memory_used_again,
    early_exit_without_a_barrier,
]


def run_small(kernel, blocks):
    a, out = np.zeros(64 * blocks, np.float32), np.zeros(64 * blocks, np.float32)
    launch(Module(compiled(kernel, (array(1), array(1)))), blocks, 64, (a, out))


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("kernel", BUGS, ids=lambda k: k.__name__)
def test_planted_bugs_are_caught(kernel, blocks):
    if kernel is value_of_another_block and blocks == 1:
        # one block's barrier orders it
        run_small(kernel, blocks)
        return
    with pytest.raises(PTXError):
        run_small(kernel, blocks)


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("kernel", VALID, ids=lambda k: k.__name__)
def test_valid_code_is_not_flagged(kernel, blocks):
    run_small(kernel, blocks)


RAW = r"""
extern "C" __global__ void layer_norm(const float* __restrict__ x, float* __restrict__ y, int C, float eps) {
  __shared__ float red[32];
  int t = threadIdx.x;
  const float4* row = (const float4*)(x + (size_t)blockIdx.x * C);
  float s = 0.f, q = 0.f;
  for (int j = t; j < C / 4; j += blockDim.x) {
    float4 v = row[j];
    s += v.x + v.y + v.z + v.w;
    q += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
  }
  for (int o = 16; o; o >>= 1) { s += __shfl_xor_sync(~0u, s, o); q += __shfl_xor_sync(~0u, q, o); }
  if ((t & 31) == 0) { red[t >> 5] = s; red[16 + (t >> 5)] = q; }
  __syncthreads();
  if (t < 32) {
    int warps = blockDim.x >> 5;
    s = t < warps ? red[t] : 0.f;
    q = t < warps ? red[16 + t] : 0.f;
    for (int o = 16; o; o >>= 1) { s += __shfl_xor_sync(~0u, s, o); q += __shfl_xor_sync(~0u, q, o); }
    __syncwarp();
    if (t == 0) { red[0] = s / C; red[16] = rsqrtf(q / C - (s / C) * (s / C) + eps); }
  }
  __syncthreads();
  float4* out = (float4*)(y + (size_t)blockIdx.x * C);
  for (int j = t; j < C / 4; j += blockDim.x) {
    float4 v = row[j];
    v.x = tanhf((v.x - red[0]) * red[16]);
    v.y = __expf((v.y - red[0]) * red[16]);
    v.z = (v.z - red[0]) * red[16];
    v.w = (v.w - red[0]) * red[16];
    out[j] = v;
  }
}"""


def test_cuda_c_is_executed_too():
    nvrtc = pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason="needs the extra [cuda]")
    program = nvrtc.createProgram(RAW, "raw.cu", [], [])
    nvrtc.compileProgram(program, ["--gpu-architecture=compute_90", "-default-device"])
    ptx = nvrtc.getPTX(program)
    module = Module((ptx.decode() if isinstance(ptx, bytes) else ptx).rstrip("\0"))
    assert any("v4" in opcode for opcode in module.opcodes)
    x = np.random.default_rng(0).standard_normal((8, 512)).astype(np.float32) + 2
    y = np.zeros_like(x)
    launch(module, 8, 128, (x, y, 512, np.float32(1e-5)), pointers=True)
    z = x.astype(np.float64)
    z = (z - z.mean(1, keepdims=True)) / np.sqrt(z.var(1, keepdims=True) + 1e-5)
    z[:, 0::4], z[:, 1::4] = np.tanh(z[:, 0::4]), np.exp(z[:, 1::4])
    np.testing.assert_allclose(y, z, rtol=1e-5, atol=1e-5)
