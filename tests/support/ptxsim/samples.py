"""Sample kernels for the tests of ptxsim: sums in shared memory, gates, normalisation, shuffles."""

import math

from numba import cuda, float32

BLOCK = 64


@cuda.jit(device=True)
def sigmoid(x):
    return float32(1.0) / (float32(1.0) + math.exp(-x))


@cuda.jit
def block_sum(x, out):
    sums = cuda.shared.array(BLOCK, float32)
    t = cuda.threadIdx.x
    total = float32(0.0)
    for i in range(cuda.grid(1), x.size, cuda.gridsize(1)):
        total += x[i]
    sums[t] = total
    cuda.syncthreads()
    s = BLOCK // 2
    while s > 0:
        if t < s:
            sums[t] += sums[t + s]
        cuda.syncthreads()
        s //= 2
    if t == 0:
        cuda.atomic.add(out, 0, sums[0])


@cuda.jit
def lstm_gates(gates, c_prev, c, h, acts):
    n = c_prev.shape[0] * c_prev.shape[1]
    H = c_prev.shape[1]
    for k in range(cuda.grid(1), n, cuda.gridsize(1)):
        b = k // H
        j = k - b * H
        i_ = sigmoid(gates[b, j])
        f_ = sigmoid(gates[b, H + j])
        g_ = math.tanh(gates[b, 2 * H + j])
        o_ = sigmoid(gates[b, 3 * H + j])
        new = f_ * c_prev[b, j] + i_ * g_
        c[b, j] = new
        h[b, j] = o_ * math.tanh(new)
        acts[b, j] = i_
        acts[b, H + j] = f_
        acts[b, 2 * H + j] = g_
        acts[b, 3 * H + j] = o_


@cuda.jit
def batch_norm(x, gamma, beta, eps, y, mean, rstd):
    sums = cuda.shared.array(BLOCK, float32)
    t = cuda.threadIdx.x
    c = cuda.blockIdx.x
    N = x.shape[0]
    total = float32(0.0)
    for n in range(t, N, cuda.blockDim.x):
        total += x[n, c]
    sums[t] = total
    cuda.syncthreads()
    s = BLOCK // 2
    while s > 0:
        if t < s:
            sums[t] += sums[t + s]
        cuda.syncthreads()
        s //= 2
    mu = sums[0] / float32(N)
    cuda.syncthreads()
    total = float32(0.0)
    for n in range(t, N, cuda.blockDim.x):
        d = x[n, c] - mu
        total += d * d
    sums[t] = total
    cuda.syncthreads()
    s = BLOCK // 2
    while s > 0:
        if t < s:
            sums[t] += sums[t + s]
        cuda.syncthreads()
        s //= 2
    r = float32(1.0) / math.sqrt(sums[0] / float32(N) + eps)
    if t == 0:
        mean[c] = mu
        rstd[c] = r
    for n in range(t, N, cuda.blockDim.x):
        y[n, c] = (x[n, c] - mu) * r * gamma[c] + beta[c]


@cuda.jit
def softmax_rows(x, y):
    """A warp for each row."""
    row = cuda.blockIdx.x
    lane = cuda.threadIdx.x
    C = x.shape[1]
    largest = float32(-math.inf)
    for j in range(lane, C, 32):
        largest = max(largest, x[row, j])
    step = 16
    while step > 0:
        largest = max(largest, cuda.shfl_down_sync(0xFFFFFFFF, largest, step))
        step //= 2
    largest = cuda.shfl_sync(0xFFFFFFFF, largest, 0)
    total = float32(0.0)
    for j in range(lane, C, 32):
        total += math.exp(x[row, j] - largest)
    step = 16
    while step > 0:
        total += cuda.shfl_down_sync(0xFFFFFFFF, total, step)
        step //= 2
    total = cuda.shfl_sync(0xFFFFFFFF, total, 0)
    for j in range(lane, C, 32):
        y[row, j] = math.exp(x[row, j] - largest) / total
