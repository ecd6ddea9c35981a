"""The Triton kernels beside the same in torch, on one GPU: rows gathered, rows summed, replicas chosen.

python benchmarks/runtime/kernels.py [--device cuda] [--tokens 64 4096]

Both get the same rows, take turns in every round, and are told to be equal before they are timed. Times are those
between CUDA events, the L2 cache flushed before. `--device cpu` runs the kernels in Triton's interpreter, to see that
the script runs: its times say nothing. (Not run on a GPU yet.)
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import describe_machine

from placement import Model, Placement
from placement.cost.choices import REPLICA_CHOICES
from placement.runtime import LayerMap
from placement.runtime.choice_on_device import DeviceChooser
from placement.runtime.reduce import order_rows

FLUSH_BYTES = 256 << 20
EXPERTS, NODES, GPUS = 128, 4, 8
NO_TRITON = 77  # exit code of a script that had nothing to run
Work = Callable[[], torch.Tensor]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 4096])
    parser.add_argument("--hidden", type=int, default=2880)
    parser.add_argument("--top-k", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=31)
    args = parser.parse_args()
    lacks = [what for what, there in (("triton", find_spec("triton")), ("a GPU", _has(args.device))) if not there]
    if lacks:
        print(f"skipped: {' and '.join(lacks)} is not there")
        return NO_TRITON
    if args.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported
    torch.set_num_threads(1)
    name = torch.cuda.get_device_name() if args.device == "cuda" else "Triton's interpreter, times say nothing"
    print(f"# Kernels beside torch\n\n{describe_machine()}, torch {torch.__version__}, {name}; ", end="")
    print(
        f"bfloat16, hidden size {args.hidden}, top-{args.top_k}, {args.rounds} rounds; medians, quartiles in brackets\n"
    )
    columns = ("work", "tokens", "MB moved", "torch, ms", "kernel, ms", "torch / kernel", "kernel, GB/s")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for tokens in args.tokens:
        for what, moved, in_torch, kernel in works(tokens, args):
            same = torch.allclose(in_torch().float(), kernel().float(), rtol=2e-2, atol=2e-2)
            if not same:
                raise SystemExit(f"{what} of {tokens} tokens: the kernel's result is not torch's")
            took = [[timed(work, args.device) for work in (in_torch, kernel)] for _ in range(args.rounds + 2)][2:]
            (slow, slow_said), (fast, fast_said) = (said(list(one)) for one in zip(*took, strict=True))
            rate = f"{moved / fast / 1e6:.0f}" if moved else "-"
            cells = [what, str(tokens), f"{moved / 1e6:.1f}", slow_said, fast_said, f"{slow / fast:.2f}", rate]
            print(f"| {' | '.join(cells)} |", flush=True)
    return 0


def works(tokens: int, args: argparse.Namespace) -> Iterator[tuple[str, int, Work, Work]]:
    """(name, bytes read and written, in torch, by kernel)."""
    from placement.runtime.kernels import gpu  # after TRITON_INTERPRET is set

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, args.hidden, generator=generator).to(args.device, torch.bfloat16)
    row = torch.arange(tokens * args.top_k)[torch.randperm(tokens * args.top_k, generator=generator)] // args.top_k
    row = row.to(args.device)
    size = 2 * len(row) * x[0].nbytes
    yield "gather rows", size, lambda: torch.index_select(x, 0, row), lambda: gpu.gather_rows(x, row)
    rows, weight = x[row], torch.rand(len(row), generator=generator).to(args.device)
    order, start = order_rows(row, tokens)
    out = torch.empty_like(x)

    def summed() -> torch.Tensor:
        total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        return total.index_put_((row,), rows.float() * weight[:, None], accumulate=True).to(x.dtype)

    yield "weighted sums", rows.nbytes + out.nbytes, summed, lambda: gpu.sum_rows(rows, order, start, weight, out)
    layer_map = a_map()
    ids = torch.rand(tokens, EXPERTS, generator=generator).topk(args.top_k).indices.to(args.device)
    for choice, any_map in (("min-nodes", False), ("min-nodes", True), ("local-first", False)):
        rule, device = REPLICA_CHOICES.make(choice), torch.device(args.device)
        chooser = DeviceChooser(layer_map, 0, rule, layer_map.cluster(), device, any_map=any_map)  # type: ignore[arg-type]

        def in_torch(chooser: DeviceChooser = chooser) -> torch.Tensor:
            return chooser.in_torch(ids)

        def by_kernel(chooser: DeviceChooser = chooser) -> torch.Tensor:
            return chooser.by_kernel(ids)

        yield f"choose replicas, {choice}{', in tables for any map' * any_map}", 0, in_torch, by_kernel


def a_map() -> LayerMap:
    """128 experts and a copy of every fourth one, on 4 nodes of 8 ranks."""
    rows = np.concatenate([np.arange(EXPERTS), np.arange(0, EXPERTS, 4)]).reshape(-1, NODES * GPUS).T.ravel()
    model = Model(name="kernels", layer_ids=(0,), num_experts=EXPERTS, top_k=4)
    slots = len(rows) // (NODES * GPUS)
    placement = Placement(
        model=model, num_nodes=NODES, gpus_per_node=GPUS, slots_per_gpu=slots, phy2log_LP=rows[None].astype(np.int32)
    )
    return LayerMap.of(placement, 0)


def timed(work: Work, device: str) -> float:
    """Milliseconds."""
    if device == "cpu":
        begin = time.perf_counter()
        work()
        return (time.perf_counter() - begin) * 1e3
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda").zero_()
    start.record()
    work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def said(times: list[float]) -> tuple[float, str]:
    low, middle, high = statistics.quantiles(times, n=4)
    return middle, f"{middle:.3f} [{low:.3f}, {high:.3f}]"


def _has(device: str) -> bool:
    return device == "cpu" or torch.cuda.is_available()


if __name__ == "__main__":
    sys.exit(main())
