"""Placements on a real network of shaped links: bytes on the wire, communication time, step time.

python benchmarks/runtime/network.py TRACE [--mbit 200 0] [--hops hierarchical] [--redundant 0 8]

Every rank is a process with gloo in the network namespace of its node (`shaped_network.py`; root is needed). Maps and
homes come from training requests; what is replayed are the tokens of held-out requests after the first quarter, from
which homes are decided. All ways replay the same tokens, in turn at every step: other work on the machine hits all.

linear, eplb, auto  homes by length alone, so that every rank has as many tokens
grouped             placement and homes solved together
predicted           what `evaluate` says for these tokens, homes and row sizes; *counted*: the interfaces' counters
busiest             copies through the busiest direction of a link, step by step: no step ends before them; *of the
                    mean*: beside what there were if all links were alike
modelled            by the model of step times (docs/metrics.md): the *busiest direction alone* at the stated speed;
                    fitted to all ways; fitted to other ways, which is every second one
comm                dispatch and combine with nothing in between, from the first rank's start to the last one's end
step                the same with experts in between: all ranks share this machine's cores
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
import numpy as np
import torch
from machine import describe_machine, input_trace
from network_model import model_lines
from network_plan import Way, add_mesh_options, add_replay_options, plan
from shaped_network import shaped_network, why_not

from placement import open_trace
from placement.core.choices import BUSY_SHARE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=input_trace, help="folder of an expert-trace/1")
    parser.add_argument(
        "--mbit", type=float, nargs="+", default=[200.0], help="Mbit/s of every node's link; 0: unshaped"
    )
    parser.add_argument("--redundant", type=int, nargs="+", default=[0, 8], help="redundant experts of a layer")
    parser.add_argument(
        "--busy-share", type=float, nargs="+", default=[BUSY_SHARE], help="of the search; see Options.busy_share"
    )
    parser.add_argument("--no-experts", dest="with_experts", action="store_false", help="leave out step times")
    add_mesh_options(parser, gpus_per_node=2)
    add_replay_options(parser)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that what was started is ended
    if reason := why_not():
        raise SystemExit(f"skipped: {reason}")
    trace = open_trace(args.trace)
    print(
        f"# Shaped network: {trace.model.name} replayed, {args.hops}\n\n"
        f"{describe_machine()}, torch {torch.__version__}, gloo"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start = time.perf_counter()
        ways = plan(trace, args, folder)
        tokens = next(iter(ways.values())).predicted.num_tokens
        print(
            f"\n{args.nodes} nodes x {args.gpus_per_node} ranks, hidden size {args.hidden} in bf16, {tokens} held-out ",
            end="",
        )
        print(
            f"tokens in {args.steps} steps, {args.layers} of {trace.model.num_layers} layers, split seed {args.seed}; ",
            end="",
        )
        print(f"solved in {time.perf_counter() - start:.0f} s; load average {os.getloadavg()[0]:.1f}")
        for mbit in args.mbit:
            measured = run(folder, ways, args, mbit)
            print(f"\n## {f'{mbit:g} Mbit/s a node and direction' if mbit else 'Unshaped'}\n", flush=True)
            for line in table(ways, measured):
                print(line, flush=True)
            if mbit:
                print("\nDispatch and combine of each step, all layers, as modelled:\n")
                print("\n".join(model_lines(ways, step_times_us(ways, measured, args.steps), mbit)), flush=True)


def run(folder: Path, ways: dict[str, Way], args: argparse.Namespace, mbit: float) -> list[dict[str, Any]]:
    """What every rank measured; whatever happens, no process and no namespace is left."""
    job = {
        "nodes": args.nodes,
        "gpus_per_node": args.gpus_per_node,
        "hidden": args.hidden,
        "intermediate": args.intermediate,
        "hops": args.hops,
        "with_experts": args.with_experts,
        "layers": next(iter(ways.values())).placement.model.num_layers,
        "steps": args.steps,
        "ways": {
            name: {
                "trace": way.trace.name,
                "slots_per_gpu": way.placement.slots_per_gpu,
                "map": way.placement.phy2log_LP.tolist(),
            }
            for name, way in ways.items()
        },
    }
    return run_ranks(folder, job, Path(__file__).with_name("network_rank.py"), mbit)


def run_ranks(folder: Path, job: dict[str, Any], script: Path, mbit: float) -> list[dict[str, Any]]:
    """What the ranks of a job wrote, each in a process in the namespace of its node.

    Args:
        folder: Where the script finds `job.json`, and writes `rank0.json` and so on.
        job: What to do, `nodes` and `gpus_per_node` among it.
        script: What every rank runs.
        mbit: Mbit/s of every node's link; 0: unshaped.
    """
    (folder / "job.json").write_text(json.dumps(job))
    (folder / "store").unlink(missing_ok=True)
    ranks = range(job["nodes"] * job["gpus_per_node"])
    worker = [sys.executable, str(script), str(folder)]
    with shaped_network(job["nodes"], mbit) as network:
        processes = []
        try:
            for rank in ranks:
                env = {"RANK": str(rank), "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
                processes.append(network.start(rank // job["gpus_per_node"], worker, env))
            waiting = dict(enumerate(processes))
            while waiting:
                for rank, process in list(waiting.items()):
                    if process.poll() is not None:
                        del waiting[rank]
                        if process.returncode:
                            raise SystemExit(f"rank {rank} ended with status {process.returncode}")
                time.sleep(0.1)
        finally:
            for process in processes:
                process.kill()
                process.wait()
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in ranks]


def table(ways: dict[str, Way], measured: list[dict[str, Any]]) -> list[str]:
    """One row a way; ratios are to the first way and to the first with as many redundant experts."""
    per_node = len(measured) // next(iter(ways.values())).placement.num_nodes
    lines = [
        "| way | predicted, MB | counted, MB | counted / predicted | comm, ms: median [quartiles] | comm, s: all steps "
    ]
    with_experts = measured[0][next(iter(ways))][0]["step"] is not None
    lines[0] += "| of linear's | of linear's with as many slots | busiest, of the mean | busiest, of linear's |"
    lines[0] += " step, s: all steps | of linear's |" if with_experts else ""
    lines.append("|---" * (lines[0].count("|") - 1) + "|")
    totals: dict[str, tuple[float, float]] = {}
    busiest: dict[str, int] = {}
    for name, way in ways.items():
        rounds = [one[name] for one in measured]
        comm, step = spans_ms(rounds, "comm"), spans_ms(rounds, "step") if with_experts else []
        sent = sum(one["bytes"] for rank in rounds[::per_node] for one in rank)
        totals[name] = sum(comm), sum(step)
        busiest[name], mean = links([[one["copies_N"] for one in rank] for rank in rounds], per_node)
        plain, alike = next(iter(totals)), next(one for one in totals if one.split(", ")[1] == name.split(", ")[1])
        low, middle, high = statistics.quantiles(comm, n=4, method="inclusive")
        cells = [
            name,
            f"{way.predicted_bytes / 1e6:.1f}",
            f"{sent / 1e6:.1f}",
            f"{sent / way.predicted_bytes:.4f}",
            f"{middle:.0f} [{low:.0f}, {high:.0f}]",
            f"{sum(comm) / 1e3:.2f}",
            f"{sum(comm) / totals[plain][0]:.3f}",
            f"{sum(comm) / totals[alike][0]:.3f}",
            f"{busiest[name] / mean:.3f}",
            f"{busiest[name] / busiest[plain]:.3f}",
        ]
        if with_experts:
            cells += [f"{sum(step) / 1e3:.2f}", f"{sum(step) / totals[plain][1]:.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def spans_ms(rounds: list[list[dict[str, Any]]], what: str) -> list[float]:
    """From the first rank's start to the last one's end, of every round."""
    both = [[one[what] for one in step] for step in zip(*rounds, strict=True)]
    return [(max(end for _, end in step) - min(start for start, _ in step)) * 1e3 for step in both]


def step_times_us(ways: dict[str, Way], measured: list[dict[str, Any]], steps: int) -> dict[str, list[float]]:
    """Dispatch and combine of every step, all layers together: rounds go layer by layer, there step by step."""
    found = {}
    for name in ways:
        rounds_ms = np.array(spans_ms([one[name] for one in measured], "comm"))
        found[name] = (rounds_ms.reshape(-1, steps).sum(axis=0) * 1e3).tolist()
    return found


def links(copies_GSN: list[list[list[int]]], per_node: int) -> tuple[int, float]:
    """Copies through the busiest direction of a link and through the mean one, each summed over steps."""
    copies = np.array(copies_GSN)
    sent_NSN = copies.reshape(-1, per_node, *copies.shape[1:]).sum(axis=1)
    nodes = np.arange(len(sent_NSN))
    sent_NSN[nodes, :, nodes] = 0
    out_NS, in_NS = sent_NSN.sum(axis=2), sent_NSN.sum(axis=0).T
    return int(np.maximum(out_NS, in_NS).max(axis=0).sum()), float(sent_NSN.sum() / len(nodes))


if __name__ == "__main__":
    main()
