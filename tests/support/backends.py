"""The backends of the host, by name. The CUDA backend is a fixture of conftest.py, since it is emulated."""

BACKENDS = {"numpy": "fastgrad.kernels.reference", "cpu": "fastgrad.kernels.cpu"}
