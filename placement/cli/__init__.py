"""The command line: parses, calls the library, prints. One file per command."""

from __future__ import annotations

import os
import sys

from placement.cli.app import app
from placement.errors import PlacementError, printable

__all__ = ["app", "main"]


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `placement`. Known errors become one line on stderr and their exit code."""
    try:
        app(args=arguments, prog_name="placement")
    except PlacementError as error:
        print(f"placement: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except MemoryError:
        print("placement: error: there is not enough memory; give fewer layers, experts or tokens", file=sys.stderr)
        sys.exit(1)
    except OSError as error:  # what no reader or writer foresaw: a file that vanished, a disk that failed
        print(f"placement: error: {printable(str(error))}; mend the file or the disk and try again", file=sys.stderr)
        sys.exit(2)
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):
            # the reader of our output went away (`| head`): not an error of ours, though typer takes it for one
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        raise
