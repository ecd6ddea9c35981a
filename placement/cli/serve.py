"""`placement serve` and `placement token`. The service's packages are loaded only here, when asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

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
    max_body_mib: Annotated[int, typer.Option(min=1, help="Largest body of other requests, MiB.")] = 32,
    rate_limit: Annotated[float, typer.Option(help="Requests a second of each token.")] = 200.0,
    job_time_limit: Annotated[float, typer.Option(help="Seconds that a job may run.")] = 3600.0,
    max_queued: Annotated[int, typer.Option(min=1, help="Jobs of each token that may wait.")] = 100,
    keep_days: Annotated[float | None, typer.Option(help="Days to keep what is not used. [default: for ever]")] = None,
    keep_mib: Annotated[int | None, typer.Option(help="MiB to keep at most of it. [default: any size]")] = None,
) -> None:
    """Start the REST service: placements over HTTP, with durable jobs."""
    _service()
    from placement_api.serve import serve
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
    serve(
        Settings(
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
            limits=limits,
            **chosen,
        )
    )


@token_app.command("create")
def create_command(
    name: Annotated[str, typer.Argument(help="Whose it is.")],
    scope: Annotated[
        list[str] | None, typer.Option(help="read, solve (also reads) or admin (does all). [default: solve]")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="Take the token in this file, as of a secret store, and print nothing.")
    ] = None,
    data: Data = DATA,
    database_url: DatabaseUrl = "",
) -> None:
    """Make a token and print it, this once: only its hash is kept."""
    scopes = scope or ["solve"]
    with _tokens(data, database_url) as tokens:
        if token_file is None:
            typer.echo(tokens.create(name, scopes))
            return
        try:
            tokens.admit(name, scopes, token_file.read_text().strip())
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read {token_file}: {error}; give a file that holds a token") from None


@token_app.command("list")
def list_command(data: Data = DATA, database_url: DatabaseUrl = "") -> None:
    """Show the tokens there are, without the tokens themselves."""
    with _tokens(data, database_url) as tokens:
        for row in tokens.list():
            typer.echo(f"{row.id}  {','.join(row.scopes):8}  {row.name}")


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
    _service()
    from placement_api.service import open_store
    from placement_api.settings import Settings
    from placement_api.tokens import Tokens

    settings = Settings(data=data.absolute(), database_url=database_url)
    database = open_store(settings)
    try:
        yield Tokens(database=database, requests_per_s=settings.limits.requests_per_s)
    finally:
        database.close()


def _service() -> None:
    absent = [name for name in ("fastapi", "uvicorn", "sqlalchemy", "alembic", "dbos") if find_spec(name) is None]
    if absent:
        raise OptionError(
            f"the service needs {', '.join(absent)}, which is not installed; pip install 'expert-placement[service]'"
        )
