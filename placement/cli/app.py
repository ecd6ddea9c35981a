"""The typer application and its commands."""

from __future__ import annotations

from typing import Annotated

import typer

from placement import __version__
from placement.cli import (
    advise,
    apply,
    backup,
    by_class,
    calibrate,
    cluster,
    diff,
    envoy,
    evaluate,
    export,
    front,
    group,
    names,
    robust,
    route,
    serve,
    solve,
    submit,
    traces,
    warm_up,
    watch,
)
from placement.cli.commands import Commands
from placement.cli.panels import PanelGroup

app = Commands(
    name="placement",
    cls=PanelGroup,
    help="Place the experts of Mixture-of-Experts models on nodes and GPUs so that tokens stay local.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("solve")(solve.solve_command)
app.command("advise")(advise.advise_command)
app.command("group")(group.group_command)
app.command("front")(front.front_command)
app.command("robust")(robust.robust_command)
app.command("by-class")(by_class.by_class_command)
app.command("submit")(submit.submit_command)
app.command("cluster")(cluster.cluster_command)
app.command("calibrate")(calibrate.calibrate_command)
app.command("evaluate")(evaluate.evaluate_command)
app.command("diff")(diff.diff_command)
app.command("apply")(apply.apply_command)
app.command("watch")(watch.watch_command)
app.command("pull")(names.pull_command)
app.command("export")(export.export_command)
app.command("import")(export.import_command)
app.command("warm-up")(warm_up.warm_up_command)
app.command("route")(route.route_command)
app.command("envoy")(envoy.envoy_command)
app.command("serve")(serve.serve_command)
app.command("backup")(backup.backup_command)
app.command("restore")(backup.restore_command)
app.add_typer(serve.token_app, name="token")
app.add_typer(names.app, name="names")
app.add_typer(traces.app, name="traces")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass
