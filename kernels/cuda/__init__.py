"""The room of the CUDA backend (Numba-CUDA and CuPy). It holds no kernels yet; fastgrad.backend says so when asked."""
