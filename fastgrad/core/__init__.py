"""Base modules of fastgrad: choice of the backend, checks of arguments, memory for results, arrays on a GPU, locks, random generators."""
