"""JAX functions over the kernels, one module an op."""
