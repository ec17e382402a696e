"""Runs programs one after another, each in a process of its own, forked from this one: what they import is imported once.

On stdin comes a line a program, of JSON: its path, modules to import before, and how many seconds it may take. When it has ended, its
status goes to stdout. Its folder is the current one; what it prints is beside it, in a file of its name and .txt. Modules must not start
threads when they are imported: a forked process has none of them.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import sys
from pathlib import Path


def next_program():
    """The path of a program, in a process for it; None in the first process, after all of them."""
    for line in sys.stdin:
        path, modules, seconds = json.loads(line)
        for module in modules:
            # the program meets the error itself
            with contextlib.suppress(Exception):
                importlib.import_module(module)
        # a collection in the child would copy every page of memory that it looks at
        gc.freeze()
        child = os.fork()
        if child == 0:
            signal.alarm(seconds)
            return Path(path)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    return None


if path := next_program():
    os.chdir(path.parent)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    output = os.open(path.with_suffix(".txt"), os.O_CREAT | os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.path[0], sys.argv = str(path.parent), [str(path)]
    runpy.run_path(str(path), run_name="__main__")
