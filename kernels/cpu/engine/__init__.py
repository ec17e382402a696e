"""What CPU kernels are built from: compilation, vectors, threads, and memory."""
