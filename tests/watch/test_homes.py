"""`watch --grouping` keeps homes up to date: for the map in use, from the newest requests, a whole file at a time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_planner import routed

from placement import open_trace
from placement.analysis.watch.newest import NewestTraces
from placement.core.migration import map_digest
from placement.documents.placement import load_placement
from placement.grouping.grouping_file import load_grouping, load_router
from placement.grouping.requests import requests_of
from placement.traces.prompts import TokenLists, prompts_of, write_prompts

SHAPE = ("--nodes", 2, "--gpus-per-node", 2, "--slots-per-gpu", 4, "--work-limit", 500, "--bound", "none")
PROMPT = 12


@pytest.fixture
def inbox(tmp_path: Path, write_trace: Any, run_cli: Any) -> Path:
    """A map of a domain, and a folder in which more of it has arrived."""
    write_trace(tmp_path / "old", **routed(1))
    assert run_cli("solve", tmp_path / "old", *SHAPE, "-o", tmp_path / "now.json").code == 0
    arrive(tmp_path, write_trace, "day-0", 2)
    return tmp_path / "in"


def arrive(tmp_path: Path, write_trace: Any, name: str, seed: int, taste: int = 0) -> None:
    """A trace with prompts, whose words are those of its seed."""
    written = write_trace(tmp_path / "in" / name, **routed(seed, taste_seed=taste))
    requests = len(written.manifest["requests"])
    words = np.random.default_rng(seed).integers(100 * seed, 100 * seed + 9, requests * PROMPT).astype(np.int32)
    write_prompts(tmp_path / "in" / name, TokenLists.of(words, np.full(requests, PROMPT)))


def watch(run_cli: Any, folder: Path, *words: object) -> list[dict[str, Any]]:
    asked = ("--from", folder / "now.json", "-o", folder / "out", "--grouping", folder / "grouping.json")
    limits = ("--window-tokens", 900, "--horizon-steps", 10**9, "--work-limit", 500, "--once", "--json", "--workers", 1)
    done = run_cli("watch", folder / "in", *asked, *limits, *words)
    assert done.code == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_homes_follow_the_map_and_the_requests(inbox: Path, tmp_path: Path, run_cli: Any, write_trace: Any) -> None:
    """The first look writes homes of the map in use; a change those of the new map, beside it and in the live file."""
    arrive(tmp_path, write_trace, "day-1", 3, taste=1)
    events = watch(run_cli, tmp_path, "--fitted-on", tmp_path / "old")
    verdicts = [one["verdict"] for one in events if one["event"] == "decision"]
    written = [one["files"] for one in events if one["event"] == "homes"]
    assert verdicts[0] == "steady" and "change" in verdicts
    assert written[0] == [str(tmp_path / "grouping.json")]
    beside = str(tmp_path / "out" / "grouping-1.json")
    assert [beside, str(tmp_path / "grouping.json")] in written
    proposed, _ = load_placement(tmp_path / "out" / "placement-1.json")
    assert load_grouping(beside).placement_hash == map_digest(proposed)
    live = load_grouping(tmp_path / "grouping.json")
    assert live.placement_hash == load_grouping(beside).placement_hash
    assert load_router(tmp_path / "grouping.json").predictor is not None


def test_steady_traffic_leaves_the_file_alone(inbox: Path, tmp_path: Path, run_cli: Any) -> None:
    """A file that is for the map in use stays, and the file that a reader holds open is never written to."""
    assert any(one["event"] == "homes" for one in watch(run_cli, tmp_path))
    before = (tmp_path / "grouping.json").stat()
    held = (tmp_path / "grouping.json").open()
    events = watch(run_cli, tmp_path, "--fitted-on", tmp_path / "old")
    assert [one["verdict"] for one in events if one["event"] == "decision"] == ["steady"]
    assert not any(one["event"] == "homes" for one in events)
    watch(run_cli, tmp_path)  # without --fitted-on the first window is judged: homes are learned again
    assert (tmp_path / "grouping.json").stat().st_ino != before.st_ino
    assert json.load(held)["schema"] == "expert-grouping/2"
    held.close()


def test_the_tolerance_of_the_file_is_kept(inbox: Path, tmp_path: Path, run_cli: Any) -> None:
    watch(run_cli, tmp_path)
    document = json.loads((tmp_path / "grouping.json").read_text())
    document["balance"]["tolerance"] = 0.25
    (tmp_path / "grouping.json").write_text(json.dumps(document))
    watch(run_cli, tmp_path)
    assert load_grouping(tmp_path / "grouping.json").balance.tolerance == 0.25
    prices = load_router(tmp_path / "grouping.json").prices
    assert prices is not None and prices.tolerance == 0.25


def test_homes_are_learned_from_recordings_too(inbox: Path, tmp_path: Path, run_cli: Any) -> None:
    """With the ids that a recording has; what was converted is kept as long as it is in the window."""
    known = routed(2)
    ids_TLK = known["ids_LTK"].transpose(1, 0, 2)
    names = np.array(known["request_ids"])[known["request_T"]]
    tokens = known["request_T"] * 10 + np.arange(len(names)) % 7
    phase_T = (np.arange(len(names)) % 40 >= 20).astype(int)
    np.savez(inbox / "day-2.npz", expert_ids=ids_TLK, request=names, token=tokens, phase=phase_T, num_experts=16)
    (inbox / "day-0").rename(tmp_path / "away")
    events = watch(run_cli, tmp_path)
    assert any("content" in str(one.get("notes")) for one in events)
    assert load_router(tmp_path / "grouping.json").predictor is not None


def test_a_broken_file_is_refused_at_the_start(inbox: Path, tmp_path: Path, run_cli: Any) -> None:
    (tmp_path / "grouping.json").write_text("{")
    asked = ("--from", tmp_path / "now.json", "-o", tmp_path / "out", "--grouping", tmp_path / "grouping.json")
    done = run_cli("watch", inbox, *asked, "--once")
    assert done.code == 2 and "grouping.json is not JSON" in done.stderr
    assert (tmp_path / "grouping.json").read_text() == "{"


def test_what_cannot_be_learned_leaves_the_file(inbox: Path, tmp_path: Path, run_cli: Any) -> None:
    """The shards are gone when homes are to be learned: a warning, the old file stays, and the loop goes on."""
    watch(run_cli, tmp_path)
    before = (tmp_path / "grouping.json").read_bytes()
    from placement.analysis.watch import homes

    def nothing(*_: Any, **__: Any) -> Any:
        raise homes.OptionError("too few requests; wait for more")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(homes, "solve_grouped", nothing)
        events = watch(run_cli, tmp_path)
    assert [one["error"] for one in events if one["event"] == "failed"] == ["too few requests; wait for more"]
    assert events[-1]["event"] == "end"
    assert (tmp_path / "grouping.json").read_bytes() == before


def test_the_newest_traces_are_one_trace(tmp_path: Path, write_trace: Any) -> None:
    """Requests and prompts of all pieces, the oldest let go, what was converted removed with its last piece."""
    scratch, pieces = tmp_path / "scratch", []
    for number in range(3):
        written = write_trace(scratch / f"{number}", tokens=60, requests=6, num_shards=2, seed=number)
        write_prompts(written.folder, TokenLists.of(np.arange(12, dtype=np.int32) + number, np.full(6, 2)))
        trace = open_trace(written.folder)
        named = tuple(one.model_copy(update={"id": f"{number}/{one.id}"}) for one in trace.requests)
        pieces += [replace(trace, requests=named, spans=(span,)) for span in trace.spans]
    newest = NewestTraces(scratch)
    assert newest.trace() is None
    for piece in pieces:
        newest.push(piece)
        newest.keep(100)
    joined = newest.trace()
    assert joined is not None and joined.num_tokens_stored == 120
    requests = requests_of(joined)
    assert set(requests.ids) == {f"{number}/r{q}" for number in (1, 2) for q in range(6)}
    assert requests.sum(joined.tokens_Q()).tolist() == [10] * 12
    lists = requests.lists(prompts_of(joined))
    assert [lists.list_of(q).tolist() for q in (0, 11)] == [[1, 2], [12, 13]]
    assert [path.name for path in sorted(scratch.iterdir())] == ["1", "2"]
