"""Clusters that grow, shrink and lose GPUs: `solve --from` and `diff` between maps of different size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from placement import load_placement

QUICK = ("--objective", "balance", "--work-limit", 300, "--bound", "none", "--holdout", 0)
FOUR = ("--nodes", 1, "--gpus-per-node", 4)
SIX = ("--nodes", 1, "--gpus-per-node", 6, "--redundant-experts", 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, write_trace: Any, run_cli: Any) -> Path:
    """A trace `t` of 16 experts in two layers; maps `four.json` on 4 GPUs and `six.json` on 6, made independently."""
    folder = tmp_path_factory.mktemp("elastic")
    write_trace(folder / "t", num_layers=2, num_experts=16, top_k=2, tokens=500, requests=10, spread=1.5)
    for name, shape in (("four", FOUR), ("six", SIX)):
        made = run_cli("solve", folder / "t", *shape, *QUICK, "-o", folder / f"{name}.json")
        assert made.code == 0, made.stderr
    return folder


def least_copies(old: Path, new: Path, ranks: list[int | None]) -> list[int]:
    """Slots of every layer whose expert their rank, `ranks[r]` before, did not hold: counted one by one."""
    old_map, new_map = load_placement(old)[0], load_placement(new)[0]
    counts = []
    for old_P, new_P in zip(old_map.phy2log_LP, new_map.phy2log_LP, strict=True):
        before = [
            set() if rank is None else set(old_P[rank * old_map.slots_per_gpu :][: old_map.slots_per_gpu].tolist())
            for rank in ranks
        ]
        counts.append(sum(e not in before[p // new_map.slots_per_gpu] for p, e in enumerate(new_P.tolist())))
    return counts


def plan(run_cli: Any, *arguments: object) -> dict[str, Any]:
    result = run_cli("diff", *arguments, "--json")
    assert result.code == 0, result.stderr
    return json.loads(result.stdout)


def test_a_plan_between_maps_of_two_sizes(folder: Path, run_cli: Any) -> None:
    """Ranks keep their numbers and new ones are empty; the table says so; nothing comes from the checkpoint."""
    ranks = [0, 1, 2, 3, None, None]
    found = plan(run_cli, folder / "four.json", folder / "six.json")
    assert found["old_ranks"] == ranks
    assert found["moves_by_layer"] == least_copies(folder / "four.json", folder / "six.json", ranks)
    assert found["from_checkpoint"] == 0
    assert found["bytes_within_nodes"] == found["moves"] * found["expert_bytes"]
    table = run_cli("diff", folder / "four.json", folder / "six.json").stdout
    assert "0 to 3, 2 empty" in " ".join(table.split())


def test_names_that_move_less(folder: Path, tmp_path: Path, run_cli: Any) -> None:
    """--relabel writes the same map under names of GPUs that need fewer copies, with the totals of the way there."""
    output = tmp_path / "named.json"
    numbered = plan(run_cli, folder / "four.json", folder / "six.json")
    named = plan(run_cli, folder / "four.json", folder / "six.json", "--relabel", output)
    assert named["moves"] < numbered["moves"]
    assert named["moves"] == sum(least_copies(folder / "four.json", output, [0, 1, 2, 3, None, None]))
    assert plan(run_cli, folder / "four.json", output) == named
    changed, whole = (json.loads(path.read_text()) for path in (output, folder / "six.json"))
    assert changed["migration"] == {key: named[key] for key in changed["migration"]}
    same = {key: value for key, value in whole.items() if key != "physical_to_logical"}
    assert {key: changed[key] for key in same} == same
    for rows, others in zip(changed["physical_to_logical"], whole["physical_to_logical"], strict=True):
        ranks, other_ranks = (sorted(sorted(row[r : r + 3]) for r in range(0, 18, 3)) for row in (rows, others))
        assert ranks == other_ranks


def change(run_cli: Any, folder: Path, shape: tuple[object, ...], output: Path, *options: object) -> dict[str, Any]:
    result = run_cli("solve", folder / "t", *shape, *QUICK, "--from", *options, "-o", output)
    assert result.code == 0, result.stderr
    return json.loads(output.read_text())


def test_growth_moves_what_it_must(folder: Path, tmp_path: Path, run_cli: Any) -> None:
    """4 to 6 GPUs: six copies a layer fill the new ranks; with so many moves allowed there are no more, and a larger
    budget is no worse. The plan of `diff` is the one of `solve`."""
    four, output = folder / "four.json", tmp_path / "p.json"
    found = []
    for most in (12, 16, None):
        limit = () if most is None else ("--max-moves", most)
        document = change(run_cli, folder, SIX, output, four, *limit)
        moves = document["migration"]["moves_by_layer"]
        assert moves == least_copies(four, output, [0, 1, 2, 3, None, None])
        assert sum(moves) <= (most or 36)
        found.append(sum(layer["objective"] for layer in document["layers"]))
        told = plan(run_cli, four, output)
        assert document["migration"] == {key: told[key] for key in document["migration"]}
        if most == 12:
            assert moves == [6, 6]
            assert "fewest-copies" in document["evaluation"]["train"]
    assert found[1] <= found[0]
    assert found[2] <= 1.01 * found[1]  # without a limit another search is made
    each = change(run_cli, folder, SIX, output, four, "--max-moves", "7/layer")
    assert max(each["migration"]["moves_by_layer"]) <= 7


def test_fewer_moves_than_it_must(folder: Path, run_cli: Any, tmp_path: Path) -> None:
    """A limit that even the fewest copies exceed is refused, with the least that is possible, before the search."""
    for limit, least in ((("--max-moves", 11), "12"), (("--max-moves", "5/layer"), "6")):
        result = run_cli(
            "solve", folder / "t", *SIX, *QUICK, "--from", folder / "four.json", *limit, "-o", tmp_path / "p.json"
        )
        assert result.code == 3
        assert f"need {least} copies" in result.stderr and f"--max-moves {least}" in result.stderr
    assert not (tmp_path / "p.json").exists()


def test_a_lost_gpu(folder: Path, tmp_path: Path, run_cli: Any) -> None:
    """6 to 5 GPUs, rank 2 is lost: what it alone held comes from the checkpoint, and `diff` knows the loss from the
    file; told otherwise, it believes what it is told."""
    six, output = folder / "six.json", tmp_path / "p.json"
    shape = ("--nodes", 1, "--gpus-per-node", 5, "--slots-per-gpu", 4)
    document = change(run_cli, folder, shape, output, six, "--lost-ranks", 2)
    ranks = [0, 1, 3, 4, 5]
    assert document["migration"]["old_ranks"] == ranks
    old_map = load_placement(six)[0]
    gone = 0
    for layer, row in enumerate(old_map.phy2log_LP):
        held = {e for rank in ranks for e in row[rank * 3 : rank * 3 + 3].tolist()}
        new_P = load_placement(output)[0].phy2log_LP[layer]
        gone += sum(e not in held for e in new_P.tolist())
    assert gone > 0 and document["migration"]["from_checkpoint"] == gone
    assert document["migration"]["moves_by_layer"] == least_copies(six, output, list(ranks))
    assert plan(run_cli, six, output)["old_ranks"] == ranks
    assert plan(run_cli, six, output, "--lost-ranks", 5)["old_ranks"] == [0, 1, 2, 3, 4]
    said = " ".join(run_cli("diff", six, output).stdout.split())
    assert "from the checkpoint" in said and "0 to 1, 3 to 5" in said


def test_a_replaced_gpu(folder: Path, tmp_path: Path, run_cli: Any) -> None:
    """A lost rank of a cluster that stays as large is empty in its place: its slots at least are filled again."""
    four, output = folder / "four.json", tmp_path / "p.json"
    document = change(run_cli, folder, FOUR, output, four, "--lost-ranks", 1, "--max-moves", 8)
    assert document["migration"]["old_ranks"] == [0, None, 2, 3]
    assert document["migration"]["moves_by_layer"] == [4, 4] == least_copies(four, output, [0, None, 2, 3])
    assert document["migration"]["from_checkpoint"] == 8
    for row, old in zip(*(load_placement(path)[0].phy2log_LP for path in (output, four)), strict=True):
        assert np.array_equal(np.sort(row[4:8]), np.sort(old[4:8]))


def test_nodes_that_come_and_go(folder: Path, tmp_path: Path, run_cli: Any) -> None:
    """1 node to 2 and back: of nodes that stay nothing moves but what must; on the way back nothing is lost."""
    two, back = tmp_path / "two.json", tmp_path / "back.json"
    shape = ("--nodes", 2, "--gpus-per-node", 4, "--redundant-experts", 8)
    document = change(run_cli, folder, shape, two, folder / "four.json", "--max-moves", 24)
    assert document["migration"]["old_ranks"] == [0, 1, 2, 3, None, None, None, None]
    assert document["migration"]["moves"] == 24 and document["migration"]["from_checkpoint"] == 0
    assert document["migration"]["bytes_between_nodes"] > 0
    document = change(run_cli, folder, FOUR, back, two)
    assert document["migration"]["old_ranks"] == [0, 1, 2, 3]
    assert document["migration"]["moves"] == sum(least_copies(two, back, [0, 1, 2, 3]))


def test_too_few_slots(folder: Path, tmp_path: Path, run_cli: Any) -> None:
    """A cluster that has become too small is refused with the least that fits."""
    options = ("--from", folder / "six.json", "-o", tmp_path / "p.json")
    small = run_cli("solve", folder / "t", "--nodes", 1, "--gpus-per-node", 5, "--slots-per-gpu", 3, *QUICK, *options)
    assert small.code == 3
    assert "--slots-per-gpu 4" in small.stderr and "the least --redundant-experts that fits, 4" in small.stderr
    uneven = run_cli("solve", folder / "t", "--nodes", 1, "--gpus-per-node", 5, *QUICK, *options)
    assert uneven.code == 3 and "--redundant-experts 4" in uneven.stderr


def test_hardware_is_carried_over(folder: Path, tmp_path: Path, run_cli: Any) -> None:
    """A new file that says nothing of its hardware has that of the old one, so bytes and times are those of the model;
    a description of the cluster must be that of the new map."""
    four, six = (json.loads((folder / f"{name}.json").read_text()) for name in ("four", "six"))
    four["provenance"]["cluster"] |= {"expert_bytes": 1000, "intra_gbps": 8.0}
    del six["provenance"]
    for name, document in (("four", four), ("six", six)):
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    found = plan(run_cli, tmp_path / "four.json", tmp_path / "six.json")
    assert found["expert_bytes"] == 1000
    assert found["time_ms"] == pytest.approx(found["most_bytes_from_rank"] / 1e6, rel=0.01)
    (tmp_path / "c.yaml").write_text("num_nodes: 1\ngpus_per_node: 4\n")
    refused = run_cli("diff", folder / "four.json", folder / "six.json", "--cluster", tmp_path / "c.yaml")
    assert refused.code == 2 and "the new map is for 1 nodes x 6 GPUs" in refused.stderr


def test_watch_stays_within_one_size(folder: Path, tmp_path: Path, run_cli: Any) -> None:
    """`watch` follows one cluster: a map for another is refused in one line that says who changes the size."""
    (tmp_path / "c.yaml").write_text("num_nodes: 1\ngpus_per_node: 6\nredundant_experts: 2\n")
    result = run_cli(
        "watch",
        folder / "t",
        "--from",
        folder / "four.json",
        "--cluster",
        tmp_path / "c.yaml",
        "-o",
        tmp_path / "out",
        "--once",
    )
    assert result.code == 2, result.stderr
    assert "1 nodes x 4 GPUs" in result.stderr and "placement solve --from" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
