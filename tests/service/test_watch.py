"""`placement watch --server`: proposals are placements of the service, each a change of the one before."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).parent.parent / "watch"))

import httpx
from test_planner import routed

from placement.core.migration import map_digest
from placement.documents.placement import load_placement
from placement.traces.trace import open_trace
from placement.workload.as_trace import write_sample
from placement.workload.count import count


def test_proposals_are_made_and_kept_by_the_service(
    client: httpx.Client, tmp_path: Path, write_trace: Any, run_cli: Any
) -> None:
    """A drift leads to a placement there, of the map in use there; what is told and written here is that one."""
    write_trace(tmp_path / "old", **routed(1))
    inbox = tmp_path / "in"
    for number, taste in enumerate((0, 1, 1)):
        write_trace(inbox / f"day-{number}", **routed(10 + number, taste_seed=taste))
    url = str(client.base_url).rstrip("/")
    shape = ("--nodes", 2, "--gpus-per-node", 2, "--work-limit", 3000, "--bound", "none", "--server", url)
    assert run_cli("submit", tmp_path / "old", *shape, "-o", tmp_path / "now.json").code == 0
    now, _ = load_placement(tmp_path / "now.json")
    [current] = [
        one["id"]
        for one in client.get("/v1/placements").json()
        if client.get(f"/v1/placements/{one['id']}").content == (tmp_path / "now.json").read_bytes()
    ]
    asked = ("watch", inbox, "--from", current, "--server", url, "--once", "-o", tmp_path / "out", "--json")
    result = run_cli(*asked, "--work-limit", 3000, "--fitted-on", tmp_path / "old", "--window-tokens", 2000)
    assert result.code == 0, result.stderr
    changes = [json.loads(line) for line in result.stdout.splitlines() if '"change"' in line]
    assert changes
    posted = client.get(f"/v1/placements/{changes[0]['id']}")
    assert posted.status_code == 200
    written, file = load_placement(tmp_path / "out" / "placement-1.json")
    assert posted.json()["physical_to_logical"] == written.phy2log_LP.tolist()
    assert file.migration is not None and file.migration.from_map == map_digest(now)
    assert client.get(f"/v1/jobs/{changes[0]['id']}").json()["state"] == "done"
    absent = run_cli(*("watch", inbox, "--from", "0" * 32, "--server", url, "--once"))
    assert absent.code == 2 and "no placement" in absent.stderr


def test_a_sample_is_a_trace_of_the_same_tokens(tmp_path: Path, write_trace: Any) -> None:
    """Counted again, the sampled tokens have the loads and the requests that they had."""
    write_trace(tmp_path / "t", **routed(1))
    workload = count(open_trace(tmp_path / "t"), sample_tokens=200)
    trace = open_trace(write_sample(workload, tmp_path / "sample"))
    again = count(trace)
    assert trace.num_tokens_stored == again.num_tokens == 200
    kept_LE = np.stack([np.bincount(row.reshape(-1), minlength=16) for row in workload.sample_ids_SLK.swapaxes(0, 1)])
    assert np.array_equal(again.load_LE, kept_LE)
    assert sorted(trace.tokens_Q().tolist()) == sorted(
        np.unique(workload.sample_owner_S, return_counts=True)[1].tolist()
    )
