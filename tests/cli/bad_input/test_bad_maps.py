"""Maps that are unsound, of another model or no maps are refused in one line; texts in files cannot break it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from refusals import files, refused
from trace_faults import set_keys


@pytest.mark.parametrize(
    "shape", [{"num_experts": 16}, {"num_layers": 3}, {"top_k": 3}, {"layer_ids": [1, 2]}], ids=str
)
def test_map_for_another_model(
    shape: dict[str, Any], sound_map: Path, write_trace: Any, run_cli: Any, tmp_path: Path
) -> None:
    folder = write_trace(tmp_path / "other", **shape).folder
    refused(run_cli("evaluate", folder, "--map", sound_map), "the map is for")
    refused(run_cli("evaluate", folder, "--map", sound_map, "--json"), "the map is for")


@pytest.mark.parametrize(
    ("shape", "options", "told"),
    [
        ({"num_experts": 16}, ("--slots-per-gpu", 4), "8 experts"),
        ({"num_layers": 3}, (), "2 layers"),
        ({"top_k": 3}, (), "top-2"),
        ({"layer_ids": [1, 2]}, (), "0 to 1"),
    ],
    ids=str,
)
def test_current_map_that_does_not_fit(
    shape: dict[str, Any],
    options: tuple[object, ...],
    told: str,
    sound_map: Path,
    write_trace: Any,
    solve: Any,
    out: Path,
) -> None:
    """A change starts from a map of the same model; what differs is told before the work."""
    folder = write_trace(out.parent / "other", **shape).folder
    refused(solve(folder, *options, "--from", sound_map), "the current map is for", told, "needed")
    assert files(out) == set()


def test_bad_current_maps(sound_map: Path, trace: Any, solve: Any, run_cli: Any, tmp_path: Path, out: Path) -> None:
    """Files that are missing or no placement, a solver that knows no budget, plans with nowhere to go."""
    (tmp_path / "cut.json").write_bytes(sound_map.read_bytes()[:-40])
    for name, told in (("none.json", "No such file"), ("cut.json", "JSON")):
        refused(solve(trace.folder, "--from", tmp_path / name), name, told)
        refused(run_cli("diff", sound_map, tmp_path / name), name, told)
        refused(run_cli("diff", tmp_path / name, sound_map), name, told)
    refused(solve(trace.folder, "--from", sound_map, "--max-moves", 2, "--solver", "eplb"), "eplb", "auto")
    refused(run_cli("diff", sound_map, sound_map, "-o", out / "no" / "m.json"), "cannot write")
    assert files(out) == set()


@pytest.mark.parametrize("ranks", ["", "x", "1-", "-1", "3-1", "1,,2", "1-2-3", "9" * 30, "\N{SUPERSCRIPT TWO}"])
def test_lost_ranks_that_are_no_list(ranks: str, sound_map: Path, run_cli: Any) -> None:
    refused(run_cli("diff", sound_map, sound_map, f"--lost-ranks={ranks}"), "--lost-ranks", "spans")


def test_lost_ranks_that_cannot_be(sound_map: Path, trace: Any, solve: Any, run_cli: Any, out: Path) -> None:
    """Ranks that the map in use does not have, fewer than the smaller cluster leaves out, and none without a map."""
    refused(run_cli("diff", sound_map, sound_map, "--lost-ranks", 4), "rank 4", "0 to 3")
    fewer = ("--nodes", 1, "--gpus-per-node", 2, "--from", sound_map)
    refused(solve(trace.folder, *fewer, "--lost-ranks", 1), "3 ranks", "1 more", "--lost-ranks")
    refused(solve(trace.folder, "--lost-ranks", 1), "--from")
    assert files(out) == set()


def test_bad_maps(sound_map: Path, trace: Any, run_cli: Any, tmp_path: Path, out: Path) -> None:
    """evaluate and export refuse files that are no sound placement; export writes nothing."""
    document = json.loads(sound_map.read_text())
    document["physical_to_logical"][1][3] = document["physical_to_logical"][1][0]
    (tmp_path / "unsound.json").write_text(json.dumps(document))
    (tmp_path / "cut.json").write_bytes(sound_map.read_bytes()[:-40])
    for name, told in (("unsound.json", "no slot"), ("cut.json", "JSON"), ("none.json", "No such file"), ("out", "")):
        refused(run_cli("evaluate", trace.folder, "--map", tmp_path / name), name, told)
        refused(run_cli("export", tmp_path / name, "--to", "sglang", "-o", out / "e.json"), name, told)
    refused(run_cli("evaluate", trace.folder, "--map", sound_map, "--map", tmp_path / "cut.json"), "cut.json")
    assert files(out) == set()


def test_bad_options_of_evaluate_and_export(sound_map: Path, trace: Any, run_cli: Any, out: Path) -> None:
    refused(run_cli("evaluate", trace.folder, "--map", sound_map, "--replica-choice", "nearest"), "nearest")
    refused(run_cli("evaluate", trace.folder, "--map", sound_map, "--workers", 0), "workers=0")
    refused(run_cli("export", sound_map, "--to", "nonsense", "-o", out / "e.json"), "nonsense", "native", "sglang")
    assert files(out) == set()


def test_text_of_others_cannot_break_the_line(trace: Any, solve: Any, run_cli: Any, tmp_path: Path) -> None:
    """Line ends and terminal codes in names and keys of files that we are given do not reach the terminal as such."""
    set_keys(requests=[{"id": 3, "\nplacement: error: forged\x1b[2J": 1}] * 6)(trace)
    refused(solve(trace.folder), "requests")
    evil = {"schema": "expert-placement/1", "forged\nplacement: error: all is well\x1b[2J": 1}
    (tmp_path / "evil.json").write_text(json.dumps(evil))
    set_keys()(trace)
    result = run_cli("evaluate", trace.folder, "--map", tmp_path / "evil.json")
    refused(result, "evil.json")
    assert "\x1b" not in result.stderr


@pytest.mark.parametrize("key", ["model", "note"])
def test_text_that_is_no_text(key: str, trace: Any, solve: Any, run_cli: Any, out: Path) -> None:
    """Half a surrogate pair, which JSON can hold and UTF-8 cannot, is refused or survives; it does not crash us."""
    set_keys(**{key: "a\ud800z"})(trace)
    for result in (
        solve(trace.folder),
        run_cli("traces", "split", trace.folder, "-o", out / "s"),
        run_cli("traces", "merge", trace.folder, "-o", out / "m"),
    ):
        if result.code != 0:
            refused(result)
