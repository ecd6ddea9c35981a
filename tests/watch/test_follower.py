"""What arrives is read once, whatever state it is in, and the command proposes what the planner decides."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_planner import routed

from placement import Model, load_placement, open_trace
from placement.analysis.watch.follower import Follower
from placement.core.migration import map_digest
from placement.errors import TraceError
from placement.readers.convert import convert

MODEL = Model(name="tiny", layer_ids=(0, 1), num_experts=8, top_k=2)
RECORDINGS = Path(__file__).parents[1] / "golden" / "readers"


def tokens_and_errors(follower: Follower, **how: bool) -> tuple[int, list[str]]:
    arrivals = list(follower.poll(**how))
    return (
        sum(one.workload.num_tokens for one in arrivals if one.workload is not None),
        [one.error for one in arrivals if one.error is not None],
    )


def test_folders_are_read_once(tmp_path: Path, write_trace: Any) -> None:
    """Also one that comes later; requests with the same id in two folders are two requests."""
    follower = Follower(tmp_path, MODEL)
    assert tokens_and_errors(follower) == (0, [])
    write_trace(tmp_path / "a", tokens=60, requests=5, num_shards=2)
    write_trace(tmp_path / ".hidden", tokens=60)
    assert tokens_and_errors(follower) == (60, [])
    write_trace(tmp_path / "b", tokens=30)
    assert tokens_and_errors(follower) == (30, [])
    assert tokens_and_errors(follower) == (0, [])
    keys = [set(one.workload.profile_key_Q.tolist()) for one in Follower(tmp_path, MODEL).poll() if one.workload]
    assert not keys[0] & keys[-1] and keys[0] & keys[1]


def test_a_trace_that_is_being_recorded_is_read_as_it_grows(tmp_path: Path, write_trace: Any) -> None:
    """Shards that the manifest does not vouch for yet wait; none is read twice, also when the folder is the trace."""
    whole = write_trace(tmp_path / "whole", tokens=90, num_shards=3)
    live = tmp_path / "in" / "live"
    live.mkdir(parents=True)
    watched, trace_itself = Follower(live.parent, MODEL), Follower(live, MODEL)
    for number, shard in enumerate(whole.shards):
        shutil.copy(shard, live)
        for follower in (watched, trace_itself):
            assert tokens_and_errors(follower) == (0, [])
        manifest = whole.manifest | {"num_tokens": 30 * (number + 1), "recording": number < 2}
        (live / "trace.json").write_text(json.dumps(manifest))
        for follower in (watched, trace_itself):
            assert tokens_and_errors(follower) == (30, [])


def test_bad_arrivals_are_told_once_and_the_rest_is_read(tmp_path: Path, write_trace: Any) -> None:
    """A broken manifest, a cut shard, another model, ids out of range, junk: a line each; what is mended is read.

    What holds no traffic, such as a README, is passed over.
    """
    write_trace(tmp_path / "a", tokens=10)
    good = write_trace(tmp_path / "b-manifest", tokens=20)
    (good.folder / "trace.json").write_text('{"schema": "expert-tr')
    cut = write_trace(tmp_path / "c-shard", tokens=20).shards[0]
    cut.write_bytes(cut.read_bytes()[:100])
    write_trace(tmp_path / "d-model", num_experts=16)
    ids = open_trace(tmp_path / "a").shards[0].layer("expert_ids", 0)[None].repeat(2, axis=0).copy()
    ids[1, 3, 0] = 9
    write_trace(tmp_path / "e-ids", ids_LTK=ids, requests=6)
    (tmp_path / "f-junk.bin").write_bytes(b"\0" * 50)
    for name in ("README.md", "Thumbs.db", ".hidden"):
        (tmp_path / name).write_bytes(b"says nothing of traffic")
    write_trace(tmp_path / "g", tokens=40)
    follower = Follower(tmp_path, MODEL)
    tokens, errors = tokens_and_errors(follower, settled=True)
    assert tokens == 50
    assert len(errors) == 5 and all("\n" not in error for error in errors)
    for error, name in zip(errors, "bcdef", strict=True):
        assert f"/{name}-" in error
    assert tokens_and_errors(follower, settled=True) == (0, [])
    (good.folder / "trace.json").write_text(json.dumps(good.manifest))
    assert tokens_and_errors(follower, settled=True) == (20, [])
    with pytest.raises(TraceError):
        Follower(tmp_path / "absent", MODEL)


def test_recordings_of_engines_are_converted_when_they_rest(tmp_path: Path) -> None:
    """Not while they change between two looks, and once; what changes later is told."""
    source = RECORDINGS / "routing-log" / "layer-major"
    trace = open_trace(convert(source, tmp_path / "reference").output)
    arriving = tmp_path / "in" / "recording"
    arriving.mkdir(parents=True)
    follower = Follower(arriving.parent, trace.model)
    (arriving / "half").write_text("being written")
    assert tokens_and_errors(follower) == (0, [])
    (arriving / "half").unlink()
    shutil.copytree(source, arriving, dirs_exist_ok=True)
    assert tokens_and_errors(follower) == (0, [])
    assert tokens_and_errors(follower) == (trace.num_tokens_stored, [])
    assert tokens_and_errors(follower) == (0, [])
    with next(one for one in arriving.iterdir() if one.is_file()).open("a") as file:
        file.write("\n")
    assert tokens_and_errors(follower) == (0, [])
    tokens, errors = tokens_and_errors(follower)
    assert tokens == 0 and len(errors) == 1 and "changed" in errors[0]
    assert tokens_and_errors(follower) == (0, [])


def test_the_command_proposes_a_change(tmp_path: Path, write_trace: Any, run_cli: Any) -> None:
    """`--once`: reads all, tells of what is bad, writes a map and the copies that lead there from the map in use."""
    write_trace(tmp_path / "old", **routed(1))
    inbox = tmp_path / "in"
    for number, taste in enumerate((0, 1, 1)):
        write_trace(inbox / f"day-{number}", **routed(10 + number, taste_seed=taste))
    (inbox / "junk").write_text("?")
    shape = ("--nodes", 2, "--gpus-per-node", 2, "--work-limit", 3000, "--bound", "none")
    assert run_cli("solve", tmp_path / "old", *shape, "-o", tmp_path / "now.json").code == 0
    asked = ("watch", inbox, "--from", tmp_path / "now.json", "--once", "-o", tmp_path / "out", "--work-limit", 3000)
    told = (*asked, "--fitted-on", tmp_path / "old", "--window-tokens", 2000)
    result = run_cli(*told, "--json")
    assert result.code == 0, result.stderr
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert [event["event"] for event in events].count("unreadable") == 1
    verdicts = [event["verdict"] for event in events if event["event"] == "decision"]
    assert verdicts[0] == "steady" and "change" in verdicts
    assert events[-1] == {
        "event": "end",
        "tokens": 2880,
        "decisions": len(verdicts),
        "proposals": verdicts.count("change"),
    }
    proposal, file = load_placement(tmp_path / "out" / "placement-1.json")
    plan = json.loads((tmp_path / "out" / "migration-1.json").read_text())
    assert plan["from_map"] == map_digest(load_placement(tmp_path / "now.json")[0])
    assert plan["to_map"] == map_digest(proposal)
    assert file.migration is not None and file.migration.moves == plan["moves"]
    words = run_cli(*told)
    assert "change" in words.stdout and "junk" in words.stderr and words.stderr.count("\n") == 1
    waiting = run_cli(*asked, "--window-tokens", 10**6)
    assert waiting.code == 0 and "the window has 2,880 of 1,000,000" in waiting.stdout


def test_ctrl_c_ends_it_cleanly(
    tmp_path: Path, write_trace: Any, run_cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted while it waits, it says what it did and exits with 0."""
    write_trace(tmp_path / "in" / "a", **routed(1))
    assert (
        run_cli(
            "solve", tmp_path / "in", "--nodes", 2, "--work-limit", 100, "--bound", "none", "-o", tmp_path / "now.json"
        ).code
        == 0
    )

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("placement.cli.watch.time.sleep", interrupted)
    result = run_cli("watch", tmp_path / "in", "--from", tmp_path / "now.json", "-o", tmp_path / "out")
    assert result.code == 0 and result.stdout.splitlines()[-1].startswith("960 tokens, 0 decisions")
