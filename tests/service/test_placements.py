"""Placements over HTTP: the same answers as the command line, for real requests to a real server."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tests_service import answered, problem_of

from placement import load_placement
from placement.exporters import EXPORTERS, get_exporter

CLUSTER = {"num_nodes": 2, "gpus_per_node": 2}
QUICK = {"work_limit": 500, "bound": "none"}
COUNTS = {"top_k": 1, "counts": [[9, 1, 4, 4], [2, 8, 6, 2]]}
BALANCE: dict[str, Any] = {
    "counts": COUNTS,
    "cluster": CLUSTER | {"gpus_per_node": 1},
    "options": {"objective": "balance"},
}
FOREVER = {"solver": "anneal", "bound": "none", "work_limit": 2_000_000_000}


def solved(client: httpx.Client, trace_id: str, **changes: Any) -> str:
    """The id of a placement."""
    body = {"traces": [trace_id], "cluster": CLUSTER, "options": QUICK} | changes
    answer = answered(client, "/v1/placements", body)
    assert answer.status_code == 200, answer.text
    return answer.headers["content-location"].rpartition("/")[2]


@pytest.fixture(scope="module")
def placement_id(client: httpx.Client, trace_id: str) -> str:
    return solved(client, trace_id, group={})


def test_a_placement_is_that_of_the_command_line(
    client: httpx.Client, trace: Path, trace_id: str, tmp_path: Path, run_cli: Any
) -> None:
    """Byte for byte, report included: the service adds nothing to what the library answers."""
    out, report = tmp_path / "placement.json", tmp_path / "report.html"
    done = run_cli(
        *("solve", trace, "--nodes", 2, "--gpus-per-node", 2, "--work-limit", 500, "--bound", "none"),
        *("--max-imbalance", 1.9, "--seed", 3, "-o", out, "--report", report),
    )
    assert done.code == 0, done.stderr
    options = QUICK | {"max_imbalance": 1.9, "seed": 3}
    name = solved(client, trace_id, options=options)
    assert client.get(f"/v1/placements/{name}").content == out.read_bytes()
    assert client.get(f"/v1/placements/{name}/report").text == report.read_text()


def test_an_engine_sets_what_is_left_empty(client: httpx.Client, trace_id: str) -> None:
    """The request with the engine's rules by name is another request, whose placement is the same map."""
    for_engine = solved(client, trace_id, options=QUICK | {"engine": "tensorrt-llm"})
    by_name = solved(client, trace_id, options=QUICK | {"replica_choice": "uniform", "transport": "rank"})
    first, second = (client.get(f"/v1/placements/{name}").json() for name in (for_engine, by_name))
    options = first["provenance"]["options"]
    assert (options["engine"], options["replica_choice"], options["transport"]) == ("tensorrt-llm", "uniform", "rank")
    assert for_engine != by_name and first["physical_to_logical"] == second["physical_to_logical"]


def test_the_same_request_twice_is_one_job(client: httpx.Client, trace_id: str) -> None:
    """With or without a key, at the same time or later; a key for another request is refused."""
    body = {"traces": [trace_id], "cluster": CLUSTER, "options": QUICK | {"seed": 77}}
    answers: list[httpx.Response] = []

    def ask() -> None:
        answers.append(client.post("/v1/placements", json=body, headers={"Idempotency-Key": "k-77"}))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answers.append(client.post("/v1/placements", json=body))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    other = client.post("/v1/placements", json=BALANCE, headers={"Idempotency-Key": "k-77"})
    assert other.status_code == 422
    assert "k-77" in other.json()["detail"]


def test_counts_may_be_written_in_the_request(client: httpx.Client) -> None:
    """Inline counts are solved for balance; the trace they become has an id like any other."""
    answer = answered(client, "/v1/placements", BALANCE)
    assert answer.status_code == 200, answer.text
    assert answer.json()["evaluation"]["train"]["auto"]["rank_imbalance"]["max"] == pytest.approx(20 / 18)
    assert "counts" in {row["kind"] for row in client.get("/v1/traces").json()}


def test_a_cancelled_job_frees_the_worker_within_a_second(client: httpx.Client, trace_id: str) -> None:
    """A search that would run for hours ends when told to; a queued job is cancelled before it begins."""
    body = {"traces": [trace_id], "cluster": CLUSTER, "options": FOREVER}
    running = client.post("/v1/placements", json=body).json()["id"]
    queued = client.post("/v1/placements", json=body | {"options": FOREVER | {"seed": 5}}).json()["id"]
    end = time.monotonic() + 120
    while client.get(f"/v1/jobs/{running}").json()["progress"]["stage"] != "solve":
        assert time.monotonic() < end
        time.sleep(0.05)
    assert client.post(f"/v1/jobs/{queued}/cancel").json()["state"] == "cancelled"
    began = time.monotonic()
    client.post(f"/v1/jobs/{running}/cancel")
    while client.get(f"/v1/jobs/{running}").json()["state"] != "cancelled":
        assert time.monotonic() < began + 1.0
        time.sleep(0.02)
    assert solved(client, trace_id, options=QUICK | {"seed": 6})


def test_events_tell_of_every_change_until_the_end(client: httpx.Client, trace_id: str) -> None:
    """The last event says that the job is done and where the placement is; the same states as the job's."""
    body = {"traces": [trace_id], "cluster": CLUSTER, "options": QUICK | {"seed": 8}}
    job = client.post("/v1/placements", json=body).json()["id"]
    with client.stream("GET", f"/v1/jobs/{job}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        events = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: ")]
    order = ["queued", "running", "done"]
    states = [event["state"] for event in events]
    assert states == sorted(states, key=order.index)
    assert events[-1]["state"] == "done"
    assert client.get(events[-1]["result"]).status_code == 200


@pytest.mark.parametrize("name", list(EXPORTERS))
def test_every_format_is_what_the_exporter_writes(
    client: httpx.Client, placement_id: str, tmp_path: Path, name: str
) -> None:
    """`?format=` answers the bytes of `placement export`, and the hints beside them; or why it cannot."""
    file = tmp_path / "placement.json"
    file.write_bytes(client.get(f"/v1/placements/{placement_id}").content)
    answer = client.get(f"/v1/placements/{placement_id}", params={"format": name})
    try:
        export = get_exporter(name).export(load_placement(file)[0])
    except Exception as error:
        assert answer.status_code == 422
        assert answer.json()["detail"] in str(error)
        return
    assert answer.content == export.content
    assert client.get(f"/v1/placements/{placement_id}/hints", params={"format": name}).json() == list(export.hints)


def test_evaluate_diff_route_and_group_answer_what_the_library_does(
    client: httpx.Client, trace: Path, trace_id: str, placement_id: str, tmp_path: Path, run_cli: Any
) -> None:
    """Each is compared with the command line or the router of the same files."""
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    other = solved(client, trace_id, options=QUICK | {"solver": "linear"})
    old.write_bytes(client.get(f"/v1/placements/{placement_id}").content)
    new.write_bytes(client.get(f"/v1/placements/{other}").content)

    measured = answered(client, f"/v1/placements/{placement_id}/evaluate", {"traces": [trace_id]}).json()
    said = json.loads(run_cli("evaluate", trace, "--map", old, "--json").stdout)["maps"][0]
    assert (measured["summary"], measured["layers"]) == (said["summary"], said["layers"])
    asked = {"traces": [trace_id], "step_tokens": [4]}
    stepped = answered(client, f"/v1/placements/{placement_id}/evaluate", asked).json()
    words = ("evaluate", trace, "--map", old, "--step-tokens", 4, "--json")
    assert stepped["steps"] == json.loads(run_cli(*words).stdout)["maps"][0]["steps"]
    refused = client.post(f"/v1/placements/{placement_id}/evaluate", json=asked | {"step_tokens": [4, 0]})
    assert refused.status_code == 422 and "from 1 to 2^24" in refused.text

    plan = client.get(f"/v1/placements/{placement_id}/diff", params={"to": other}).json()
    assert plan == json.loads(run_cli("diff", old, new, "--json").stdout)

    from placement.grouping.grouping_file import load_router

    grouping = tmp_path / "grouping.json"
    grouping.write_bytes(client.get(f"/v1/placements/{placement_id}/grouping").content)
    router = load_router(grouping)
    counts = [[9, 0, 0, 0, 0, 0, 0, 7], [0, 5, 5, 0, 0, 0, 0, 0]]
    routed = client.post(f"/v1/placements/{placement_id}/route", json={"counts": counts, "load": [0, 10]}).json()
    assert routed["node"] == router.assign(counts, [0, 10]).node
    told = {"prompt": [5, 6, 7], "labels": {"domain": "code"}, "load": [1, 1], "session": {"node": 0, "tokens": 1e6}}
    home = router.assign(None, [1, 1], prompt=[5, 6, 7], labels={"domain": "code"}, cached=[1e6, 0])
    routed = client.post(f"/v1/placements/{placement_id}/route", json=told).json()
    assert routed == {"node": home.node, "why": home.why, "extra_sends": [round(one, 6) for one in home.extra_N]}
    assert "prefix" in home.why and home.node == 0
    negative = client.post(f"/v1/placements/{placement_id}/route", json=told | {"load": [-1, 1]})
    assert "0 or more" in problem_of(negative, 422)["mend"]
    batch = [counts, counts[::-1], counts, counts[::-1]]
    groups = client.post(f"/v1/placements/{placement_id}/group", json={"batch": batch, "size": 2}).json()
    assert groups == [{"node": g.node, "members": list(g.members)} for g in router.group(batch, 2)]
    refused = client.post(f"/v1/placements/{other}/route", json={"counts": counts})
    assert refused.status_code == 409
    assert "group" in refused.json()["mend"]


def test_a_change_of_the_placement_in_use_moves_few_slots(client: httpx.Client, trace_id: str) -> None:
    """`current` is `solve --from`: the answer has the migration that leads to it."""
    start = solved(client, trace_id, options={"solver": "linear"})
    name = solved(client, trace_id, options=QUICK | {"max_moves": 2}, current=start)
    assert client.get(f"/v1/placements/{name}").json()["migration"]["moves"] <= 2


def test_the_client_and_the_command_line_solve_on_the_server(
    server: Any, trace: Path, tmp_path: Path, run_cli: Any
) -> None:
    """`submit` writes the bytes that `solve` writes here; the client answers the library's types."""
    from placement import Cluster, Options, solve
    from placement.client import Client
    from placement.traces.trace import open_trace

    shared = (trace, "--nodes", 2, "--gpus-per-node", 2, "--work-limit", 500, "--seed", 4)
    here, there = (tmp_path / name for name in ("here.json", "there.json"))
    assert run_cli("solve", *shared, "-o", here).code == 0
    remote = run_cli("submit", *shared, "-o", there, "--report", tmp_path / "r.html", "--server", server.url)
    assert remote.code == 0, remote.stderr
    assert there.read_bytes() == here.read_bytes()
    assert "<svg" in (tmp_path / "r.html").read_text()
    assert "measuring maps: 2/2" in remote.stderr

    client, cluster = Client(server.url), Cluster.fit(8, num_nodes=2, gpus_per_node=2, redundant_experts=4)
    options = Options(work_limit=500, seed=9)
    stages: list[str] = []
    placement, file = client.solve([client.upload(trace)], cluster, options, listener=lambda e: stages.append(e.stage))
    assert (placement.phy2log_LP == solve(open_trace(trace), cluster, options).placement.phy2log_LP).all()
    assert file.described_cluster() == cluster
    assert stages[-1] == "evaluate"


def test_the_client_tells_what_the_server_found_wrong(server: Any, trace: Path, tmp_path: Path, run_cli: Any) -> None:
    """One line with what and how to mend it, as for the same mistake here; also where nobody listens."""
    mistake = run_cli(
        "submit", trace, "--nodes", 2, "--max-imbalance", 1.0001, "--server", server.url, "-o", tmp_path / "p"
    )
    assert mistake.code == 3
    assert "max_imbalance" in mistake.stderr
    nobody = run_cli("submit", trace, "--nodes", 2, "--server", "http://127.0.0.1:9", "-o", tmp_path / "p")
    assert nobody.code == 2
    assert "is the service running" in nobody.stderr
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--max-imbalance", 1.0001), 3),
        (("--max-imbalance", 1.05, "--redundant-experts", 4, "--solver", "linear"), 4),
        (("--redundant-experts", 4, "--solver", "matching"), 2),
    ],
)
def test_errors_have_the_same_exit_code_on_the_server_as_here(
    server: Any, trace: Path, tmp_path: Path, run_cli: Any, options: tuple[Any, ...], code: int
) -> None:
    """What nobody can satisfy, what was not found and what is wrong are told apart, with the same reason."""
    shared = (trace, "--nodes", 2, "--gpus-per-node", 2, *options, "-o", tmp_path / "p")
    here = run_cli("solve", *shared)
    there = run_cli("submit", *shared, "--server", server.url)
    assert (here.code, there.code) == (code, code)
    assert here.stderr.splitlines()[-1].split("; ")[0] in there.stderr


def test_several_counts_are_captures_on_the_server_too(server: Any, tmp_path: Path, run_cli: Any) -> None:
    """The same map as here, each capture with its figures; weights are refused, for the server knows none."""
    rng = np.random.default_rng(0)
    for name, tokens in (("a", 1000), ("b", 10)):
        np.savez(tmp_path / f"{name}.npz", counts=rng.integers(1, 50, (2, 8)) * tokens, top_k=2)
    shared = (tmp_path / "a.npz", tmp_path / "b.npz", "--nodes", 2, "--gpus-per-node", 2, "--objective", "balance")
    for how in ((), ("--robust", "traces")):
        done = run_cli("submit", *shared, *how, "--server", server.url, "-o", tmp_path / "there.json")
        assert done.code == 0, done.stderr
        here = run_cli("robust" if how else "solve", *shared, "-o", tmp_path / "here.json")
        assert here.code == 0, here.stderr
        there, same = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("there", "here"))
        assert there["physical_to_logical"] == same["physical_to_logical"]
        assert [one["train"] for one in there["evaluation"]["captures"]] == [
            one["train"] for one in same["evaluation"]["captures"]
        ]
    weighed = run_cli("submit", f"{shared[0]}=2", *shared[1:], "--server", server.url, "-o", tmp_path / "w.json")
    assert weighed.code == 2 and "weighs captures alike" in weighed.stderr
