"""The kernels: fastgrad's arithmetic, in three backends with the same functions. No argument is checked here; fastgrad's API does that.

    fastgrad.functional, .nn, .training, .torch, .jax
                  |   kernels(x): set by use_backend, or by the device of x
        +---------+------------+--------------------+
    reference/               cpu/                 cuda/
    NumPy, term by term:     Numba, on threads    Numba-CUDA, launched by CuPy
    the "numpy" backend      of their own
                             engine/              engine/
                             compile, vectors,    device and launches,
                             threads, memory      reductions, graphs

types.py has what the backends share: integer codes of activations, losses and optimisers, and NamedTuples that group arguments.
backend.py has the signatures of all functions. An op has the same file name in every backend. Read its file in reference/ first: that file
is the op's definition. The docstring of the file in cpu/ or cuda/ says what is unusual there. Matrices are in C order. A function writes
its results into arrays that the caller passes as the last arguments.
"""
