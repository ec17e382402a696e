"""fastgrad's functions for JAX on a CPU: under jit, grad and vmap, as arrays of JAX.

XLA calls the kernels by a function pointer and hands over the addresses of its buffers, so that nothing is copied and no function of JAX
runs inside a call. First derivatives, reverse mode. vmap runs a function once for each element, in a loop. The backend in force
where a function is traced is the one that it keeps.
"""

try:
    from fastgrad.jax.ops.batch_norm import batch_norm
    from fastgrad.jax.ops.dense import dense_chain
    from fastgrad.jax.ops.lstm import lstm
except ImportError as error:
    # 0.5 is the first with jax.ffi
    raise ImportError('fastgrad.jax needs JAX from 0.5 on: pip install "fastgrad[jax]"') from error

__all__ = ["batch_norm", "dense_chain", "lstm"]
