"""Command line: ``python -m deqflow COMMAND``; the commands are in :mod:`deqflow.commands`."""

import difflib
import sys

from deqflow import __version__
from deqflow.commands import COMMANDS, overview


def main(arguments: list[str] | None = None) -> int:
    """Run a command. Bad input ends with an error message and exit status 1 instead of a traceback."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or [""]
    if name in ("--help", "-h", "help"):
        print(overview())
        return 0
    if name in ("--version", "-V"):
        print(f"deqflow {__version__}")
        return 0
    if name not in COMMANDS:
        print(_unknown(name), file=sys.stderr)
        return 2
    try:
        return COMMANDS[name].parse(name, rest)()
    except (ValueError, TypeError, OSError, ArithmeticError, ImportError) as error:
        print(f"deqflow: {error}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        print(f"deqflow: Not enough memory: use smaller images, scales or batches. ({error})", file=sys.stderr)
        return 1


def _unknown(name: str) -> str:
    if not name:
        return overview()
    near = difflib.get_close_matches(name, COMMANDS, 1)
    meant = f" Did you mean {near[0]}?" if near else ""
    return f"deqflow: No command {name!r}: expected one of {', '.join(COMMANDS)}.{meant}"


if __name__ == "__main__":
    sys.exit(main())
