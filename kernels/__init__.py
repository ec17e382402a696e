"""The arithmetic: one folder a backend, all with the same functions. They never check and never import fastgrad's API."""
