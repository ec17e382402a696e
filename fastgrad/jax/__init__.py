"""fastgrad's functions for JAX on a CPU, over JAX arrays, under jit, grad and vmap: batch_norm, dense_chain, gru, layer_norm and lstm.

XLA calls the kernels by a function pointer, with the addresses of its buffers: nothing is copied, and no function of JAX runs inside a
call. There are first derivatives in reverse mode. vmap calls a function once for each element, in a loop. A function keeps the backend that
was chosen when it was traced.
"""

try:
    from fastgrad.jax.ops.batch_norm import batch_norm
    from fastgrad.jax.ops.dense import dense_chain
    from fastgrad.jax.ops.gru import gru
    from fastgrad.jax.ops.layer_norm import layer_norm
    from fastgrad.jax.ops.lstm import lstm
except ImportError as error:
    # 0.5 is the first with jax.ffi
    raise ImportError('fastgrad.jax needs JAX from 0.5 on: pip install "fastgrad[jax]"') from error

__all__ = ["batch_norm", "dense_chain", "gru", "layer_norm", "lstm"]
