"""What a request sends from each home is what the exact evaluation of that request at that home says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from placement import Cluster, Placement, evaluate, open_trace
from placement.core.topology import Topology
from placement.errors import OptionError
from placement.grouping.home_costs import home_costs
from placement.grouping.requests import requests_of
from placement.traces.cut import cut_requests

WriteTrace = Callable[..., Any]
RANDOM_LINKS = Topology(rank_cost=tuple(map(tuple, np.random.default_rng(1).uniform(0, 3, (6, 6)).tolist())))
SAME_NODE = np.arange(6)[:, None] // 2 == np.arange(6) // 2


@pytest.mark.parametrize("transport", ["node", "rank", "assignment"])
@pytest.mark.parametrize(
    ("slots", "choice"),
    [(2, "min-nodes"), (3, "min-nodes"), (3, "min-nodes-balanced"), (3, "local-first"), (3, "uniform")],
)
@pytest.mark.parametrize("topology", [Topology(), RANDOM_LINKS])
@pytest.mark.parametrize("short", [None, 0.3])
def test_costs_are_those_of_the_evaluation(
    tmp_path: Path,
    write_trace: WriteTrace,
    transport: str,
    slots: int,
    choice: str,
    topology: Topology,
    short: float | None,
) -> None:
    """Checked for every request, layer and home; with copies, `rank` is only counted by nodes and is left out."""
    uneven = topology != Topology()
    if slots == 3 and (transport == "rank" or (transport == "assignment" and uneven)):
        pytest.skip("with several copies the cost of ranks is an estimate")
    if choice == "min-nodes-balanced" and (transport == "assignment" or uneven):
        pytest.skip("its ties are broken by load, so only distinct nodes over links that are alike are known")
    if uneven and transport == "node":  # which refuses links within a node
        topology = Topology(rank_cost=tuple(map(tuple, np.where(SAME_NODE, 0.0, topology.rank_cost).tolist())))
    written = write_trace(tmp_path / "t", num_experts=12, top_k=4, tokens=80, requests=5, seed=3, short=short)
    trace = open_trace(written.folder)
    cluster = Cluster(num_nodes=3, gpus_per_node=2, slots_per_gpu=slots, topology=topology)
    rng = np.random.default_rng(5)
    rows = []
    for _ in range(trace.model.num_layers):
        held = [list(rank) for rank in rng.permutation(12).reshape(6, 2)]
        for rank in held:
            rank += rng.permutation([e for e in range(12) if e not in rank])[: slots - 2].tolist()
        rows.append(np.array(held).ravel())
    placement = Placement(
        model=trace.model, num_nodes=3, gpus_per_node=2, slots_per_gpu=slots, phy2log_LP=np.array(rows)
    )
    requests = requests_of(trace)
    costs = home_costs(trace, requests, placement, cluster, replica_choice=choice, transport=transport)
    assert costs.tokens_Q.tolist() == np.bincount(written.request_T, minlength=5).tolist()
    for q in range(5):
        alone = trace.select(np.arange(5) == q)
        for node in range(3):
            homes = np.full(5, node, dtype=np.int32)
            answer = evaluate(
                alone, [placement], cluster=cluster, replica_choice=choice, transport=transport, home_Q=homes
            )[0]
            assert costs.cost_LQN[:, q, node] == pytest.approx(answer.sends_L * costs.tokens_Q[q], abs=1e-9)


@pytest.mark.parametrize("short", [None, 0.3])
def test_what_is_saved_adds_up(tmp_path: Path, write_trace: WriteTrace, short: float | None) -> None:
    """What the router is fitted on, saved sends by expert and home, sums to what each home saves over all tokens."""
    written = write_trace(tmp_path / "t", num_experts=8, top_k=3, tokens=50, requests=4, short=short)
    trace = open_trace(written.folder)
    cluster = Cluster(num_nodes=4, gpus_per_node=1, slots_per_gpu=2)
    rows = np.stack([np.random.default_rng(n).permutation(8) for n in range(trace.model.num_layers)])
    placement = Placement(model=trace.model, num_nodes=4, gpus_per_node=1, slots_per_gpu=2, phy2log_LP=rows)
    costs = home_costs(trace, requests_of(trace), placement, cluster)
    saved_LN = costs.saved_LEN.sum(axis=1)
    # a token of 3 experts on 4 nodes always has a home that hosts none: it sends `connectivity`, others one less
    node_LE = np.argsort(rows, axis=1) // 2
    for layer in range(trace.model.num_layers):
        visited = written.ids_LTK[layer]
        touched = np.where(visited >= 0, node_LE[layer][visited], -1)
        assert costs.load_LE[layer].tolist() == [int((visited == e).sum()) for e in range(8)]
        visits_N = np.array([(touched == node).any(axis=1).sum() for node in range(4)])
        assert saved_LN[layer] == pytest.approx(visits_N)


def test_entries_with_the_same_id_are_one_request(tmp_path: Path, write_trace: WriteTrace) -> None:
    """Two folders with the same request ids: costs add up, and a request has one home."""
    for name in ("a", "b"):
        write_trace(tmp_path / name, num_experts=8, tokens=30, requests=3, seed=ord(name))
    both, one = open_trace(tmp_path), open_trace(tmp_path / "a")
    requests = requests_of(both)
    assert requests.ids == ("r0", "r1", "r2")
    cluster = Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=2)
    rows = np.tile(np.arange(8), (2, 1))
    placement = Placement(model=both.model, num_nodes=2, gpus_per_node=2, slots_per_gpu=2, phy2log_LP=rows)
    whole = home_costs(both, requests, placement, cluster)
    first = home_costs(one, requests_of(one), placement, cluster)
    second = home_costs(open_trace(tmp_path / "b"), requests_of(one), placement, cluster)
    assert whole.cost_QN == pytest.approx(first.cost_QN + second.cost_QN)


def test_allgather_has_no_homes(tmp_path: Path, write_trace: WriteTrace) -> None:
    trace = open_trace(write_trace(tmp_path / "t").folder)
    cluster = Cluster(num_nodes=2, gpus_per_node=1, slots_per_gpu=4)
    placement = Placement(
        model=trace.model, num_nodes=2, gpus_per_node=1, slots_per_gpu=4, phy2log_LP=np.tile(np.arange(8), (2, 1))
    )
    with pytest.raises(OptionError, match="allgather"):
        home_costs(trace, requests_of(trace), placement, cluster, transport="allgather")


@pytest.mark.parametrize("share", ["0.25", "0.5", "0.01", "0.99"])
def test_a_cut_parts_every_request(tmp_path: Path, write_trace: WriteTrace, share: str) -> None:
    """The first part has that share of each request's positions, rounded up, and the two parts make the whole."""
    written = write_trace(tmp_path / "t", tokens=67, requests=5, num_shards=3)
    trace = open_trace(written.folder)
    first, rest = cut_requests(trace, share)
    tokens_Q = trace.tokens_Q()
    assert first.tokens_Q().tolist() == np.ceil(tokens_Q * float(share)).astype(int).tolist()
    assert (first.tokens_Q() + rest.tokens_Q()).tolist() == tokens_Q.tolist()
    for part, low in ((first, True), (rest, False)):
        for block in part.blocks():
            limit_Q = np.ceil(tokens_Q * float(share))
            inside = block.column_T("position") < limit_Q[block.request_T]
            assert (inside == low).all()


@pytest.mark.parametrize("bad", ["0", "1", "-0.5", "nan", "decode", ""])
def test_bad_cuts(tmp_path: Path, write_trace: WriteTrace, bad: str) -> None:
    trace = open_trace(write_trace(tmp_path / "t").folder)
    with pytest.raises(OptionError, match="prefill"):
        cut_requests(trace, bad)
