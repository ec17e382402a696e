"""The command line of fastgrad: `python -m fastgrad info | warmup | health`."""

import argparse
import sys

import fastgrad
from fastgrad.cli import health, info, warmup
from fastgrad.core.backend import BackendError


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m fastgrad", description=fastgrad.__doc__)
    parser.add_argument("--version", action="version", version=f"fastgrad {fastgrad.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="info | warmup | health")

    text = 'What is installed, which backends run, and how the "cpu" backend is set up.'
    commands.add_parser("info", help=text, description=text).set_defaults(run=lambda options: info.run())
    text = 'Compile the kernels of the "cpu" backend into the cache, which takes a minute or two.'
    subparser = commands.add_parser("warmup", help=text, description=text)
    warmup.arguments(subparser)
    subparser.set_defaults(run=warmup.run)
    text = "Train a deep net on digits for some steps, and tell and draw how its gradients fare."
    subparser = commands.add_parser("health", help=text, description=text)
    health.arguments(subparser)
    subparser.set_defaults(run=health.run)

    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (BackendError, ImportError, OSError, ValueError) as error:
        print(f"fastgrad: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
