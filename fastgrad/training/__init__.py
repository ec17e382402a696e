"""The trainer: data, steps, epochs, evaluation and checkpoints."""
