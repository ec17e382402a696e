"""Benchmarks of fastgrad against other libraries; README.md explains the folder."""
