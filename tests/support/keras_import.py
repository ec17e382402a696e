"""Keras over PyTorch or JAX where TensorFlow is not installed."""

import importlib.util
import os

import pytest


def import_keras():
    """The module keras; skips where it, or a backend of it, is not installed."""
    with pytest.MonkeyPatch.context() as patch:
        if importlib.util.find_spec("tensorflow") is None and "KERAS_BACKEND" not in os.environ:
            # programs that a test starts choose for themselves
            patch.setenv("KERAS_BACKEND", "torch" if importlib.util.find_spec("torch") else "jax")
        return pytest.importorskip("keras")
