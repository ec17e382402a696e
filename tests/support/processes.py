"""What a Python process needs to import what tests share."""

import os
from pathlib import Path


def environment(**variables):
    """This process's, in which tests/support is on the path."""
    path = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), **variables}
