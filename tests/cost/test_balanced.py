"""`min-nodes-balanced`: the sends of `min-nodes`, the loads of the stated rule, and better balance for it."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from placement import Cluster, Model, Options, Placement, evaluate, open_trace
from placement.cost.kernel_balanced import DECAY, WINDOW
from placement.solvers.layer_problems import layer_problem
from placement.support.hash64 import mixed_order
from placement.workload.count import count

NODES, GPUS, SLOTS, EXPERTS, TOP_K, LAYERS = 3, 2, 3, 12, 3, 2


def placement(seed: int) -> Placement:
    rng = np.random.default_rng(seed)
    rows = []
    while len(rows) < LAYERS:
        row = rng.permutation(
            np.concatenate([np.arange(EXPERTS), rng.integers(0, EXPERTS, NODES * GPUS * SLOTS - EXPERTS)])
        )
        if all(len(set(held)) == SLOTS for held in row.reshape(-1, SLOTS).tolist()):
            rows.append(row)
    model = Model(name="m", layer_ids=tuple(range(LAYERS)), num_experts=EXPERTS, top_k=TOP_K)
    return Placement(model=model, num_nodes=NODES, gpus_per_node=GPUS, slots_per_gpu=SLOTS, phy2log_LP=np.stack(rows))


def by_the_rule(
    ids_TK: npt.NDArray[Any], row: npt.NDArray[Any], home_T: list[int], speed: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Load of every slot, token by token in plain Python."""
    price, window = np.zeros(NODES * GPUS), np.zeros(NODES * GPUS)
    load = np.zeros(len(row))
    rank = lambda slot: slot // SLOTS  # noqa: E731
    for number, (ids, home) in enumerate(zip(ids_TK.tolist(), home_T, strict=True), start=1):
        homes = range(NODES) if home < 0 else [home]
        for at in homes:
            experts = [e for e in ids if e >= 0]
            hosts = [{rank(p) // GPUS for p in np.flatnonzero(row == e)} for e in experts]
            size = next(
                n for n in range(NODES + 1) if any(_covers(hosts, at, c) for c in combinations(range(NODES), n))
            )
            best: tuple[float, list[int]] | None = None
            for cover in sorted(combinations(range(NODES), size)):
                if not _covers(hosts, at, cover) or at in cover:
                    continue
                copies = []
                for e in experts:
                    usable = [p for p in np.flatnonzero(row == e) if rank(p) // GPUS in {at, *cover}]
                    copies.append(min(usable, key=lambda p: (price[rank(p)], p)))
                total = sum(price[rank(p)] for p in copies)
                if best is None or total < best[0] - 1e-12:
                    best = (total, copies)
            assert best is not None
            for p in best[1]:
                load[p] += 1 / len(homes)
                window[rank(p)] += 1 / len(homes) / speed[rank(p)]
        if number % WINDOW == 0:
            price = DECAY * price + window
            window[:] = 0
    return load


def _covers(hosts: list[set[int]], home: int, cover: tuple[int, ...]) -> bool:
    return all(host & {home, *cover} for host in hosts)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("given_homes", [False, True])
@pytest.mark.parametrize("short", [None, 0.4])
def test_loads_are_those_of_the_rule(
    seed: int, given_homes: bool, short: float | None, tmp_path: Path, write_trace: Any
) -> None:
    """Over several shards and windows, in mixed order, random and given homes, unequal speeds; ties fall either way.

    Where sets are short, one that is empty counts as a token of the window.
    """
    sizes = {"num_layers": LAYERS, "num_experts": EXPERTS, "top_k": TOP_K, "tokens": 700, "requests": 5}
    written = write_trace(tmp_path / "t", **sizes, seed=seed, short=short)
    trace = open_trace(written.folder)
    ids_LTK = np.concatenate([[block.ids_TK(layer) for layer in range(LAYERS)] for block in trace.blocks()], axis=1)
    request_T = np.concatenate([block.request_T for block in trace.blocks()])
    rng = np.random.default_rng(seed)
    home_Q = rng.integers(-1, NODES, len(trace.requests)).astype(np.int32) if given_homes else None
    order = mixed_order(len(request_T))
    home_T = [-1] * len(request_T) if home_Q is None else home_Q[request_T[order]].tolist()
    speeds = tuple(rng.uniform(0.5, 2, NODES * GPUS).tolist())
    cluster = Cluster(num_nodes=NODES, gpus_per_node=GPUS, slots_per_gpu=SLOTS, gpu_speeds=speeds)
    chosen = placement(seed)
    balanced, even = (
        evaluate(trace, [chosen], cluster=cluster, replica_choice=choice, home_Q=home_Q)[0]
        for choice in ("min-nodes-balanced", "min-nodes")
    )
    assert balanced.node_sends_L == pytest.approx(even.node_sends_L)
    for layer in range(LAYERS):
        want = by_the_rule(ids_LTK[layer][order], chosen.phy2log_LP[layer], home_T, cluster.speed_G())
        assert balanced.load_LP[layer].sum() == pytest.approx((ids_LTK[layer] >= 0).sum())
        assert balanced.load_LP[layer] == pytest.approx(want, abs=1e-9)


def test_balance_is_better_where_there_is_a_choice(tmp_path: Path, write_trace: Any) -> None:
    """Over many maps the most loaded GPU has less to do than with an even choice."""
    trace = open_trace(
        write_trace(tmp_path / "t", num_layers=LAYERS, num_experts=EXPERTS, top_k=TOP_K, tokens=4000, requests=5).folder
    )
    maps = [placement(seed) for seed in range(8)]
    balanced, even = (
        np.mean([e.rank_imbalance_L() for e in evaluate(trace, maps, replica_choice=choice)])
        for choice in ("min-nodes-balanced", "min-nodes")
    )
    assert balanced < even - 0.02


def test_score_is_the_rule_on_the_sample(tmp_path: Path, write_trace: Any) -> None:
    """A solver judges by the loads that an evaluation finds, whatever the order of the tokens that were sampled."""
    written = write_trace(
        tmp_path / "t", num_layers=LAYERS, num_experts=EXPERTS, top_k=TOP_K, tokens=6000, requests=5, seed=1
    )
    trace = open_trace(written.folder)
    cluster = Cluster(num_nodes=NODES, gpus_per_node=GPUS, slots_per_gpu=SLOTS)
    scores = []
    for choice in ("min-nodes", "min-nodes-balanced"):
        workload = count(trace)
        problem = layer_problem(workload, cluster, Options(replica_choice=choice), 0)
        scores += [(problem.score(placement(seed).phy2log_LP[0]), placement(seed)) for seed in range(6)]
    for (even, chosen), (balanced, _) in zip(scores[:6], scores[6:], strict=True):
        measured = evaluate(trace, [chosen], replica_choice="min-nodes-balanced")[0]
        assert balanced.sends == pytest.approx(even.sends)
        assert balanced.imbalance == pytest.approx(measured.rank_imbalance_L()[0], abs=0.01)
    assert np.mean([b.imbalance for b, _ in scores[6:]]) < np.mean([e.imbalance for e, _ in scores[:6]]) - 0.02
    reversed_order = replace(workload, sample_ids_SLK=workload.sample_ids_SLK[::-1].copy())
    again = layer_problem(reversed_order, cluster, Options(replica_choice="min-nodes-balanced"), 0)
    assert again.score(placement(0).phy2log_LP[0]) == scores[6][0]
