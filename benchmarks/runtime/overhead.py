"""Dispatch and combine beside bare all-to-alls of the same bytes, in one run: what the runtime itself costs.

python benchmarks/runtime/overhead.py [--ranks 4] [--device cuda] [--backend gloo] [--transport symm-mem] [--overlap]

Processes on this machine, gloo on the loopback interface (NCCL with `--device cuda`, one GPU a rank; with `--backend
gloo` several ranks share a GPU, and their rows go through the host; with `--transport` rows go by another of the
runtime's transports, or the exit code is 77 where it cannot be used). Every round times, one after the other on all
ranks, each variant and the bare exchange of exactly the rows and splits that it sends there and back; a round counts as
its slowest rank. No experts run in between.

copies  `send` and `give_back`: tokens packed and sent once to each destination, sums back and added up
whole   `dispatch` and `combine`: also the replica choice, rows for every assignment in slot order, weighted sums
CPU     milliseconds of processor time, mean over ranks: what other work on the machine does not change

With `--overlap` another table: dispatch and combine of `whole`, a shared expert (two products with `--intermediate`
columns), one after the other, and the shared expert while rows of the dispatch travel; then four layers of that for two
halves of the tokens, one half after the other, and in turns, where one computes while rows of the other travel.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import describe_machine

from placement import Model, Placement
from placement.errors import OptionError
from placement.runtime import Arrival, Dispatcher, LayerMap, Wire, torch_mesh, with_transport
from placement.runtime.transport import AUTO, TRANSPORTS
from placement.runtime.turns import Turns

WAYS = (*TRANSPORTS, AUTO)
NOT_HERE = 77  # what test harnesses call skipped


def make_placement(num_nodes: int, gpus_per_node: int, experts: int, redundant: int, top_k: int) -> Placement:
    rng = np.random.default_rng(0)
    ranks = num_nodes * gpus_per_node
    while True:
        row = rng.permutation(np.concatenate([np.arange(experts), rng.integers(0, experts, redundant)]))
        if all(len(set(held)) == len(held) for held in row.reshape(ranks, -1).tolist()):
            break
    model = Model(name="bench", layer_ids=(0,), num_experts=experts, top_k=top_k)
    return Placement(
        model=model,
        num_nodes=num_nodes,
        gpus_per_node=gpus_per_node,
        slots_per_gpu=len(row) // ranks,
        phy2log_LP=row[None],
    )


HEAD = (
    "| hops | tokens a rank | hidden | type | MB a rank | bare, ms | CPU | copies, ms | ratio | CPU "
    "| whole, ms | ratio | CPU |\n" + "|---" * 13 + "|"
)
OVERLAP_HEAD = (
    "| hops | tokens a rank | hidden | type | whole, ms | CPU | shared expert, ms | CPU | in turn, ms | CPU "
    "| overlapped, ms | CPU | two halves, ms | CPU | in turns, ms | CPU |\n" + "|---" * 16 + "|"
)
Calls = dict[str, Callable[[], object]]
LAYERS = 4


def bare(handle: Arrival, dtype: torch.dtype, hidden: int, device: str) -> Callable[[], None]:
    """The exchanges of that dispatch and its combine, on buffers that are there already."""
    steps = []
    for hop in handle.hops:
        sent, got = hop.announced.send_rows, hop.announced.recv_rows
        group = dist.distributed_c10d._resolve_process_group(hop.group.name)
        there = [torch.zeros(sum(n), handle.wire.row_bytes, dtype=torch.uint8, device=device) for n in (got, sent)]
        back = [torch.zeros(sum(n), hidden, dtype=dtype, device=device) for n in (sent, got)]
        steps += [(there, got, sent, group), (back, sent, got, group)]

    def run() -> None:
        for (out, given), out_rows, in_rows, group in steps:
            dist.all_to_all_single(out, given, out_rows, in_rows, group=group)

    return run


def overlapped(dispatcher: Dispatcher, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, inner: int) -> Calls:
    """What the table of `--overlap` has, by its columns."""
    up = torch.randn(x.shape[1], inner, device=x.device).to(x.dtype) / x.shape[1] ** 0.5
    down = torch.randn(inner, x.shape[1], device=x.device).to(x.dtype) / inner**0.5
    turns, everything = Turns(), slice(None)
    halves = (slice(0, len(x) // 2), slice(len(x) // 2, None))

    def shared(part: slice = everything) -> None:
        torch.nn.functional.silu(x[part] @ up) @ down

    def whole(part: slice = everything, meanwhile: Callable[[], None] | None = None) -> None:
        slots = dispatcher.choose(ids[part])
        rows, _, handle = dispatcher.dispatch_slots(x[part], slots, weights[part], reuse=True, meanwhile=meanwhile)
        dispatcher.combine(rows, handle, turns.pass_on if turns.taken else None)

    def overlapped_expert() -> None:
        to_do = [shared]  # on the first hop
        whole(meanwhile=lambda: to_do.pop()() if to_do else None)

    def layers(part: slice) -> None:
        for _ in range(LAYERS):
            shared(part)
            whole(part, turns.pass_on if turns.taken else None)

    return {
        "whole": whole,
        "shared": shared,
        "in turn": lambda: (whole(), shared()),
        "overlapped": overlapped_expert,
        "two halves": lambda: [layers(part) for part in halves],
        "in turns": lambda: turns.run([partial(layers, part) for part in halves], x.device),
    }


def timed(calls: Calls, args: argparse.Namespace) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Milliseconds of the slowest rank, and of processor time a rank, by round; two rounds to warm up are left out."""
    took: dict[str, list[float]] = {what: [] for what in calls}
    cpu: dict[str, list[float]] = {what: [] for what in calls}
    for _ in range(args.rounds + 2):
        for what, call in calls.items():
            dist.barrier()
            start, worked = time.perf_counter(), time.process_time()
            call()
            if args.device == "cuda":
                torch.cuda.synchronize()
            slowest = torch.tensor([time.perf_counter() - start], device=args.device)
            busy = torch.tensor([time.process_time() - worked], device=args.device)
            dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
            dist.all_reduce(busy)
            took[what].append(float(slowest) * 1e3)
            cpu[what].append(float(busy) / args.ranks * 1e3)
    return {what: times[2:] for what, times in took.items()}, {what: times[2:] for what, times in cpu.items()}


def said(times: list[float]) -> str:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(times, n=4)
    return f"{middle:.1f} [{low:.1f}, {high:.1f}]"


def worker(rank: int, args: argparse.Namespace, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    cuda = args.device == "cuda"
    if cuda:
        torch.cuda.set_device(rank % torch.cuda.device_count())
    store = f"file://{folder}/store"
    dist.init_process_group(
        args.backend or ("nccl" if cuda else "gloo"), init_method=store, rank=rank, world_size=args.ranks
    )
    nodes = 2 if args.ranks > 1 else 1
    mesh = torch_mesh(nodes, args.ranks // nodes, device=args.device)
    if not rank:
        print(f"{describe_machine()}, torch {torch.__version__}, {dist.get_backend()}\n")
        print(
            f"{args.ranks} ranks as {nodes} nodes, {args.experts} experts + {args.redundant}, top-{args.top_k}, ",
            end="",
        )
        link = f"shared {args.gbit:g} Gbit/s" if args.gbit else "unshaped loopback"
        print(f"{link}, {args.rounds} rounds; medians, in brackets the quartiles\n")
        print(OVERLAP_HEAD if args.overlap else HEAD)
    placement = make_placement(nodes, args.ranks // nodes, args.experts, args.redundant, args.top_k)
    layer_map = LayerMap.of(placement, 0)
    for tokens, hidden, name in (
        (1024, args.hidden, "bfloat16"),
        (1024, args.hidden, "float32"),
        (64, args.hidden, "bfloat16"),
    ):
        dtype = getattr(torch, name)
        generator = torch.Generator().manual_seed(rank)
        x = torch.randn(tokens, hidden, generator=generator).to(args.device, dtype)
        weights, ids = torch.rand(tokens, args.experts, generator=generator).topk(args.top_k)
        weights, ids = weights.to(args.device), ids.to(args.device)
        wire = Wire(hidden=hidden, dtype=dtype, width=args.top_k)
        try:
            moved = with_transport(mesh, args.transport, wire=wire, max_tokens=tokens, device=args.device)
        except OptionError as error:
            if not rank:
                print(error, flush=True)
            dist.barrier()  # the first process to end ends all
            sys.exit(NOT_HERE)
        for hops in ("flat", "hierarchical"):
            dispatcher = Dispatcher(moved, layer_map, hops=hops, device=args.device)

            if args.overlap:
                calls = overlapped(dispatcher, x, ids, weights, args.intermediate)
                took, cpu = timed(calls, args)
                if not rank:
                    cells = [f"{said(took[what])} | {statistics.median(cpu[what]):.1f}" for what in calls]
                    print(f"| {hops} | {tokens} | {hidden} | {name} | {' | '.join(cells)} |")
                continue
            slots = dispatcher.choose(ids)
            sums = dispatcher.send(x, slots, weights).hidden.clone()

            def hops_alone() -> Arrival:
                arrival = dispatcher.send(x, slots, weights)  # noqa: B023
                dispatcher.give_back(sums, arrival.hops)  # noqa: B023
                return arrival

            def whole() -> None:
                rows, _, handle = dispatcher.dispatch(x, ids, weights, reuse=True)  # noqa: B023
                dispatcher.combine(rows, handle)  # noqa: B023

            arrival = hops_alone()
            calls = {"bare": bare(arrival, dtype, hidden, args.device), "hops": hops_alone, "whole": whole}
            took, cpu = timed(calls, args)
            if not rank:
                wire, sent = arrival.wire, sum(sum(hop.announced.send_rows) for hop in arrival.hops)
                size = sent * (wire.row_bytes + wire.return_bytes) / 1e6
                middle = {what: statistics.median(times) for what, times in took.items()}
                cells = []
                for what, times in took.items():
                    cells.append(said(times))
                    if what != "bare":
                        cells.append(f"{middle[what] / middle['bare']:.2f}")
                    cells.append(f"{statistics.median(cpu[what]):.1f}")
                print(f"| {hops} | {tokens} | {hidden} | {name} | {size:.1f} | {' | '.join(cells)} |")
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--backend", choices=["gloo", "nccl"], help="default: nccl with CUDA, else gloo")
    parser.add_argument("--transport", default="torch", choices=WAYS, help="of the runtime's rows")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--experts", type=int, default=32)
    parser.add_argument("--redundant", type=int, help="further slots; default: 8, and none for one rank")
    parser.add_argument("--hidden", type=int, default=2880)
    parser.add_argument("--top-k", type=int, default=4)
    parser.add_argument("--overlap", action="store_true", help="time a shared expert beside the dispatch")
    parser.add_argument("--intermediate", type=int, default=1408, help="of the shared expert")
    parser.add_argument("--gbit", type=float, help="shape the loopback: what all ranks together may send a second")
    args = parser.parse_args()
    if args.redundant is None:
        args.redundant = 8 if args.ranks > 1 else 0
    slots = args.experts + args.redundant
    if args.ranks < 1 or slots % args.ranks or slots // args.ranks > args.experts:
        parser.error(
            f"{args.experts} experts + {args.redundant} redundant cannot be shared by {args.ranks} ranks, each with as "
            "many slots and no expert twice; choose another --redundant or --ranks"
        )
    if args.gbit and "OVERHEAD_SHAPED" not in os.environ:
        shape = f"tc qdisc add dev lo root tbf rate {args.gbit}gbit burst 1mb latency 100ms"
        command = f"ip link set lo up && {shape} && exec {shlex.join([sys.executable, *sys.argv])}"
        os.environ["OVERHEAD_SHAPED"] = "1"
        os.execvp("unshare", ["unshare", "--net", "sh", "-c", command])  # a network of its own; needs root
    with tempfile.TemporaryDirectory() as folder:
        try:
            mp.spawn(worker, args=(args, folder), nprocs=args.ranks)
        except mp.ProcessExitedException as error:
            sys.exit(error.exit_code or 1)


if __name__ == "__main__":
    main()
