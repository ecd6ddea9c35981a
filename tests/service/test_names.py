"""Placements under names: versions that never change, aliases that move, and a guard."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from named import CLUSTER, promoted, published, solved
from placement_api.service import make_service
from placement_api.settings import Settings
from placement_api.store.backup import back_up, restore
from tests_service import Server, problem_of, tar_of

from placement import Model, Placement
from placement.documents.placement import PlacementFile


def test_versions_stay_and_aliases_move(client: httpx.Client, three: list[str]) -> None:
    """A version is the file that was published; history says who moved what and why; rollbacks go back by steps."""
    published(client, "m/decode", three)
    again = client.post("/v1/names/m/decode", json={"placement": three[1]})
    assert (again.status_code, again.json()["version"]) == (200, 2)  # the same files are one version
    for version in (1, 2, 3):
        promoted(client, "m/decode@production", version, note=f"try {version}")
    assert client.get("/v1/names/m/decode@production").json()["version"] == 3
    versions = []
    for _ in range(2):
        answer = client.post("/v1/names/m/decode@production/rollback", json={"note": "too hot"})
        versions.append((answer.json()["before"], answer.json()["version"]))
    assert versions == [(3, 2), (2, 1)]  # a rollback of a rollback does not come back to the bad version
    problem_of(client.post("/v1/names/m/decode@production/rollback", json={}), 409)
    file = client.get("/v1/names/m/decode@production/placement")
    assert file.content == client.get(f"/v1/placements/{three[0]}").content
    detail = client.get("/v1/names/m/decode").json()
    assert [one["version"] for one in detail["versions"]] == [3, 2, 1]
    assert detail["aliases"] == {"production": 1}
    told = [(one["kind"], one["before"], one["version"], one["note"]) for one in detail["history"]]
    assert told == [
        ("rolled back", 2, 1, "too hot"),
        ("rolled back", 3, 2, "too hot"),
        ("promoted", 2, 3, "try 3"),
        ("promoted", 1, 2, "try 2"),
        ("promoted", None, 1, "try 1"),
    ]
    assert {"name": "m/decode", "latest": 3, "aliases": {"production": 1}} in client.get("/v1/names").json()


def test_a_move_that_comes_too_late_moves_nothing(client: httpx.Client, three: list[str]) -> None:
    """Who expects another version than the alias has, because somebody else was faster, is told so."""
    published(client, "late", three)
    promoted(client, "late@production", 1)
    promoted(client, "late@production", 2, expect=1)
    told = problem_of(client.put("/v1/names/late@production", json={"version": 3, "expect": 1}), 409)
    assert told["detail"] == "late@production has version 2, not 1"
    problem_of(client.post("/v1/names/late@production/rollback", json={"expect": 1}), 409)
    assert client.get("/v1/names/late@production").json()["version"] == 2


def test_movers_at_once_leave_one_history(client: httpx.Client, three: list[str]) -> None:
    """Every move that was answered is in the history, each from where the one before had left the alias."""
    published(client, "race", three)
    answers: list[httpx.Response] = []
    threads = [
        threading.Thread(
            target=lambda v=version: answers.append(client.put("/v1/names/race@production", json={"version": v}))
        )
        for version in (1, 2, 3) * 4
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer.status_code for answer in answers} <= {200, 409}
    history = client.get("/v1/names/race").json()["history"][::-1]
    for before, after in zip([{"version": None}, *history], history, strict=False):
        assert after["before"] == before["version"]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"cluster": {"num_nodes": 4, "gpus_per_node": 1}}, "nodes 2, this placement has 4"),
        ({"cluster": CLUSTER | {"redundant_experts": 4}}, "slots_per_gpu 2, this placement has 3"),
        (
            {"options": {"work_limit": 300, "bound": "none", "engine": "vllm"}},
            "engine sglang, this placement has vllm",
        ),
    ],
)
def test_the_guard(client: httpx.Client, trace_id: str, three: list[str], changes: dict[str, Any], what: str) -> None:
    """A map of another shape of cluster or engine cannot come under the name, and so no alias of it can bring one."""
    name = f"guard/{next(iter(changes))}"
    published(client, f"{name}/{what[:5].strip()}", three[:1])
    other = solved(client, trace_id, 1, **changes)
    told = problem_of(client.post(f"/v1/names/{name}/{what[:5].strip()}", json={"placement": other}), 409)
    assert told["detail"].endswith(f"have {what}")


def test_the_guard_knows_models(client: httpx.Client, tmp_path: Path) -> None:
    """So it is for files that were solved elsewhere and of another model; sound files are versions like others."""

    def document(name: str) -> dict[str, Any]:
        model = Model(name=name, layer_ids=(0,), num_experts=4, top_k=1)
        row = np.arange(4)[None]
        return PlacementFile.of(
            Placement(model=model, num_nodes=2, gpus_per_node=1, slots_per_gpu=2, phy2log_LP=row)
        ).document()

    assert client.post("/v1/names/sent", json={"document": document("one")}).status_code == 201
    told = problem_of(client.post("/v1/names/sent", json={"document": document("two")}), 409)
    assert "model one, this placement has two" in told["detail"]
    broken = document("one")
    broken["physical_to_logical"] = [[0, 1, 2, 2]]
    problem_of(client.post("/v1/names/sent", json={"document": broken}), 422)
    problem_of(client.post("/v1/names/sent", json={}), 422)
    assert client.get("/v1/names/sent").json()["latest"] == 1


@pytest.mark.parametrize("name", ["", "a//b", "-x", "a b", "a@b@c", "ü", "x" * 201])
def test_names_that_are_none(client: httpx.Client, three: list[str], name: str) -> None:
    """A name is words between slashes: it stands in addresses and in folders."""
    assert client.post(f"/v1/names/{name}", json={"placement": three[0]}).status_code in (404, 405, 422)


def test_what_an_alias_has_cannot_be_deleted(client: httpx.Client, three: list[str]) -> None:
    """Nor what it can be rolled back to, nor the latest, whose number would be given again; other versions can."""
    published(client, "del", three)
    promoted(client, "del@production", 1)
    promoted(client, "del@production", 2)
    for version in (1, 2, 3):
        problem_of(client.delete(f"/v1/names/del@{version}"), 409)
    assert client.delete("/v1/names/del@production").status_code == 204
    assert client.delete("/v1/names/del@1").status_code == 204
    problem_of(client.get("/v1/names/del@1"), 404)
    problem_of(client.delete("/v1/names/del@3"), 409)
    problem_of(client.get("/v1/names/del@production"), 404)
    assert client.get("/v1/names/del").json()["history"][0]["kind"] == "removed"


def test_an_answer_that_waits_for_the_next_move(client: httpx.Client, three: list[str]) -> None:
    """It comes when the alias moves, not before, and at the end of the wait if nothing moves."""
    published(client, "wait", three)
    move = promoted(client, "wait@production", 1)["move"]
    begun = time.monotonic()
    still = client.get("/v1/names/wait@production", params={"after": move, "wait": 1.5})
    assert still.json()["move"] == move
    assert time.monotonic() - begun >= 1.4
    timer = threading.Timer(1.0, promoted, (client, "wait@production", 2))
    timer.start()
    moved = client.get("/v1/names/wait@production", params={"after": move, "wait": 30})
    timer.join()
    assert moved.json()["version"] == 2
    assert time.monotonic() - begun < 15


def test_who_may(make_server: Callable[..., Server], tmp_path: Path, run_cli: Any) -> None:
    """Solvers publish, promoters move, readers look; the history names the token."""
    data = tmp_path / "data"
    tokens = {
        scope: run_cli("token", "create", f"of {scope}", "--scope", scope, "--data", data).stdout.strip()
        for scope in ("read", "solve", "promote")
    }
    server = make_server(data)
    model = Model(name="m", layer_ids=(0,), num_experts=4, top_k=1)
    placement = Placement(model=model, num_nodes=2, gpus_per_node=1, slots_per_gpu=2, phy2log_LP=np.arange(4)[None])
    document = PlacementFile.of(placement).document()
    with server.client(tokens["read"]) as reader, server.client(tokens["solve"]) as solver:
        problem_of(reader.post("/v1/names/m", json={"document": document}), 403)
        assert solver.post("/v1/names/m", json={"document": document}).status_code == 201
        problem_of(solver.put("/v1/names/m@production", json={"version": 1}), 403)
        with server.client(tokens["promote"]) as promoter:
            promoted(promoter, "m@production", 1)
        detail = reader.get("/v1/names/m").json()
    assert detail["history"][0]["by"] == "of promote"
    assert detail["versions"][0]["by"] == "of solve"


def test_files_of_versions_outlive_their_jobs(make_server: Callable[..., Server], tmp_path: Path, trace: Path) -> None:
    """Retention keeps what a version names, however old the job is that made it, and so does a backup."""
    server = make_server(tmp_path / "data")
    with server.client() as client:
        answer = client.post("/v1/traces", files={"file": ("t.tar.gz", tar_of(trace))})
        placement = solved(client, answer.json()["id"], 1)
        published(client, "kept", [placement])
        wanted = client.get("/v1/names/kept@1/placement").content
        digest = client.get("/v1/names/kept@1").json()["sha256"]
        assert client.delete(f"/v1/placements/{placement}").status_code == 204
    server.kill(signal.SIGTERM)
    service = make_service(Settings(data=tmp_path / "data", keep_bytes=0))
    service.retention.sweep(time.time() + 10 * 86_400)
    service.database.close()
    server.start()
    with server.client() as client:
        assert client.get("/v1/names/kept@1/placement").content == wanted
    server.kill(signal.SIGTERM)
    back_up(tmp_path / "data", tmp_path / "backup.tar")
    restore(tmp_path / "backup.tar", tmp_path / "restored")
    assert (tmp_path / "restored/blobs" / digest[:2] / digest).read_bytes() == wanted


def test_the_commands(client: httpx.Client, server: Server, three: list[str], tmp_path: Path, run_cli: Any) -> None:
    """Publish a file or an id, promote, roll back, show: in words and as JSON."""
    file = tmp_path / "placement.json"
    file.write_bytes(client.get(f"/v1/placements/{three[0]}").content)
    said = [
        run_cli("names", *words, "--server", server.url)
        for words in (
            ("publish", file, "cli/m", "--note", "by hand"),
            ("publish", three[1], "cli/m"),
            ("promote", "cli/m@production", 1),
            ("promote", "cli/m@production", 2, "--expect", 1),
            ("rollback", "cli/m@production", "--note", "no"),
            ("show", "cli/m"),
            ("show",),
        )
    ]
    assert [one.code for one in said] == [0] * 7, [one.stderr for one in said]
    assert [one.stdout for one in said[:5]] == [
        "cli/m has version 1\n",
        "cli/m has version 2\n",
        "cli/m@production has version 1, before none\n",
        "cli/m@production has version 2, before 1\n",
        "cli/m@production has version 1, before 2\n",
    ]
    assert "by hand" in said[5].stdout and "production: 2 -> 1 (rolled back)" in said[5].stdout
    assert "cli/m: version 2; production has version 1" in said[6].stdout
    assert client.get("/v1/names/cli/m@1/placement").content == file.read_bytes()
    late = run_cli("names", "promote", "cli/m@production", 2, "--expect", 2, "--server", server.url)
    assert (late.code, late.stdout) == (2, "") and "has version 1, not 2" in late.stderr
