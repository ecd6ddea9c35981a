"""A fleet simulated: how many tokens a map needs, and whether EP groups of one fleet need maps of their own.

`fleet.py TRACE [SEED ...]`. Half of the requests are what the fleet will serve; of the others a growing share is
recorded. Then the fleet's EP groups get their requests at random, or each a mix of domains of its own, and the map
that was fitted to all of them is measured on each beside one that was fitted to its own recorded requests.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from machine import describe_machine, run_script, trace_and_seeds

from placement import Cluster, Options, Placement, Trace
from placement.cost.evaluation import evaluate
from placement.pipeline.solve_layers import solve_workload
from placement.support.parallel import make_executor
from placement.traces.split import split_requests
from placement.workload.count import count

CLUSTER = {"num_nodes": 4, "gpus_per_node": 2}
SHARES = (0.01, 0.03, 0.1, 0.3, 1.0)
GROUPS = 8
SEEDS = range(100, 103)
CONCENTRATION = 0.5  # of the Dirichlet mixes of domains: most of a group's traffic is of a few of them


def solved(trace: Trace, cluster: Cluster, seed: int) -> dict[str, Placement]:
    options = Options(bound="none", seed=seed)
    with make_executor(None) as executor:
        workload = count(trace, seed=seed, executor=executor)
        maps, _ = solve_workload(workload, cluster, options, baselines=("linear", "eplb"), executor=executor)
    return dict(maps)


def figures(trace: Trace, cluster: Cluster, maps: list[Placement]) -> list[tuple[float, float]]:
    """Mean sends and imbalance over the layers, of each map."""
    return [
        (float(one.sends_L.mean()), float(one.rank_imbalance_L().mean()))
        for one in evaluate(trace, maps, cluster=cluster)
    ]


def share_of(trace: Trace, share: float, seed: int) -> Trace:
    """Whole requests, at random, until the share of the tokens is reached; at least one."""
    tokens_Q = trace.tokens_Q()
    order = np.random.default_rng(seed).permutation(np.flatnonzero(tokens_Q))
    before = np.cumsum(tokens_Q[order]) - tokens_Q[order]
    chosen = np.zeros(len(trace.requests), dtype=bool)
    chosen[order[before < share * tokens_Q.sum()]] = True
    return trace.select(chosen)


def groups(trace: Trace, mixed: bool, seed: int) -> npt.NDArray[np.int64]:
    """The EP group that serves each request, int64 [Q]."""
    rng = np.random.default_rng(seed)
    if mixed:
        return rng.integers(GROUPS, size=len(trace.requests))
    domains = sorted({request.domain or "" for request in trace.requests})
    share_DG = rng.dirichlet([CONCENTRATION] * GROUPS, size=len(domains))
    return np.array([rng.choice(GROUPS, p=share_DG[domains.index(request.domain or "")]) for request in trace.requests])


def tokens_needed(recorded: Trace, served: Trace, cluster: Cluster, seed: int) -> None:
    for share in SHARES:
        part = share_of(recorded, share, seed)
        maps = solved(part, cluster, seed)
        (linear, _), (eplb, eplb_imb), (ours, imb) = figures(served, cluster, list(maps.values()))
        print(
            f"| {seed} | {share:.0%} | {int(part.tokens_Q().sum()):,} | {ours:.3f} | {ours / eplb - 1:+.1%} | "
            f"{ours / linear - 1:+.1%} | {imb:.3f} | {eplb_imb:.3f} |",
            flush=True,
        )


def own_maps(trace: Trace, recorded: Trace, served: Trace, cluster: Cluster, seed: int) -> None:
    whole = solved(recorded, cluster, seed)["auto"]
    for mixed in (True, False):
        group_Q = groups(trace, mixed, seed)
        one_W, own_W, tokens_W = [], [], []
        for group in range(GROUPS):
            sides = [side.select((group_Q == group) & selected(side)) for side in (recorded, served)]
            if any(not side.tokens_Q().any() for side in sides):
                continue
            own = solved(sides[0], cluster, seed)["auto"]
            one, mine = figures(sides[1], cluster, [whole, own])
            one_W.append(one)
            own_W.append(mine)
            tokens_W.append(int(sides[1].tokens_Q().sum()))
        one, mine = (np.average(np.array(rows), axis=0, weights=tokens_W) for rows in (one_W, own_W))
        print(
            f"| {seed} | {'at random' if mixed else 'by domain'} | {len(tokens_W)} | {one[0]:.3f} | {mine[0]:.3f} | "
            f"{one[1]:.3f} | {mine[1]:.3f} |",
            flush=True,
        )


def selected(trace: Trace) -> npt.NDArray[np.bool_]:
    return np.ones(len(trace.requests), dtype=bool) if trace.selected_Q is None else trace.selected_Q


def main() -> None:
    trace, seeds = trace_and_seeds(__doc__, SEEDS)
    cluster = Cluster.fit(trace.model.num_experts, **CLUSTER)
    print(f"# A fleet, simulated\n\n{describe_machine()}, seeds {seeds}; {trace.model.name} on 4 nodes x 2 GPUs\n")
    sides = {seed: split_requests(trace, 0.5, seed) for seed in seeds}
    print("## Tokens that a map needs, measured on the other half of the requests\n")
    print("| seed | recorded | tokens | sends | to eplb | to linear | imbalance | eplb's |\n" + "|---" * 8 + "|")
    for seed, (recorded, served) in sides.items():
        tokens_needed(recorded, served, cluster, seed)
    print(f"\n## One map for all of {GROUPS} EP groups, or one for each\n")
    print("| seed | requests to groups | groups | sends: one | own | imbalance: one | own |\n" + "|---" * 7 + "|")
    for seed, (recorded, served) in sides.items():
        own_maps(trace, recorded, served, cluster, seed)


if __name__ == "__main__":
    run_script(main)
