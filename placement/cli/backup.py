"""`placement backup` and `placement restore`: the data folder of a service as one file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from placement.cli.outputs import output_file
from placement.cli.serve import DATA, Data, check_service
from placement.cli.shared import stdout_console

if TYPE_CHECKING:
    from placement_api.store.backup import Kept


def backup_command(
    output: Annotated[Path, output_file("-o", "--output", help="Tar to write.")],
    data: Data = DATA,
) -> None:
    """Write the rows, traces and results of a service to one file; the service may run meanwhile."""
    check_service()
    from placement_api.store.backup import back_up

    _say("wrote", output, back_up(data.absolute(), output))


def restore_command(
    backup: Annotated[Path, typer.Argument(help="What `placement backup` wrote.")],
    data: Data = DATA,
) -> None:
    """Make a new data folder of a backup; every file is compared with its digest."""
    check_service()
    from placement_api.store.backup import restore

    _say("restored", data, restore(backup, data.absolute()))


def _say(done: str, where: Path, kept: Kept) -> None:
    text = f"{done} {where}: {kept.num_results} files of results, {kept.num_traces} traces"
    if kept.missing:
        text += f"; {len(kept.missing)} are named and not in the folder, such as {kept.missing[0]}"
    stdout_console().print(text, highlight=False, markup=False, soft_wrap=True)
