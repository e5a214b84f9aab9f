"""Command line: ``python -m deqflow COMMAND``; the commands are in :mod:`deqflow.commands`."""

import sys
from collections.abc import Callable

import tyro

from deqflow.commands import Command, Train


def main(arguments: list[str] | None = None) -> int:
    """Run a command; bad input ends with a sentence and exit status 1 instead of a traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        command: Callable[[], int]
        if arguments[:1] == ["train"]:
            command = Train.parse(arguments[1:])
        else:
            command = tyro.cli(Command, prog="deqflow", description="Deep equilibrium optical flow.", args=arguments)
        return command()
    except (ValueError, TypeError, OSError, FloatingPointError, ImportError) as error:
        print(f"deqflow: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
