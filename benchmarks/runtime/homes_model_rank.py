"""One rank of `homes_model.py`: an engine that answers the prompts of its requests, every way in turn.

python homes_model_rank.py FOLDER   (RANK in the environment; FOLDER/job.json says what to do)
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from alike_answers import Sampling, answer, forwards
from shaped_network import COUNTER

from placement import load_placement
from placement.runtime import Attached, load_sharded, torch_mesh

RECEIVED = COUNTER.with_name("rx_bytes")
WARM = 4  # prompts, answered before anything is measured: what compiles does so, and connections are open
EMPTY, EMPTY_FORWARDS = "empty", 25  # forwards that no rank has tokens for: what exchanges send without rows


def main() -> None:
    torch.set_num_threads(1)
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    job = json.loads((folder / "job.json").read_text())
    nodes, gpus = job["nodes"], job["gpus_per_node"]
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=nodes * gpus)
    mesh = torch_mesh(nodes, gpus, timeout_s=120)
    placement, _ = load_placement(folder / "placement.json")
    model, attached = load_sharded(job["model"], placement, mesh, hops=job["hops"])
    model.eval()
    sampling, prompts = Sampling(**job["sampling"]), job["prompts"]
    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in job["ways"]}
    share(model, attached, sampling, prompts, list(range(WARM)), forwards([len(one) for one in prompts[:WARM]]))
    measured[EMPTY] = [{"sent": empty(attached)}]
    for _ in range(job["rounds"]):
        for name, rank_Q in job["ways"].items():
            mine = [q for q, one in enumerate(rank_Q) if one == rank]
            most = max(
                forwards([len(prompt) for prompt, at in zip(prompts, rank_Q, strict=True) if at == one])
                for one in range(nodes * gpus)
            )
            measured[name].append(share(model, attached, sampling, prompts, mine, most))
    (folder / f"rank{rank}.json").write_text(json.dumps(measured))
    dist.barrier()  # nobody leaves while others still talk
    dist.destroy_process_group()


def empty(attached: Attached) -> float:
    """Bytes that this rank's node sends in a forward in which nobody has tokens: headers of hops, gloo's and TCP's."""
    dist.barrier()
    before = int(COUNTER.read_text())
    for _ in range(EMPTY_FORWARDS):
        attached.join()
    dist.barrier()
    return (int(COUNTER.read_text()) - before) / EMPTY_FORWARDS


def share(
    model: Any, attached: Attached, sampling: Sampling, prompts: list[list[int]], mine: list[int], most: int
) -> dict[str, Any]:
    """This rank's part of all answers: when it began, had read its prompts and ended; the node's bytes; its answers.

    The clock is the computer's, the same for all ranks.
    """
    noise_RSV = sampling.noise(mine, model.config.vocab_size)
    read_at = []
    dist.barrier()
    before = [int(one.read_text()) for one in (COUNTER, RECEIVED)]
    start = time.perf_counter()
    answers = answer(
        model,
        [prompts[q] for q in mine],
        noise_RSV,
        sampling,
        most=most,
        join=attached.join,
        read=lambda: read_at.append(time.perf_counter()),
    )
    end = time.perf_counter()
    dist.barrier()
    sent, came = (int(one.read_text()) - was for one, was in zip((COUNTER, RECEIVED), before, strict=True))
    answered = dict(zip(map(str, mine), answers, strict=True))
    return {
        "start": start,
        "read": read_at[0],
        "end": end,
        "sent": sent,
        "came": came,
        "answers": answered,
        "forwards": most + sampling.new_tokens - 1,
    }


if __name__ == "__main__":
    main()
