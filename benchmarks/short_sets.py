"""What places that lack an expert cost the map: fitted on a real trace with and without them, measured on the whole.

    python benchmarks/short_sets.py TRACE [SEED ...]

A share of the places of the trace's sets is removed at random, as a capacity drops them. Maps are fitted to that trace
and to the full one, with the same requests held out, and measured on the held-out requests of the full one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np
from machine import describe_machine, run_script, trace_and_seeds

from placement import Cluster, Options, Trace, evaluate, open_trace, solve
from placement.traces.format import id_dtype
from placement.traces.split import split_requests
from placement.traces.storage.shard_writer import TokenPiece
from placement.traces.write import write_trace

SEEDS = range(100, 103)
REMOVED, HOLDOUT = 0.03, 0.3
NODES, GPUS = 4, 2
CASES = ((0, "min-nodes"), (8, "min-nodes"), (8, "uniform"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Means over layers on the held-out requests of the full trace, of the map fitted to it and to the short one."""

    full_sends: float
    short_sends: float
    full_imbalance: float
    short_imbalance: float

    def changes(self) -> tuple[float, float]:
        """By what share the short trace's map is worse: (sends, imbalance)."""
        return self.short_sends / self.full_sends - 1, self.short_imbalance / self.full_imbalance - 1


def write_without(trace: Trace, folder: Path, share: float, seed: int = 0) -> Trace:
    """A copy of `trace` whose sets lack that share of their places."""
    rng = np.random.default_rng(seed)

    def pieces() -> Iterator[TokenPiece]:
        for block in trace.blocks():
            ids_LTK = np.stack([block.ids_TK(layer) for layer in range(trace.model.num_layers)])
            gone_LTK = rng.random(ids_LTK.shape) < share
            order_LTK = np.argsort(gone_LTK, axis=2, kind="stable")
            short_LTK = np.where(gone_LTK, -1, ids_LTK.astype(id_dtype(trace.model.num_experts, short=True)))
            yield TokenPiece(
                ids_LTK=np.take_along_axis(short_LTK, order_LTK, axis=2).astype(short_LTK.dtype),
                request_T=block.request_T,
                position_T=block.column_T("position"),
                phase_T=block.column_T("phase"),
            )

    write_trace(folder, pieces(), model=trace.model, requests=trace.requests)
    return open_trace(folder)


def compare(full: Trace, short: Trace, redundant: int, choice: str, seed: int) -> Outcome:
    """Fit on both, measure on the requests of the full trace that both have held out."""
    cluster = Cluster.fit(full.model.num_experts, num_nodes=NODES, gpus_per_node=GPUS, redundant_experts=redundant)
    options = Options(seed=seed, replica_choice=choice, bound="none")
    _, held_out = split_requests(full, HOLDOUT, seed)
    maps = [solve(trace, cluster, options, holdout=HOLDOUT).placement for trace in (full, short)]
    measured = evaluate(held_out, maps, cluster=cluster, replica_choice=choice)
    full_sends, short_sends = (float(one.node_sends_L.mean()) for one in measured)
    full_imbalance, short_imbalance = (float(one.rank_imbalance_L().mean()) for one in measured)
    return Outcome(
        full_sends=full_sends,
        short_sends=short_sends,
        full_imbalance=full_imbalance,
        short_imbalance=short_imbalance,
    )


def main() -> None:
    full, seeds = trace_and_seeds(__doc__, SEEDS)
    model = full.model
    print(f"# {model.name} without {REMOVED:.0%} of its places\n")
    print(f"{describe_machine()}; split seeds {seeds}, {HOLDOUT:.0%} of the requests held out, {NODES} nodes x {GPUS} ")
    print("GPUs; means over layers and splits, on the held-out requests of the full trace\n")
    print("| redundant | replica choice | sends: full | short | change | rank imbalance: full | short | change |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        short = write_without(full, Path(folder), REMOVED)
        for redundant, choice in CASES:
            rows = [compare(full, short, redundant, choice, seed) for seed in seeds]
            sends, imbalance = (mean(change) for change in zip(*(row.changes() for row in rows), strict=True))
            print(
                f"| {redundant} | {choice} | {mean(row.full_sends for row in rows):.4f} | "
                f"{mean(row.short_sends for row in rows):.4f} | {sends:+.2%} | "
                f"{mean(row.full_imbalance for row in rows):.4f} | {mean(row.short_imbalance for row in rows):.4f} | "
                f"{imbalance:+.2%} |",
                flush=True,
            )


if __name__ == "__main__":
    run_script(main)
