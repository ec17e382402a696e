"""The engine of the CUDA kernels: what they are built from.

    device.py       the array module `xp`, kernels compiled once a dtype, `launch`
    reductions.py   sums in a fixed order over the threads of a block and over blocks
    array_table.py  lists of arrays in one launch
    random.py       random numbers by key and index
    graph.py        CUDA graphs
    cublas.py       matrix products while a graph is recorded

Ops are kernels and launchers, written with these files.
"""
