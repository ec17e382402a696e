"""Functions over arrays: those of layers return a result and its `backward`, losses a loss and its gradient; clipping writes in place."""
