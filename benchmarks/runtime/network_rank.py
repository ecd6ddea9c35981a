"""One rank of `network.py`: runs every way on its tokens, in turn, and writes what it measured.

python network_rank.py FOLDER   (RANK in the environment; FOLDER/job.json says what to do)
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from shaped_network import COUNTER

from placement import Placement, Trace, open_trace
from placement.runtime import Dispatcher, DispatchHandle, GroupedExperts, LayerMap, torch_mesh

COMM, STEP = "comm", "step"


def main() -> None:
    torch.set_num_threads(1)
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    job = json.loads((folder / "job.json").read_text())
    nodes, gpus, hidden = job["nodes"], job["gpus_per_node"], job["hidden"]
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=nodes * gpus)
    mesh = torch_mesh(nodes, gpus, timeout_s=120)
    ways = {
        name: (open_trace(folder / way["trace"]), way["slots_per_gpu"], way["map"]) for name, way in job["ways"].items()
    }
    generator = torch.Generator().manual_seed(rank)
    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for index in range(job["layers"]):
        calls = {}
        for name, (trace, slots, phy2log_LP) in ways.items():
            placement = Placement(
                model=trace.model, num_nodes=nodes, gpus_per_node=gpus, slots_per_gpu=slots, phy2log_LP=phy2log_LP
            )
            parts = [
                torch.from_numpy(tokens_of(trace, index, step * nodes * gpus + rank)) for step in range(job["steps"])
            ]
            dispatcher = Dispatcher(mesh, LayerMap.of(placement, trace.model.layer_ids[index]), hops=job["hops"])
            inner = job["intermediate"]
            experts = GroupedExperts(
                gate_up=torch.randn(slots, 2 * inner, hidden, generator=generator).bfloat16().mT,
                down=torch.randn(slots, hidden, inner, generator=generator).bfloat16().mT,
            )
            calls[name] = (dispatcher, experts, parts)
        for dispatcher, experts, parts in calls.values() if not index else ():  # compiles, and opens connections
            x = torch.zeros(len(parts[0]), hidden, dtype=torch.bfloat16)
            measure(dispatcher, experts, x, parts[0], with_experts=job["with_experts"])
        for step in range(job["steps"]):
            for name, (dispatcher, experts, parts) in calls.items():
                ids = parts[step]
                x = torch.randn(len(ids), hidden, generator=generator).bfloat16()
                measured[name].append(measure(dispatcher, experts, x, ids, with_experts=job["with_experts"]))
    (folder / f"rank{rank}.json").write_text(json.dumps(measured))
    dist.barrier()  # nobody leaves while others still talk
    dist.destroy_process_group()


def tokens_of(trace: Trace, layer: int, request: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Top-k sets of a request's tokens, int64 [T, K]."""
    return np.concatenate([block.ids_TK(layer)[block.request_T == request] for block in trace.blocks()]).astype(
        np.int64
    )


def measure(
    dispatcher: Dispatcher, experts: GroupedExperts, x: torch.Tensor, ids: torch.Tensor, *, with_experts: bool
) -> dict[str, Any]:
    """Start and end of dispatch and combine alone and, if asked for, with experts in between; bytes that left.

    The clock is the computer's, the same for all ranks. The bytes are the node's, of the first round, with a barrier;
    `copies_N` are those that this rank sent to each node, as it counted them.
    """
    weights = torch.full(ids.shape, 1 / ids.shape[1])

    def once(
        middle: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    ) -> tuple[tuple[float, float], DispatchHandle]:
        dist.barrier()
        start = time.perf_counter()
        rows, counts, handle = dispatcher.dispatch(x, ids, weights, reuse=True)
        dispatcher.combine(middle(rows, counts), handle)
        return (start, time.perf_counter()), handle

    dist.barrier()
    before = int(COUNTER.read_text())
    comm, handle = once(lambda rows, counts: rows)
    dist.barrier()
    sent = int(COUNTER.read_text()) - before
    copies_N = [0] * dispatcher.mesh.num_nodes
    for rank, copies in handle.copies(0).items():
        copies_N[rank // dispatcher.mesh.gpus_per_node] += copies
    step = once(experts)[0] if with_experts else None
    return {COMM: comm, STEP: step, "bytes": sent, "copies_N": copies_N}


if __name__ == "__main__":
    main()
