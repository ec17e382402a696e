"""The arithmetic, in three backends that have the same functions: no checks of arguments, and nothing of fastgrad's API.

    fastgrad.functional, .nn, .training, .torch, .jax
                  |   kernels(x): by use_backend, or by where x lies
        +---------+------------+--------------------+
    reference/               cpu/                 cuda/
    NumPy, term by term:     Numba, on threads    Numba-CUDA, launched by CuPy
    the "numpy" backend      of their own
                             engine/              engine/
                             compile, vectors,    device and launches,
                             threads, memory      reductions, graphs

types.py has what all of them share: activations, losses and optimisers by number, and groups of arguments. A file has the name of its op
in every backend. To learn an op begin with its file in reference/, which is its definition; the docstring of the file in cpu/ or cuda/
says what is unusual there. Matrices are in C order; what a function writes is given to it, as its last arguments.
"""
