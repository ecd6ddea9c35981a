"""Who may ask what, and how much."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests_service import Server, problem_of, statuses, tar_of

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def guarded(
    tmp_path_factory: pytest.TempPathFactory, make_server: Callable[..., Server], run_cli: Any
) -> tuple[Server, dict[str, str]]:
    """A server with a token of each scope, small limits, and few requests a second."""
    data = tmp_path_factory.mktemp("guarded") / "data"
    tokens = {}
    for scope in ("read", "solve", "admin"):
        made = run_cli("token", "create", f"of {scope}", "--scope", scope, "--data", data)
        assert made.code == 0, made.stderr
        tokens[scope] = made.stdout.strip()
    limits = ("--max-upload-mib", "1", "--max-body-mib", "1", "--rate-limit", "30")
    return make_server(data, *limits), tokens


@pytest.fixture
def reader(guarded: tuple[Server, dict[str, str]]) -> Iterator[httpx.Client]:
    with guarded[0].client(guarded[1]["read"]) as client:
        yield client


def test_without_a_token_nothing_is_told(guarded: tuple[Server, dict[str, str]]) -> None:
    """401 on every path of /v1 and on /metrics, whatever stands in the header; only health is open."""
    for token in (None, "plc_wrong", "x" * 5000):
        with guarded[0].client(token) as client:
            for path in ("/v1/traces", "/v1/placements", "/v1/jobs/x/events", "/metrics"):
                answer = client.get(path)
                problem_of(answer, 401)
                assert answer.headers["www-authenticate"] == "Bearer"
            assert client.get("/healthz").status_code == 200


def test_a_stranger_cannot_make_the_service_read_an_upload(guarded: tuple[Server, dict[str, str]]) -> None:
    """The token is looked at before the body."""
    with guarded[0].client() as client:
        problem_of(client.post("/v1/traces", files={"file": ("a.tar", bytes(900_000))}), 401)


def test_each_scope_allows_what_it_says(guarded: tuple[Server, dict[str, str]], trace: Path) -> None:
    """A reader reads, and neither uploads, solves, cancels nor deletes; a solver does."""
    server, tokens = guarded
    packed = {"file": ("t.tgz", tar_of(trace))}
    with server.client(tokens["solve"]) as solver:
        name = solver.post("/v1/traces", files=packed).json()["id"]
    with server.client(tokens["read"]) as reader:
        assert reader.get(f"/v1/traces/{name}").status_code == 200
        for answer in (
            reader.post("/v1/traces", files=packed),
            reader.post("/v1/placements", json={"traces": [name], "cluster": {"num_nodes": 2}}),
            reader.delete(f"/v1/traces/{name}"),
            reader.post("/v1/jobs/x/cancel"),
        ):
            assert "solve" in problem_of(answer, 403)["mend"]


def test_bodies_beyond_the_limit_are_refused(guarded: tuple[Server, dict[str, str]]) -> None:
    """413, whether the length is told before or not."""
    server, tokens = guarded

    def chunks() -> Iterator[bytes]:
        for _ in range(20):
            yield bytes(100_000)

    with server.client(tokens["solve"]) as client:
        problem_of(client.post("/v1/placements", content=bytes((1 << 20) + 1), headers=JSON), 413)
        problem_of(client.post("/v1/placements", content=chunks(), headers=JSON), 413)
        problem_of(client.post("/v1/traces", files={"file": ("a.tar", bytes(2 << 20))}), 413)


def test_a_token_that_asks_too_fast_is_told_to_wait(guarded: tuple[Server, dict[str, str]]) -> None:
    """429 with Retry-After for that token, while another goes on."""
    server, tokens = guarded
    with server.client(tokens["admin"]) as fast, server.client(tokens["read"]) as other:
        line = f"GET /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {tokens['admin']}\r\n\r\n"
        assert set(statuses(server.port, line.encode() * 600, 600)) == {b"200", b"429"}
        for _ in range(20):
            if (refused := fast.get("/v1/jobs")).status_code == 429:
                assert problem_of(refused, 429)
                assert refused.headers["retry-after"] == "1"
                break
            statuses(server.port, line.encode() * 600, 600)
        assert other.get("/v1/jobs").status_code == 200


def test_tokens_are_kept_as_hashes_and_never_logged(
    guarded: tuple[Server, dict[str, str]], reader: httpx.Client
) -> None:
    """Neither the files of the database nor the log hold a token, though requests failed and succeeded with them."""
    server, tokens = guarded
    reader.get("/v1/nothing", params={"token": "x"})
    kept = b"".join(path.read_bytes() for path in server.data.rglob("*") if path.is_file()) + server.log.read_bytes()
    assert not [scope for scope, token in tokens.items() if token.encode() in kept]


def test_answers_have_security_headers(reader: httpx.Client) -> None:
    """On successes and errors alike."""
    for answer in (reader.get("/v1/jobs"), reader.get("/v1/jobs/none"), reader.get("/healthz")):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-frame-options"] == "DENY"
        assert "server" not in answer.headers


def test_an_open_address_needs_a_token(tmp_path: Path, run_cli: Any) -> None:
    """Without one the service does not start, and says how to make one."""
    refused = run_cli("serve", "--data", tmp_path / "data", "--host", "0.0.0.0")
    assert refused.code == 2
    assert "placement token create" in refused.stderr


@pytest.mark.parametrize("name", ["", " ", "a\nb", "x" * 201])
def test_a_token_has_a_name(name: str, tmp_path: Path, run_cli: Any) -> None:
    """One that a list can show, and that a log line cannot be forged with."""
    made = run_cli("token", "create", name, "--data", tmp_path / "data")
    assert made.code == 2 and "1 to 200 printable letters" in made.stderr and not made.stdout


def test_tokens_are_listed_and_deleted(tmp_path: Path, run_cli: Any) -> None:
    """The list shows names and scopes, no token; a deleted one is gone; a wrong scope is refused."""
    data = ("--data", tmp_path / "data")
    assert run_cli("token", "create", "other", *data).code == 0
    token = run_cli("token", "create", "ci", *data).stdout.strip()
    listed = run_cli("token", "list", *data).stdout
    assert re.search(r"solve\s.*\sci\n", listed)
    assert token not in listed
    assert run_cli("token", "delete", "ci", *data).code == 0
    assert run_cli("token", "delete", "ci", *data).code == 2
    assert run_cli("token", "create", "x", "--scope", "all", *data).code == 2


def test_other_sites_and_names_do_not_reach_a_service_without_tokens(client: httpx.Client, server: Server) -> None:
    """What a browser of this machine sends for another site is refused: its Host or Origin says so."""
    problem_of(client.get("/v1/jobs", headers={"Host": "evil.example"}), 421)
    problem_of(client.post("/v1/jobs/x/cancel", headers={"Origin": "https://evil.example"}), 403)
    for odd in ("[::1", "]", "[x]"):  # which are no addresses at all
        problem_of(client.get("/v1/jobs", headers={"Host": odd}), 421)
        problem_of(client.post("/v1/jobs/x/cancel", headers={"Origin": f"http://{odd}"}), 403)
    own = {"Origin": server.url}
    problem_of(client.post("/v1/jobs/x/cancel", headers=own), 404)
