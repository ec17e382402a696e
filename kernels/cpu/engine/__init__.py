"""The engine of the CPU kernels: what they are built from.

    compile.py, pipeline.py                 decorators of kernels and drivers; the compiler behind them
    cache.py, workers.py, notice.py         compiled code on disk; processes that compile; the line that tells of it
    thread_pool.py, atomics.py, scratch.py  launches on threads; scratch arrays
    intrinsics.py                           addresses, pointers, calls, stack arrays, vector instructions
    vector_loops.py, reductions.py          loops over arrays, and sums and counts of them
    vector_math.py, random.py               exp, log, tanh, ...; random numbers
    microkernel.py                          the inner kernel of the matrix product, a block transpose
    array_table.py, object_memory.py        lists of arrays; NumPy arrays and lists as they lie in memory

Ops are written with these files. LLVM code is here only, and in sparse.py and depthwise_row.py.
"""
