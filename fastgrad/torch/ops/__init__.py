"""PyTorch operators over the kernels, one module an op."""
