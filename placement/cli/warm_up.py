"""`placement warm-up`."""

from __future__ import annotations

import time

from placement.cli.shared import Json, Workers, print_json, progress_listener, stdout_console


def warm_up_command(workers: Workers = None, json_output: Json = False) -> None:
    """Compile now what the first solve on a machine would wait for: for images and CI."""
    from placement.pipeline.warm_up import warm_up

    start = time.monotonic()
    with progress_listener(quiet=json_output) as listener:
        pieces = warm_up(workers=workers, listener=listener)
    seconds = time.monotonic() - start
    if json_output:
        print_json({"pieces": pieces, "seconds": round(seconds, 1)})
        return
    done = f"compiled {pieces} pieces in {seconds:.1f} s" if pieces else "all is compiled"
    stdout_console().print(done, highlight=False, markup=False)
