"""What `placement watch` gains where domains of a real trace arrive in turn, beside other ways of re-planning.

    python benchmarks/watch.py TRACE [SEED ...]

The requests of each family of domains are halved: one half is recorded, the other measures; no map is measured on
requests that it was fitted to. Families take turns in an order drawn by the seed. In each step of a turn some
recorded requests arrive, the policies decide, and the map in use then serves the family's other half until the next
step. All policies begin with a map fitted to the first window.

    never   keeps that map
    always  goes to the best map for the window at every step, or once a full window has passed
    oracle  knows when families come and goes at once to a map fitted to all recorded requests of the family
    watch   `Planner`, with the options below

Gain: modelled step time less than with never, summed over steps. Moves: copies of an expert's weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from machine import describe_machine, run_script, trace_and_seeds

from placement import Cluster, Options, Placement, Trace, Workload, count, evaluate, migration_plan
from placement.analysis.watch import Planner, Window
from placement.core.choices import HORIZON_STEPS
from placement.pipeline.solve_layers import solve_workload
from placement.support.parallel import make_executor

NODES, GPUS = 4, 2
PHASE_STEPS, STEP_TOKENS, WINDOW_STEPS, ROUNDS = 20, 2048, 4, 1
FEWEST_REQUESTS = 20
OPTIONS = Options(bound="none", objective="time", work_limit=20_000)
SEEDS = (0,)


@dataclass(kw_only=True)
class Policy:
    """The map of every step, and what getting there took."""

    placement: Placement
    used: list[Placement] = field(default_factory=list)
    moves: int = 0
    cost_ms: float = 0.0
    changes: int = 0

    def go(self, new: Placement, cluster: Cluster) -> None:
        plan = migration_plan(self.placement, new, cluster)
        self.moves += plan.num_moves
        self.cost_ms += plan.time_ms()
        self.changes += plan.num_moves > 0
        self.placement = new


def main() -> None:
    trace, seeds = trace_and_seeds(__doc__, SEEDS)
    cluster = Cluster.fit(trace.model.num_experts, num_nodes=NODES, gpus_per_node=GPUS)
    print(f"# {trace.model.name}: following domains that arrive in turn\n")
    print(
        f"{describe_machine()}; {NODES} nodes x {GPUS} GPUs; windows of {WINDOW_STEPS} steps of {STEP_TOKENS} tokens,"
    )
    print(
        f"{PHASE_STEPS} steps a turn, {ROUNDS} rounds; a change has to pay in {HORIZON_STEPS:,} steps of the engine\n"
    )
    print("| seed | order | policy | gain, us a step | of the oracle's | moves | of always' | of a window's ", end="")
    print("| changes | copies, ms |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for seed in seeds:
        for line in simulate(trace, cluster, seed):
            print(line, flush=True)


def simulate(trace: Trace, cluster: Cluster, seed: int) -> list[str]:
    """The rows of one order of domains."""
    rng = np.random.default_rng(seed)
    recorded, measured = _halved_families(trace, rng)
    order = [str(name) for name in rng.permutation(list(recorded))] * ROUNDS
    streams = {name: _stream(trace, requests, rng) for name, requests in recorded.items()}
    planner: Planner | None = None
    whole, since = Window(size_tokens=WINDOW_STEPS * STEP_TOKENS), 0
    window = whole
    policies: dict[str, Policy] = {}
    domain_of: list[str] = []
    with make_executor(2) as executor:

        def solved(workload: Workload, current: Placement | None) -> Placement:
            return solve_workload(workload, cluster, OPTIONS, current=current, executor=executor)[0][OPTIONS.solver]

        known = {name: count(trace.select(np.isin(np.arange(len(trace.requests)), r))) for name, r in recorded.items()}
        for turn, name in enumerate(order):
            for step in range(PHASE_STEPS + (WINDOW_STEPS if turn == 0 else 0)):
                piece = next(streams[name])
                whole, window = whole.push(piece), window.push(piece)
                now = whole.workload()
                if planner is None:
                    if len(whole.buckets) < WINDOW_STEPS:
                        continue
                    first = solved(now, None)
                    planner = Planner(cluster=cluster, current=first, reference=now, options=OPTIONS)
                    policies = {
                        policy: Policy(placement=first)
                        for policy in ("never", "always", "by window", "oracle", "watch")
                    }
                else:
                    policies["always"].go(solved(now, policies["always"].placement), cluster)
                    since = (since + 1) % WINDOW_STEPS
                    if since == 0:
                        policies["by window"].go(solved(now, policies["by window"].placement), cluster)
                    decision = planner.step(window)
                    planner, window = planner.after(decision), decision.window
                    policies["watch"].go(planner.current, cluster)
                if step == 0 or not domain_of:
                    policies["oracle"].go(solved(known[name], policies["oracle"].placement), cluster)
                domain_of.append(name)
                for policy in policies.values():
                    policy.used.append(policy.placement)
    gains = _gains(trace, cluster, policies, domain_of, measured)
    oracle, always, by_window = gains["oracle"], policies["always"].moves, policies["by window"].moves
    return [
        f"| {seed} | {' '.join(order[: len(recorded)])} | {name} | {gains[name] / len(domain_of):,.1f} "
        f"| {gains[name] / oracle:.1%} | {one.moves:,} | {one.moves / always:.1%} | {one.moves / by_window:.1%} "
        f"| {one.changes} | {one.cost_ms:,.0f} |"
        for name, one in policies.items()
    ]


def _halved_families(
    trace: Trace, rng: np.random.Generator
) -> tuple[dict[str, npt.NDArray[np.int64]], dict[str, npt.NDArray[np.int64]]]:
    family_Q = np.array([(request.domain or "").split("_")[0] for request in trace.requests])
    names, sizes = np.unique(family_Q, return_counts=True)
    recorded, measured = {}, {}
    for name in names[sizes >= FEWEST_REQUESTS].tolist():
        mine = rng.permutation(np.flatnonzero(family_Q == name))
        recorded[name], measured[name] = mine[::2], mine[1::2]
    return recorded, measured


def _stream(trace: Trace, requests: npt.NDArray[np.int64], rng: np.random.Generator) -> Iterator[Workload]:
    """Workloads of STEP_TOKENS or a little more, for ever: requests shuffled again and again, each time as new ones."""
    tokens_Q = trace.tokens_Q()
    serial = 0
    chosen: list[int] = []
    while True:
        for request in rng.permutation(requests).tolist():
            if request in chosen:
                continue
            chosen.append(request)
            if tokens_Q[chosen].sum() < STEP_TOKENS:
                continue
            serial += 1
            renamed = tuple(one.model_copy(update={"id": f"{serial}/{one.id}"}) for one in trace.requests)
            selected_Q = np.isin(np.arange(len(trace.requests)), chosen)
            yield count(replace(trace, requests=renamed, selected_Q=selected_Q))
            chosen = []


def _gains(
    trace: Trace,
    cluster: Cluster,
    policies: dict[str, Policy],
    domain_of: list[str],
    measured: dict[str, npt.NDArray[np.int64]],
) -> dict[str, float]:
    """Microseconds that each policy saves over never, all steps together."""
    step_us: dict[tuple[str, bytes], float] = {}
    for name, requests in measured.items():
        steps = [i for i, domain in enumerate(domain_of) if domain == name]
        maps = {m.phy2log_LP.tobytes(): m for policy in policies.values() for m in (policy.used[i] for i in steps)}
        answers = evaluate(
            trace.select(np.isin(np.arange(len(trace.requests)), requests)), list(maps.values()), cluster=cluster
        )
        step_us |= {(name, key): one.summary()["step_time_us"] for key, one in zip(maps, answers, strict=True)}
    spent = {
        policy: sum(
            step_us[domain, used.phy2log_LP.tobytes()] for domain, used in zip(domain_of, one.used, strict=True)
        )
        for policy, one in policies.items()
    }
    return {policy: spent["never"] - value for policy, value in spent.items()}


if __name__ == "__main__":
    run_script(main)
