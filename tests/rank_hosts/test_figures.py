"""Sends, prices, copies and tables of scattered ranks are those of the hosts where the engine's ranks are."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scattered_ranks import HOSTS, LISTS, cluster_with, random_map, rows_of

from placement import Options, solve
from placement.core.migration import migration_plan
from placement.core.topology import Level, Topology
from placement.cost.evaluation import evaluate
from placement.errors import MapError
from placement.exporters import get_exporter
from placement.report.solution.expert_maps import layer_map
from placement.traces.trace import open_trace


@pytest.mark.parametrize("hosts", LISTS.values(), ids=LISTS)
def test_sends_count_the_hosts_of_the_engine(hosts: tuple[int, ...], tmp_path: Path, write_trace: Any) -> None:
    """Without copies, the hosts that serve a token follow from the engine's map and the list; homes are random."""
    written = write_trace(tmp_path / "t", num_experts=16, top_k=3, tokens=200)
    placement = random_map(cluster_with(hosts), experts=16)
    rows_LP, nodes = rows_of("native", get_exporter("native").export(placement).content), max(hosts) + 1
    (answer,) = evaluate(open_trace([written.folder]), [placement])
    for layer, row in enumerate(rows_LP):
        host_of = {int(expert): hosts[slot // 2] for slot, expert in enumerate(row)}
        visited = [len({host_of[int(e)] for e in experts}) for experts in written.ids_LTK[layer]]
        assert answer.node_sends_L[layer] == pytest.approx(np.mean(visited) * (nodes - 1) / nodes)


@pytest.mark.parametrize("solver", ["linear", "round-robin"])
def test_baselines_are_what_the_engine_does_by_itself(solver: str, tmp_path: Path, write_trace: Any) -> None:
    """An engine that is told nothing goes by its own numbers of ranks, wherever these lie."""
    trace = open_trace([write_trace(tmp_path / "t", num_experts=16).folder])
    options = Options(solver=solver, bound="none")
    told, plain = (
        solve(trace, replace(cluster_with(HOSTS), rank_hosts=hosts), options, holdout=0.0, workers=1).placement
        for hosts in (HOSTS, ())
    )
    assert np.array_equal(told.engine_LP(), plain.phy2log_LP)
    if solver == "linear":
        assert np.array_equal(told.engine_LP()[0], np.arange(16))


def test_prices_are_those_of_the_engines_ranks() -> None:
    """`rank_cost` is by the engine's numbers, as a benchmark of its ranks gives it; levels and nodes go by node."""
    rng = np.random.default_rng(0)
    cost_GG = rng.uniform(1, 3, (8, 8))
    together = np.array(HOSTS)[:, None] == np.array(HOSTS)
    cost_GG[together] = 0
    cluster = cluster_with(HOSTS, topology=Topology(rank_cost=tuple(map(tuple, cost_GG.tolist()))))
    ranks_N = [[rank for rank in range(8) if HOSTS[rank] == node] for node in range(2)]
    for home in range(2):
        flat = [rank for ranks in ranks_N for rank in ranks]
        wanted = [np.mean([cost_GG[a, b] for a in ranks_N[home]]) for b in flat]
        np.testing.assert_allclose(cluster.rank_cost_NG()[home], wanted)
        rails = np.mean([cost_GG[a, b] for a, b in zip(ranks_N[home], ranks_N[1 - home], strict=True)])
        assert cluster.node_cost_NN()[home, 1 - home] == pytest.approx(rails)
    racks = Topology(levels=(Level(name="rack", nodes=2, gbps=100.0),), node_gbps=(400.0, 400.0, 50.0, 400.0))
    dealt = cluster_with((0, 1, 2, 3, 0, 1, 2, 3), topology=racks)
    assert np.array_equal(dealt.node_cost_NN(), replace(dealt, rank_hosts=()).node_cost_NN())


def test_copies_to_make_are_named_by_the_engines_slots_and_ranks() -> None:
    """Whoever follows the plan on the engine's own map has the new map, and reads where the expert is."""
    cluster = cluster_with(HOSTS)
    old, new = random_map(cluster, 1), random_map(cluster, 2)
    now_LP = rows_of("native", get_exporter("native").export(old).content)
    before_LP, plan = now_LP.copy(), migration_plan(old, new, cluster)
    document = plan.document()
    assert document["columns"] == ["layer_id", "slot", "expert", "from_rank", "to_rank"]
    crossing = 0
    for layer, slot, expert, source, target in document["copies"]:
        assert expert in before_LP[layer, 2 * source : 2 * source + 2] and slot // 2 == target
        crossing += HOSTS[source] != HOSTS[target]
        now_LP[layer, slot] = expert
    assert np.array_equal(now_LP, rows_of("native", get_exporter("native").export(new).content))
    assert document["bytes_between_nodes"] == crossing * cluster.expert_bytes > 0


def test_shown_ranks_are_the_engines() -> None:
    """A table of a node lists the engine's ranks that lie there."""
    placement = random_map(cluster_with(HOSTS))
    shown = layer_map(placement, 0, np.ones(8), np.ones(16), 0.0, 1.0)
    assert [[row.rank for row in node] for node in shown.nodes] == [[0, 4, 6, 7], [1, 2, 3, 5]]
    rows_LP = placement.engine_LP()
    for row in (row for node in shown.nodes for row in node):
        assert [cell.expert for cell in row.cells] == sorted(rows_LP[0, 2 * row.rank : 2 * row.rank + 2].tolist())
    broken = placement.engine_LP().copy()
    broken[1, 9] = 99
    with pytest.raises(MapError, match="layer 1: slot 9 holds id 99"):
        replace(placement, phy2log_LP=placement.from_engine(broken))


def test_prices_within_a_node_are_for_transports_by_rank(
    tmp_path: Path, write_trace: Any, run_cli: Callable[..., Any]
) -> None:
    """Where blocks of consecutive ranks are no nodes, a matrix says so: a transport by node refuses the matrix, one by
    rank counts what the list of hosts counts."""
    folder = write_trace(tmp_path / "t", num_experts=32, top_k=4, tokens=300, requests=10).folder
    costs = (np.array(HOSTS)[:, None] != np.array(HOSTS)).astype(int).tolist()
    matrix, hosts = tmp_path / "matrix.yaml", tmp_path / "hosts.yaml"
    matrix.write_text(f"{{num_nodes: 2, gpus_per_node: 4, topology: {{rank_cost: {costs}}}}}")
    hosts.write_text(f"{{num_nodes: 2, gpus_per_node: 4, rank_hosts: {list(HOSTS)}}}")

    def linear(path: Path, transport: str) -> Any:
        how = ("--transport", transport, "--solver", "linear", "--bound", "none", "--holdout", 0, "--json")
        return run_cli("solve", folder, "--cluster", path, *how, "-o", tmp_path / f"{path.stem}.json")

    sends = [
        json.loads(linear(path, "rank").stdout)["evaluation"]["train"]["linear"]["sends_per_token"]
        for path in (matrix, hosts)
    ]
    assert sends[0] == pytest.approx(sends[1])
    for transport in ("node", "allgather"):
        result = linear(matrix, transport)
        assert result.code == 2 and "rank_cost from rank 0 to 1 is 1; both are of one node" in result.stderr
        assert linear(hosts, transport).code == 0
    for command in (
        ("evaluate", folder, "--map", tmp_path / "matrix.json"),
        ("advise", folder, "--cluster", matrix),
        ("group", folder, "--cluster", matrix, "-o", tmp_path / "g.json"),
        ("front", folder, "--cluster", matrix, "-o", tmp_path / "f"),
    ):
        result = run_cli(*command, "--transport", "node")
        assert result.code == 2 and "both are of one node" in result.stderr, command
    result = run_cli("advise", folder, "--cluster", matrix, "--transport", "rank", "--work-limit", 50)
    assert result.code == 0 and "node is left out" in " ".join(result.stdout.split())
