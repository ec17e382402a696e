"""Benchmarks: what fastgrad's calls cost beside its peers' (README.md says what is where)."""
