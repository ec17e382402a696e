"""The description of a machine, for tests of tables and pictures of benchmarks."""

MACHINE = dict.fromkeys(("gflops_one", "gflops_all", "triad_gbytes"), 1.0) | {
    "processor": "a processor", "threads": 1, "versions": {"numpy": "2.0"}, "gpu": "Nothing ran on a GPU: none"
}  # fmt: skip
