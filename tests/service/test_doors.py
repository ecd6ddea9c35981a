"""A door that is shut stays shut: whoever has no token gets nothing of a service that others can reach."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from placement_api.service import open_store
from placement_api.settings import Settings
from placement_api.token_book import TokenBook
from tests_service import Server, problem_of, tar_of, wait_until

from placement.errors import OptionError

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks" / "runtime"))
shaped_network: Any = import_module("shaped_network")

COMMAND = [sys.executable, "-c", "from placement.cli import main; main()"]
PORT = 8000
JSON = ("-H", "Content-Type: application/json")


@pytest.fixture
def machines() -> Iterator[tuple[str, str]]:
    """Two namespaces of the network: the service's machine, 10.77.0.1, and another."""
    reason = shaped_network.why_not() or (None if shutil.which("curl") else "curl is missing")
    if reason:
        pytest.skip(reason)
    with shaped_network.shaped_network(2, 0) as network:
        yield network.namespaces


def asked(machine: str, path: str, *arguments: str, to: str = "10.77.0.1") -> tuple[int, str]:
    """The status of an answer to a machine, 0 for none, and where it leads."""
    form = ("-s", "-o", "/dev/null", "-m", "20", "-w", "%{http_code} %{redirect_url}")
    command = ["ip", "netns", "exec", machine, "curl", *form, *arguments, f"http://{to}:{PORT}{path}"]
    status, _, where = subprocess.run(command, capture_output=True, text=True, check=False).stdout.partition(" ")
    return int(status), where


def test_the_last_token_of_a_reachable_service_shuts_the_door(
    machines: tuple[str, str], tmp_path: Path, trace: Path, run_cli: Any
) -> None:
    """Deleted with --force, as it must be, it leaves a service that answers 401 to all, uploads and its own machine
    included, and says so in its log; a new token opens it again, and without one it does not start again."""
    here, other = machines
    data = ("--data", tmp_path / "data")
    bearer = ("-H", f"Authorization: Bearer {run_cli('token', 'create', 'ci', *data).stdout.strip()}")
    packed = tmp_path / "t.tgz"
    packed.write_bytes(tar_of(trace))
    upload = ("/v1/traces", "-F", f"file=@{packed}")
    server = Server(
        data=tmp_path / "data", prefix=("ip", "netns", "exec", here), port=PORT, arguments=("--host", "0.0.0.0")
    ).launch()
    try:
        wait_until(lambda: asked(other, "/healthz")[0] == 200)
        assert asked(other, "/v1/jobs")[0] == 401
        assert asked(other, *upload)[0] == 401
        assert asked(other, *upload, *bearer)[0] == 201
        refused = run_cli("token", "delete", "ci", *data)
        assert refused.code == 2 and "--force" in refused.stderr
        assert asked(other, "/v1/jobs", *bearer)[0] == 200

        assert run_cli("token", "delete", "ci", "--force", *data).code == 0
        wait_until(lambda: asked(other, "/v1/jobs", *bearer)[0] == 401, seconds=10)
        for _ in range(2):
            for path in ("/v1/jobs", "/v1/traces", "/v1/placements", "/metrics", "/"):
                assert asked(other, path)[0] == 401, path
            assert asked(other, *upload)[0] == 401
            assert asked(other, "/example", "-X", "POST")[0] == 401
            assert asked(other, "/v1/placements", *JSON, "-d", '{"cluster": {"num_nodes": 2}}')[0] == 401
            assert asked(here, "/v1/jobs", to="127.0.0.1")[0] == 401
            time.sleep(1.1)  # longer than an answer about a token is remembered
        status, where = asked(other, "/", "-H", "Accept: text/html")
        assert status == 303 and where.endswith("/login")
        assert asked(other, "/login")[0] == 200
        assert asked(other, "/login", "-d", "token=")[0] == 401
        assert server.log.read_text().count("every request is refused until one is made") == 1

        new = run_cli("token", "create", "new", *data).stdout.strip()
        wait_until(lambda: asked(other, "/v1/jobs", "-H", f"Authorization: Bearer {new}")[0] == 200, seconds=10)
        assert asked(other, "/v1/jobs")[0] == 401
        server.kill()
        assert run_cli("token", "delete", "new", "--force", *data).code == 0
        assert run_cli("serve", *data, "--host", "0.0.0.0").code == 2
    finally:
        server.kill()


def test_a_name_that_leads_elsewhere_too_is_no_loopback(machines: tuple[str, str], tmp_path: Path) -> None:
    """`localhost` of a machine whose list of hosts gives it a second address: the service does not start."""
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n10.77.0.1 localhost\n")
    mount = ("unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(hosts))
    serve = [*COMMAND, "serve", "--data", str(tmp_path / "data"), "--host", "localhost"]
    command = ["ip", "netns", "exec", machines[0], *mount, *serve]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2, ended.stderr
    assert "can be reached from other machines" in ended.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "0", "::ffff:127.0.0.1", "::ffff:0.0.0.0", "10.77.0.1", "a.b"])
def test_what_is_not_known_as_loopback_needs_a_token(host: str, tmp_path: Path, run_cli: Any) -> None:
    """Whatever others may reach, or may be a name for it."""
    refused = run_cli("serve", "--data", tmp_path / "data", "--host", host)
    assert refused.code == 2 and "token create" in refused.stderr


def test_anyone_is_decided_when_the_service_starts(
    make_server: Callable[..., Server], tmp_path: Path, run_cli: Any
) -> None:
    """On loopback: a service that began with a token never opens, one that began without does, as its log says."""
    began_with, began_without = tmp_path / "with", tmp_path / "without"
    assert run_cli("token", "create", "ci", "--data", began_with).code == 0
    shut, free = make_server(began_with), make_server(began_without, "--host", "localhost")
    with shut.client() as client:
        assert run_cli("token", "delete", "ci", "--force", "--data", began_with).code == 0
        time.sleep(1.1)
        problem_of(client.get("/v1/jobs"), 401)
        assert "every request is refused" in shut.log.read_text()
    with free.client() as client:
        assert client.get("/v1/jobs").status_code == 200
        assert run_cli("token", "create", "ci", "--data", began_without).code == 0
        wait_until(lambda: client.get("/v1/jobs").status_code == 401, seconds=5)
        assert run_cli("token", "delete", "ci", "--force", "--data", began_without).code == 0
        wait_until(lambda: client.get("/v1/jobs").status_code == 200, seconds=5)
        assert len(re.findall("anyone on this machine may do everything", free.log.read_text())) == 2


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_two_who_delete_at_once_leave_a_token(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Each of two tokens is not the last until the other is gone."""
    url = "" if kind == "sqlite" else str(request.getfixturevalue("database_url"))
    database = open_store(Settings(data=tmp_path, database_url=url))
    tokens = TokenBook(database=database)
    try:
        for _ in range(5):
            for name in ("a", "b"):
                if name not in [row.name for row in tokens.rows()]:
                    tokens.create(name, ["read"])
            refused: list[str] = []
            together = threading.Barrier(2)
            threads = [threading.Thread(target=_delete, args=(tokens, name, together, refused)) for name in ("a", "b")]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert [row.name for row in tokens.rows()] == refused
            assert len(refused) == 1
    finally:
        database.close()


def _delete(tokens: TokenBook, name: str, together: threading.Barrier, refused: list[str]) -> None:
    together.wait()
    try:
        tokens.delete(name)
    except OptionError:
        refused.append(name)
