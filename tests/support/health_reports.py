"""Small nets that are trained with health, and what their reports say."""

import numpy as np

import fastgrad as fg


def data(n=64, columns=12, classes=5, dtype="float32", seed=3):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, columns)).astype(dtype), rng.integers(0, classes, n)


def trained(model, x, y, steps=1, **options):
    trainer = fg.Trainer(model, health=True, **options)
    for _ in range(steps):
        trainer.step(x, y)
    return trainer


def illnesses(report):
    return [verdict.illness for verdict in report.verdicts.values()]


def cures(report):
    """Of each illness all that is advised against it."""
    return {v.illness: v.cure for v in report.verdicts.values() if v.illness != "healthy"}
