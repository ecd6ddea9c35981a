"""Options and clusters that cannot be are told with the value and what is allowed, with exit code 2 or 3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from refusals import files, refused

BAD_OPTIONS: dict[str, tuple[tuple[object, ...], int, tuple[str, ...]]] = {
    "slots fewer than experts": (("--slots-per-gpu", 1), 3, ("8 experts", "--slots-per-gpu 2")),
    "ranks that do not divide": (
        ("--nodes", 3, "--gpus-per-node", 1),
        3,
        ("8 experts", "3 GPUs", "--redundant-experts 1"),
    ),
    "redundant that do not divide": (("--redundant-experts", 3), 3, ("--redundant-experts 0 or 4",)),
    "more GPUs than experts": (("--nodes", 16), 3, ("32 GPUs", "--redundant-experts 24")),
    "slots beyond the experts": (("--slots-per-gpu", 9), 3, ("slots_per_gpu=9",)),
    "slots and redundant": (("--slots-per-gpu", 3, "--redundant-experts", 4), 2, ("give one of them",)),
    "no nodes": (("--nodes", 0), 2, ("num_nodes=0",)),
    "negative nodes": (("--nodes", -1), 2, ("num_nodes=-1",)),
    "too many nodes": (("--nodes", 100, "--slots-per-gpu", 1), 2, ("num_nodes=100", "64")),
    "no GPUs": (("--gpus-per-node", 0), 2, ("gpus_per_node=0",)),
    "no slots": (("--slots-per-gpu", 0), 2, ("slots_per_gpu=0",)),
    "negative redundant": (("--redundant-experts", -1), 2, ("redundant_experts=-1",)),
    "holdout above 1": (("--holdout", 1.5), 2, ("holdout=1.5",)),
    "holdout of all": (("--holdout", 1), 2, ("holdout=1",)),
    "negative holdout": (("--holdout", -0.1), 2, ("holdout=-0.1",)),
    "holdout nan": (("--holdout", "nan"), 2, ("holdout=nan",)),
    "imbalance below 1": (("--max-imbalance", 0.5), 2, ("max_imbalance=0.5", "1 or more")),
    "imbalance nan": (("--max-imbalance", "nan"), 2, ("max_imbalance=nan",)),
    "imbalance of nobody": (("--max-imbalance", 1.0), 3, ("max_imbalance=1.0",)),
    "node imbalance below 1": (("--max-imbalance", ",0.5"), 2, ("max_node_imbalance=0.5", "over nodes")),
    "node imbalance nan": (("--max-imbalance", ",nan"), 2, ("max_node_imbalance=nan",)),
    "node imbalance of nobody": (("--max-imbalance", ",1.0"), 3, ("max_node_imbalance=1.0",)),
    "unknown transport": (("--transport", "pigeon"), 2, ("pigeon", "allgather")),
    "unknown objective": (("--objective", "beauty"), 2, ("beauty", "locality")),
    "no workers": (("--workers", 0), 2, ("workers='0'",)),
    "negative workers": (("--workers", -1), 2, ("workers='-1'",)),
    "unknown solver": (("--solver", "magic"), 2, ("magic", "anneal")),
    "unknown choice": (("--replica-choice", "nearest"), 2, ("nearest", "min-nodes")),
    "negative seed": (("--seed", -1), 2, ("seed=-1",)),
    "huge seed": (("--seed", 2**70), 2, ("seed=",)),
    "no work": (("--work-limit", 0), 2, ("work_limit=0",)),
    "negative time": (("--time-limit", -1), 2, ("time_limit=-1",)),
    "no time": (("--time-limit", 0), 2, ("time_limit=0",)),
    "time nan": (("--time-limit", "nan"), 2, ("time_limit=nan",)),
    "negative weight": (("--balance-weight", -1), 2, ("balance_weight=-1",)),
    "weight infinite": (("--balance-weight", "inf"), 2, ("balance_weight=inf",)),
    "weight beyond arithmetic": (("--balance-weight", 1e308), 2, ("balance_weight=",)),
    "negative moves": (("--max-moves", -1), 2, ("max_moves=-1",)),
    "moves of no number": (("--max-moves", "few"), 2, ("--max-moves 'few'", "N/layer")),
    "moves twice": (("--max-moves", "3,4"), 2, ("--max-moves '3,4'", "40,2/layer")),
    "negative moves of a layer": (("--max-moves", "-1/layer"), 2, ("max_moves_per_layer=-1",)),
    "moves from nothing": (("--max-moves", 4), 2, ("max_moves", "--from")),
    "cluster twice": (("--cluster", "c.yaml"), 2, ("--cluster", "--nodes")),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options(name: str, skewed: Any, solve: Any, out: Path) -> None:
    """Values that cannot be are told with the value and what is allowed; what is infeasible ends with 3."""
    options, code, told = BAD_OPTIONS[name]
    refused(solve(skewed.folder, *options), *told, code=code)
    assert files(out) == set()


@pytest.mark.parametrize(
    "arguments",
    [
        ("solve",),
        ("solve", "TRACE", "--nodes", "two"),
        ("solve", "TRACE", "--nodes", "2.5"),
        ("solve", "TRACE", "--holdout", "some"),
        ("solve", "TRACE", "--no-such-option"),
        ("evaluate", "TRACE"),
        ("export", "TRACE"),
        ("export", "TRACE", "--to", "native"),
        ("nonsense",),
        ("traces", "nonsense"),
    ],
)
def test_usage_errors(arguments: tuple[str, ...], skewed: Any, run_cli: Any) -> None:
    """What the parser cannot read ends with 2 and says how to call it."""
    result = run_cli(*(str(skewed.folder) if part == "TRACE" else part for part in arguments))
    assert result.code == 2
    assert "Error" in result.stderr
    assert "Traceback" not in result.stderr


def test_no_nodes_given(skewed: Any, run_cli: Any, out: Path) -> None:
    refused(run_cli("solve", skewed.folder, "-o", out / "p.json"), "--nodes", "--cluster")
    assert files(out) == set()


@pytest.mark.parametrize("text", ["num_nodes: 0", "nodes: 2", "[", "num_nodes: 3", None])
def test_bad_cluster_file(text: str | None, skewed: Any, run_cli: Any, tmp_path: Path, out: Path) -> None:
    """A cluster file that is missing, no YAML, or of a cluster that cannot be."""
    path = tmp_path / "cluster.yaml"
    if text is not None:
        path.write_text(text)
    code = 3 if text == "num_nodes: 3" else 2
    refused(run_cli("solve", skewed.folder, "-o", out / "p.json", "--cluster", path), code=code)
    assert files(out) == set()


@pytest.mark.parametrize(
    ("topology", "told"),
    [
        ("{levels: [{name: rack, nodes: 3, gbps: 1}]}", ("topology.levels", "'rack'", "blocks of 3", "4 nodes")),
        ("{node_gbps: [1, 2]}", ("topology.node_gbps", "2 values for 4 nodes")),
        ("{rank_cost: [[0, 1], [1, 0]]}", ("topology.rank_cost", "2 rows", "4 rows of 4")),
        ("{node_gbps: [1, 1, 1, -1]}", ("topology.node_gbps", "-1.0", "positive")),
        ("{racks: 2}", ("cluster.yaml", "topology.racks")),
    ],
)
def test_bad_topology(
    topology: str, told: tuple[str, ...], skewed: Any, run_cli: Any, tmp_path: Path, out: Path
) -> None:
    """Of a cluster file whose topology cannot be, the key is named and nothing is written."""
    path = tmp_path / "cluster.yaml"
    path.write_text(f"num_nodes: 4\ngpus_per_node: 1\ntopology: {topology}\n")
    refused(run_cli("solve", skewed.folder, "-o", out / "p.json", "--cluster", path), *told)
    assert files(out) == set()


@pytest.mark.parametrize("command", ["split", "synth"])
def test_bad_seeds_of_the_traces_commands(command: str, skewed: Any, run_cli: Any, out: Path) -> None:
    arguments = {
        "split": (skewed.folder,),
        "synth": ("--layers", 1, "--experts", 8, "--top-k", 2, "--tokens", 50, "--requests", 2),
    }[command]
    refused(run_cli("traces", command, *arguments, "-o", out / "new", "--seed", -1), "seed")
    assert files(out) == set()


@pytest.mark.parametrize("share", [0, 1, 1.5, -1, "nan"])
def test_bad_split(share: object, skewed: Any, run_cli: Any, out: Path) -> None:
    refused(run_cli("traces", "split", skewed.folder, "-o", out / "new", "--holdout", share), "holdout=")
    assert files(out) == set()
