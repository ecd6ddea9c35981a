"""Layer time of the most loaded rank by capacity policy and gamma, on routing of a real trace.

python benchmarks/runtime/straggler.py TRACE [--ranks 32 8] [--layer 12] [--device cuda]

Every emulated rank does its own work alone, in turn, on the rows that it really gets: copies to slot order, two grouped
products with SwiGLU between, weighted sums. The layer takes as long as its slowest rank. Policies take turns within
every round, so that other work on the machine hits all alike. Nothing is sent: communication is not in these times.

layer     median over rounds of each rank's processor time, of the slowest rank; in brackets its 10% and 90%. By the
          clock is what it says too, but with whatever else this machine was doing
mean      of all ranks instead of the slowest
decision  a rank's share of the time to decide what is dropped (ranks run in turn, waits left out)
speed-up  layer without a limit over layer with one, then over layer with its decision; *loads* is the ratio of largest
          rank loads, which it can come near to but for what does not depend on load

With `--device cuda` ranks share one GPU, in bf16; times are those between CUDA events, with the L2 cache flushed
before. The decision then waits for the GPU: its processor time is an upper estimate. (Not run on a GPU yet.)

The trace has scores of the top-k experts alone. `expanded` gives the others random scores below the token's least: that
says how many further experts get tokens but not which. Its time is right, its choice means nothing.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import describe_machine, input_trace

from placement import Model, Placement, Trace, open_trace
from placement.errors import OptionError
from placement.runtime import Arrival, CapacityPolicy, Dispatcher, GroupedExperts, LayerMap, Lockstep, Mesh
from placement.runtime.decision import RankCapacity
from placement.runtime.reduce import sum_rows

GAMMAS = (1.0, 1.5, 2.0)
FLUSH_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One layer's tokens: top-k sets [T, K], their weights, and scores of all experts [T, E]."""

    ids: torch.Tensor
    weights: torch.Tensor
    scores: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """What came to one rank after capacity was applied, to be worked on as often as one likes."""

    dispatcher: Dispatcher
    experts: GroupedExperts
    arrival: Arrival
    load: int
    decision_s: float
    dropped: int
    extra: int

    def work(self) -> None:
        rows, counts, handle = self.dispatcher.by_slot(self.arrival, reuse=True)
        sum_rows(self.experts(rows, counts), handle.row_A, handle.num_rows, handle.weight_A)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=input_trace, help="folder of an expert-trace/1 with router weights")
    parser.add_argument("--ranks", type=int, nargs="+", help="default: one expert a rank, then four")
    parser.add_argument("--layer", type=int, help="position among the MoE layers; default: the one of median skew")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--intermediate", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--seed", type=int, default=0, help="which tokens")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    trace = open_trace(args.trace)
    model = trace.model
    layer, batch = routed(trace, args.layer, args.tokens, args.seed)
    load_E = torch.bincount(batch.ids.flatten(), minlength=model.num_experts)
    skew = float(load_E.max() / load_E.float().mean())
    # the limit is ceil(gamma * mean): exactly half of the largest load, rounded up
    halving = math.ceil(int(load_E.max()) / 2) / float(load_E.float().mean())
    sizes = f"{len(batch.ids)} tokens drawn from the trace, hidden size {args.hidden}, intermediate {args.intermediate}"
    skewed = f"largest expert load {skew:.3f} of the mean, so gamma={halving:.3f} halves it"
    print(f"# Straggler: {model.name}, layer {model.layer_ids[layer]} of {model.num_layers}\n")
    print(f"{describe_machine()}, torch {torch.__version__}, {device_words(args.device)}; ", end="")
    print(f"{sizes}, {args.rounds} rounds; {skewed}; load average {os.getloadavg()[0]:.1f}")
    for ranks in args.ranks or (model.num_experts, model.num_experts // 4):
        if model.num_experts % ranks:
            raise OptionError(f"--ranks {ranks} does not divide the {model.num_experts} experts; give a divisor")
        print(f"\n## {ranks} ranks, {model.num_experts // ranks} experts on each\n", flush=True)
        for line in table(model, ranks, batch, halving, args):
            print(line, flush=True)


def routed(trace: Trace, layer: int | None, tokens: int, seed: int) -> tuple[int, Batch]:
    """The layer (that of median skew over these tokens if none is given) and tokens drawn from the whole trace."""
    if not all(shard.has_weights for shard in trace.shards):
        raise SystemExit("skipped: the trace has no router weights, and what is dropped goes by them")
    model, rng = trace.model, np.random.default_rng(seed)
    blocks = list(trace.blocks())
    total = sum(len(block.request_T) for block in blocks)
    rows = np.sort(rng.choice(total, min(tokens, total), replace=False))

    def drawn(layer: int) -> np.ndarray:
        return np.concatenate([block.ids_TK(layer) for block in blocks])[rows]

    if layer is None:
        skews = [np.bincount(drawn(one).ravel(), minlength=model.num_experts).max() for one in range(model.num_layers)]
        layer = int(np.argsort(skews, kind="stable")[model.num_layers // 2])
    ids = torch.from_numpy(drawn(layer).astype(np.int64))
    weights = torch.from_numpy(np.concatenate([block.weights_TK(layer) for block in blocks])[rows].astype(np.float32))
    below = torch.from_numpy(rng.random((len(rows), model.num_experts), dtype=np.float32))
    scores = (below * weights.min(dim=1, keepdim=True).values).scatter(1, ids, weights)
    return layer, Batch(ids=ids, weights=weights, scores=scores)


def table(model: Model, ranks: int, batch: Batch, halving: float, args: argparse.Namespace) -> list[str]:
    policies = {"none": CapacityPolicy()}
    policies[f"drop, gamma={halving:.3f} (halves)"] = CapacityPolicy(mode="drop", gamma=halving)
    for mode in ("drop", "expanded"):
        policies |= {f"{mode}, gamma={gamma:g}": CapacityPolicy(mode=mode, gamma=gamma) for gamma in GAMMAS}
    policies["expanded, gamma=1.5, max_extra=1"] = CapacityPolicy(mode="expanded", gamma=1.5, max_extra=1)
    if ranks < model.num_experts:
        policies["drop of ranks, gamma=1"] = CapacityPolicy(mode="drop", gamma=1.0, level="device")
    work = {name: emulate(model, ranks, batch, policy, args) for name, policy in policies.items()}
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda") if args.device == "cuda" else None
    rounds = [
        {name: [timed(rank, flush) for rank in group] for name, group in work.items()} for _ in range(args.rounds + 2)
    ]
    lines = ["| policy | dropped | extra | largest rank load | of the mean | layer, ms | mean, ms | decision, ms "]
    lines[0] += "| speed-up | with decision | loads | layer by the clock, ms | speed-up |"
    lines.append("|---" * 13 + "|")
    most = max(rank.load for rank in work["none"])
    plain = clock_plain = 0.0
    for name, group in work.items():
        loads = [rank.load for rank in group]
        cpu_RG, clock_RG = np.array([one[name] for one in rounds[2:]]).transpose(2, 0, 1)  # the first two warm up
        cpu_G, clock_G = np.median(cpu_RG, axis=0), np.median(clock_RG, axis=0)
        low, high = np.percentile(cpu_RG[:, cpu_G.argmax()], [10, 90])
        took, clock = float(cpu_G.max()), float(clock_G.max())
        plain, clock_plain = plain or took, clock_plain or clock
        decision = statistics.fmean(rank.decision_s for rank in group) * 1e3
        cells = [
            name,
            f"{sum(rank.dropped for rank in group) / batch.ids.numel():.1%}",
            f"{sum(rank.extra for rank in group) / batch.ids.numel():.1%}",
            str(max(loads)),
            f"{max(loads) / statistics.fmean(loads):.2f}",
            f"{took:.2f} [{low:.2f}, {high:.2f}]",
            f"{cpu_G.mean():.2f}",
            f"{decision:.2f}",
            f"{plain / took:.2f}",
            f"{plain / (took + decision):.2f}",
            f"{most / max(loads):.2f}",
            f"{clock:.2f}",
            f"{clock_plain / clock:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def device_words(device: str) -> str:
    return f"bf16, {torch.cuda.get_device_name()}" if device == "cuda" else "fp32, 1 thread"


def timed(rank: Rank, flush: torch.Tensor | None) -> tuple[float, float]:
    """Milliseconds of one rank's work: of processor time, and by the clock; on a GPU twice those of the GPU."""
    if flush is not None:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.zero_()
        start.record()
        rank.work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end), start.elapsed_time(end)
    clock, cpu = time.perf_counter(), time.thread_time()
    rank.work()
    return (time.thread_time() - cpu) * 1e3, (time.perf_counter() - clock) * 1e3


def emulate(model: Model, ranks: int, batch: Batch, policy: CapacityPolicy, args: argparse.Namespace) -> list[Rank]:
    """Decide and send in lockstep, tokens dealt out evenly, experts in order; what every rank then has to do."""
    placement = Placement(
        model=model,
        num_nodes=1,
        gpus_per_node=ranks,
        slots_per_gpu=model.num_experts // ranks,
        phy2log_LP=np.tile(np.arange(model.num_experts), (model.num_layers, 1)),
    )
    layer_map = LayerMap.of(placement, model.layer_ids[0])
    generator = torch.Generator(device=args.device).manual_seed(0)

    def program(mesh: Mesh) -> Rank:
        mine = slice(mesh.rank, None, ranks)
        ids, weights, scores = (one[mine].to(args.device) for one in (batch.ids, batch.weights, batch.scores))
        dispatcher = Dispatcher(mesh, layer_map, device=args.device)
        dtype = torch.float32 if args.device == "cpu" else torch.bfloat16

        def drawn(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, device=args.device, dtype=dtype)

        x = drawn(len(ids), args.hidden)
        slots = dispatcher.choose(ids)
        capacity = RankCapacity(policy, layer_map, mesh.world)
        decided = [capacity.decide(ids, slots, weights, scores) for _ in range(3)][-1]
        start = time.thread_time()  # of this rank alone, its waits left out
        capacity.decide(ids, slots, weights, scores)
        decision_s = time.thread_time() - start
        arrival = dispatcher.send(x, decided.slots, decided.weights, decided.fault)
        per_rank = placement.slots_per_gpu
        experts = GroupedExperts(
            gate_up=drawn(per_rank, 2 * args.intermediate, args.hidden).mT,
            down=drawn(per_rank, args.hidden, args.intermediate).mT,
        )
        return Rank(
            dispatcher=dispatcher,
            experts=experts,
            arrival=arrival,
            load=int((arrival.local < per_rank).sum()),
            decision_s=decision_s,
            dropped=int(decided.dropped),
            extra=int(decided.extra),
        )

    return Lockstep(1, ranks).run(program)


if __name__ == "__main__":
    main()
