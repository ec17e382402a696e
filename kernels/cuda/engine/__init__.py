"""What CUDA kernels are built from: the device and its launches, reductions, tables of arrays, graphs."""
