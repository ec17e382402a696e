"""Kernels that two processes compile: in this process, in a child of it, or many, until a signal comes."""

import multiprocessing
import os
import signal
import sys

from fastgrad.kernels.cpu.engine import compile, workers

FEW = "relu_forward", "relu_slope_backward", "elu_forward"


def jobs(names=None):
    # imported here: who only says what is in this module needs no kernel
    import fastgrad.kernels.cpu.activation

    kernels = [k for k in compile.KERNELS if k.function.__module__ == fastgrad.kernels.cpu.activation.__name__]
    return [compile.KernelJob(k.name, "f") for k in kernels if names is None or k.function.__name__ in names]


def compile_few():
    workers.START_SECONDS = 0
    few = jobs(FEW)
    compile.prepare(few)
    assert len(few) == 3
    assert all(job.is_compiled() for job in few)
    try:
        # of this process: one that runs, or what is left of one
        print("children:", os.waitpid(-1, os.WNOHANG))
    except ChildProcessError:
        print("compiled")
    sys.stdout.flush()


def compile_many():
    """Tell the number of each worker's process."""
    # a process ignores it whose parent was started in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
    init = workers.Worker.__init__

    def told(self, *arguments):
        init(self, *arguments)
        print(self.process.pid, flush=True)

    workers.START_SECONDS, workers.Worker.__init__ = 0, told
    compile.prepare(jobs())


def in_child(method):
    child = multiprocessing.get_context(method).Process(target=compile_few)
    child.start()
    child.join()
    assert child.exitcode == 0


if __name__ == "__main__" and sys.argv[1:]:
    way = sys.argv[1]
    if way in ("fork", "spawn"):
        in_child(way)
    else:
        {"here": compile_few, "many": compile_many}[way]()
