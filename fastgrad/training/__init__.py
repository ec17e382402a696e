"""The trainer: data, steps, epochs, evaluation, and files to go on from."""
