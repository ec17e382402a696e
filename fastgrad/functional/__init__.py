"""Functions over arrays: each returns its result and the function that differentiates it."""
