"""`placement serve` and `placement token`. The service's packages are loaded only here, when asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from placement.cli.extras import check_extra
from placement.errors import InputError, OptionError

Data = Annotated[Path, typer.Option(help="Folder of the database, traces and results; made if absent.")]
DatabaseUrl = Annotated[
    str,
    typer.Option(
        envvar="PLACEMENT_DATABASE_URL",
        show_envvar=False,
        help="postgresql://..., to share one queue among hosts. [default: SQLite files in the data folder]",
    ),
]
DATA = Path("placement-data")
MIB = 1 << 20

token_app = typer.Typer(no_args_is_help=True, help="Tokens of those who may use the service.")


def serve_command(
    data: Data = DATA,
    database_url: DatabaseUrl = "",
    host: Annotated[
        str, typer.Option(help="Address to listen on; one that others can reach needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    max_jobs: Annotated[int | None, typer.Option(help="Solves side by side. [default: one for two cores]")] = None,
    executor: Annotated[
        str | None,
        typer.Option(help="Name of this host among those that share a database. [default: the machine's name]"),
    ] = None,
    traces_folder: Annotated[
        list[Path] | None, typer.Option(help="Folder below which traces may be registered by path; again for more.")
    ] = None,
    traces_store: Annotated[
        list[str] | None, typer.Option(help="s3://BUCKET/FOLDER below which traces may be fetched; again for more.")
    ] = None,
    blobs: Annotated[
        str, typer.Option(help="s3://BUCKET/FOLDER for traces and results. [default: files in the data folder]")
    ] = "",
    cache_mib: Annotated[int, typer.Option(min=1, help="MiB of it to keep in the data folder.")] = 16384,
    max_upload_mib: Annotated[int, typer.Option(min=1, help="Largest upload, MiB.")] = 4096,
    max_body_mib: Annotated[int, typer.Option(min=1, help="Largest body of other requests, MiB.")] = 4,
    rate_limit: Annotated[float, typer.Option(help="Requests a second of each token.")] = 200.0,
    job_time_limit: Annotated[float, typer.Option(help="Seconds that a job may run.")] = 3600.0,
    max_queued: Annotated[int, typer.Option(min=1, help="Jobs of each token that may wait.")] = 100,
    keep_days: Annotated[float | None, typer.Option(help="Days to keep what is not used. [default: for ever]")] = None,
    keep_mib: Annotated[int | None, typer.Option(help="MiB to keep at most of it. [default: any size]")] = None,
    access_log: Annotated[bool, typer.Option("--access-log", help="Log requests that only read, too.")] = False,
) -> None:
    """Start the REST service: placements over HTTP, with durable jobs."""
    check_service()
    from placement_api.jobs.forks import start_forks
    from placement_api.settings import Limits, Settings

    given = {"max_jobs": max_jobs, "executor": executor}
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    limits = Limits(
        upload_bytes=max_upload_mib * MIB,
        body_bytes=max_body_mib * MIB,
        requests_per_s=rate_limit,
        job_time_limit_s=job_time_limit,
        max_queued=max_queued,
    )
    settings = Settings(
        data=data.absolute(),
        database_url=database_url,
        host=host,
        port=port,
        trace_folders=tuple(folder.absolute() for folder in traces_folder or ()),
        trace_stores=tuple(traces_store or ()),
        blobs=blobs,
        cache_bytes=cache_mib * MIB,
        keep_days=keep_days,
        keep_bytes=None if keep_mib is None else keep_mib * MIB,
        access_log=access_log,
        limits=limits,
        **chosen,
    )
    start_forks()  # another process loads the library while this one loads the service
    from placement_api.serve import serve

    serve(settings)


@token_app.command("create")
def create_command(
    name: Annotated[str, typer.Argument(help="Whose it is.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(help="metrics, read, solve (also reads) or admin (does all). [default: solve]"),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="Take the token in this file, as of a secret store, and print nothing.")
    ] = None,
    days: Annotated[float | None, typer.Option(help="Days that it is valid. [default: for ever]")] = None,
    data: Data = DATA,
    database_url: DatabaseUrl = "",
) -> None:
    """Make a token and print it, this once: only its hash is kept."""
    scopes = scope or ["solve"]
    with _tokens(data, database_url) as tokens:
        if token_file is None:
            typer.echo(tokens.create(name, scopes, days))
            return
        try:
            tokens.admit(name, scopes, token_file.read_text().strip(), days)
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read {token_file}: {error}; give a file that holds a token") from None


@token_app.command("list")
def list_command(data: Data = DATA, database_url: DatabaseUrl = "") -> None:
    """Show the tokens there are, without the tokens themselves: when each was made, used last and ends, in UTC."""
    with _tokens(data, database_url) as tokens:
        for row in tokens.rows():
            times = "  ".join(_day(when) for when in (row.created, row.used, row.expires))
            typer.echo(f"{row.id}  {','.join(row.scopes):8}  {times}  {row.name}")


@token_app.command("replace")
def replace_command(
    name: Annotated[str, typer.Argument(help="Name or id, as the list shows them.")],
    overlap: Annotated[float, typer.Option(help="Seconds that the old token is valid beside the new one.")] = 0.0,
    data: Data = DATA,
    database_url: DatabaseUrl = "",
) -> None:
    """Make a new token in place of an old one and print it: what was made with the old one is its own."""
    with _tokens(data, database_url) as tokens:
        typer.echo(tokens.replace(name, overlap))


@token_app.command("delete")
def delete_command(
    name: Annotated[str, typer.Argument(help="Name or id, as the list shows them.")],
    force: Annotated[
        bool, typer.Option("--force", help="Delete the last one too: a service that others can reach answers nobody.")
    ] = False,
    data: Data = DATA,
    database_url: DatabaseUrl = "",
) -> None:
    """Delete a token; within seconds it opens nothing."""
    with _tokens(data, database_url) as tokens:
        deleted = tokens.delete(name, force=force)
    if not deleted:
        raise OptionError(f"there is no token {name!r}; see placement token list")


@contextmanager
def _tokens(data: Path, database_url: str) -> Iterator[Any]:
    """The tokens of a store, which is closed again."""
    check_service()
    from placement_api.service import open_store
    from placement_api.settings import Settings
    from placement_api.token_book import TokenBook

    settings = Settings(data=data.absolute(), database_url=database_url)
    database = open_store(settings)
    try:
        yield TokenBook(database=database)
    finally:
        database.close()


def _day(when: float | None) -> str:
    return "never" + " " * 11 if when is None else datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%d %H:%M")


def check_service() -> None:
    """Raise OptionError where the service's packages are not installed."""
    check_extra("the service", "service", "fastapi", "uvicorn", "sqlalchemy", "alembic", "dbos")
