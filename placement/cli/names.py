"""`placement pull` and `placement names`: placements under names, and what engines load of them."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from placement.cli.commands import Commands
from placement.cli.outputs import output_folder
from placement.cli.panels import PanelGroup
from placement.cli.shared import Json, print_json
from placement.errors import OptionError
from placement.exporters.engines import ENGINES

if TYPE_CHECKING:
    from placement.client.names import Names
    from placement.client.pull import Pulled

app = Commands(
    no_args_is_help=True,
    cls=PanelGroup,
    help="Placements under names on a service: versions, and aliases that are moved.",
)
Server = Annotated[
    str,
    typer.Option(
        metavar="URL", envvar="PLACEMENT_URL", show_envvar=False, help="Address of the service; or $PLACEMENT_URL."
    ),
]
Token = Annotated[
    str | None, typer.Option(envvar="PLACEMENT_TOKEN", show_envvar=False, help="Token, if the service needs one.")
]
Where = Annotated[str, typer.Argument(metavar="NAME@ALIAS", help="As deepseek-v3/decode@production.")]
Note = Annotated[str, typer.Option(help="Why; kept in the history.")]
Expect = Annotated[int | None, typer.Option(help="Version that the alias must have now; else nothing moves.")]
PATIENCE_S = 20.0  # a pod that starts does not wait longer for a busy service


def pull_command(
    where: Annotated[str, typer.Argument(metavar="NAME@ALIAS", help="A name and an alias, or NAME@NUMBER.")],
    engine: Annotated[str, typer.Option("--for", help=f"Engine that loads it: {', '.join(ENGINES)}.")],
    output: Annotated[
        Path, output_folder("-o", "--output", help="Folder of what was pulled; the files are in DIR/current.")
    ],
    server: Server = "",
    token: Token = None,
    num_hidden_layers: Annotated[
        int | None, typer.Option(help="Decoder layers of the model, dense ones included, MTP layers not, if unknown.")
    ] = None,
    mtp_layers: Annotated[int, typer.Option(min=0, help="MTP layers that the engine will use.")] = 0,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Fail where the service does not answer, in place of using the copy in DIR.")
    ] = False,
    follow: Annotated[bool, typer.Option("--follow", help="Go on, and pull again whenever the alias moves.")] = False,
    json_output: Json = False,
) -> None:
    """Fetch what an alias names from a service, check it, and write the files that an engine loads."""
    from placement.client.names import Reference
    from placement.client.pull import pull

    names, reference = names_of(server, token), Reference.parse(where)
    if follow and reference.word.isdecimal():
        raise OptionError(f"{where} is a version, which never moves; follow an alias, or leave --follow out")

    def once() -> Pulled:
        pulled = pull(
            names,
            reference,
            engine,
            output,
            num_hidden_layers=num_hidden_layers,
            num_mtp_layers=mtp_layers,
            fresh=fresh,
        )
        _tell(reference.name, pulled, output, json_output)
        return pulled

    pulled = once()
    if follow:
        from placement.client.follow import follow as follow_moves

        follow_moves(names, reference, pulled.move, lambda: once().move, _warn)


@app.command("publish")
def publish_command(
    placement: Annotated[str, typer.Argument(help="Placement file, or the id of a placement of the service.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="As deepseek-v3/decode.")],
    server: Server = "",
    token: Token = None,
    note: Note = "",
    json_output: Json = False,
) -> None:
    """Keep a placement as the next version of a name."""
    names = names_of(server, token)
    if Path(placement).is_file():
        from placement.documents.placement import load_placement

        version = names.publish(name, document=load_placement(placement)[1].document(), note=note)
    else:
        version = names.publish(name, placement=placement, note=note)
    _say(f"{version.name} has version {version.number}", {"name": version.name, "version": version.number}, json_output)


@app.command("promote")
def promote_command(
    where: Where,
    version: Annotated[int, typer.Argument(help="Number of a version of the name.")],
    server: Server = "",
    token: Token = None,
    expect: Expect = None,
    note: Note = "",
    json_output: Json = False,
) -> None:
    """Point an alias at a version: who follows the alias gets that one."""
    from placement.client.names import Reference

    move = names_of(server, token).promote(Reference.parse(where), version, expect=expect, note=note)
    _say(f"{where} has version {move['version']}, before {_before(move)}", move, json_output)


@app.command("rollback")
def rollback_command(
    where: Where,
    server: Server = "",
    token: Token = None,
    expect: Expect = None,
    note: Note = "",
    json_output: Json = False,
) -> None:
    """Point an alias at what was promoted before its version."""
    from placement.client.names import Reference

    move = names_of(server, token).roll_back(Reference.parse(where), expect=expect, note=note)
    _say(f"{where} has version {move['version']}, before {_before(move)}", move, json_output)


@app.command("show")
def show_command(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="A name. [default: all of them, in short]")] = None,
    server: Server = "",
    token: Token = None,
    json_output: Json = False,
) -> None:
    """Show names, or the versions, aliases and history of one."""
    names = names_of(server, token)
    if name is None:
        found = names.list()
        if json_output:
            print_json(found)
            return
        for one in found:
            typer.echo(f"{one['name']}: version {one['latest']}; {_aliases(one['aliases'])}")
        if not found:
            typer.echo("there are no names; make one with placement names publish")
        return
    detail = names.detail(name)
    if json_output:
        print_json(detail)
        return
    typer.echo(f"{name}: {_aliases(detail['aliases'])}")
    for one in detail["versions"]:
        typer.echo(
            f"  version {one['version']}  {_when(one['created'])}  by {one['by']}  {one['sha256'][:12]}  {one['note']}"
        )
    for one in detail["history"]:
        to = "removed" if one["version"] is None else f"{_before(one)} -> {one['version']} ({one['kind']})"
        typer.echo(f"  {one['alias']}: {to}  {_when(one['moved'])}  by {one['by']}  {one['note']}")


def names_of(server: str, token: str | None) -> Names:
    """The names of a service. Raises OptionError."""
    from placement.client.names import Names
    from placement.support.http_service import HttpService

    if not server:
        raise OptionError("the address of the service is missing; give --server URL or set $PLACEMENT_URL")
    return Names(service=HttpService(url=server.rstrip("/"), token=token, patience_s=PATIENCE_S))


def _tell(name: str, pulled: Pulled, folder: Path, json_output: bool) -> None:
    told = pulled.told
    if pulled.kept_because is not None:
        _warn(f"{pulled.kept_because}; version {told.version}, which is in {folder}, is used")
    if json_output:
        print_json(told.document() | {"new": pulled.new, "kept_because": pulled.kept_because})
        return
    done = "pulled" if pulled.new else "kept"
    typer.echo(f"{done} version {told.version} of {name} for {told.engine}: {folder / 'current'}")


def _warn(text: str) -> None:
    print(f"Warning: {text}", file=sys.stderr, flush=True)


def _say(text: str, document: dict[str, Any], json_output: bool) -> None:
    if json_output:
        print_json(document)
    else:
        typer.echo(text)


def _aliases(held: dict[str, int]) -> str:
    return ", ".join(f"{alias} has version {version}" for alias, version in sorted(held.items())) or "no alias"


def _before(move: dict[str, Any]) -> str:
    return "none" if move["before"] is None else str(move["before"])


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
