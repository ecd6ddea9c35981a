"""Homes from the proxy with a trained model: four engines on shaped links answer the prompts that nobody fitted.

python benchmarks/runtime/homes_model.py MODEL TRACE [--mbit 200] [--redundant 0] [--answers 2] [--seed 100]

MODEL and TRACE are what `examples/train_tiny_moe.py --token-ids` writes. Root is needed, for network namespaces.

1. Placement, homes and router are solved together on the training requests of TRACE, as `placement group` does.
2. One process answers the prompts of the held-out requests and records which experts that takes. The prediction is what
   `evaluate` says of these tokens, prompts included, in all layers.
3. The prompts are asked of `placement route` in front of a door for each node, which holds a request for as long as
   its answer has tokens; whose door a request comes to is its home.
4. Every rank loads its experts by the map and answers the prompts of its requests with all others; what the links of
   the nodes send is counted. The same noise picks the same tokens, so that all ways write the same text.

rows        what `evaluate` says: copies of tokens and sums that come back
exchanges   what forwards send in which no rank has tokens, as counted before the first way: headers of hops and what
            gloo and TCP add to a message, whatever its size
random      homes by length alone, so that every rank has as many tokens
proxy       as above: from the prompt and the load that the proxy saw
oracle      the best homes within the tolerance, from the very experts that follow
per token   all prompts and answers of all rounds, over the tokens of the answers
a step      a token more of every answer: all layers, attention and head included
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
import numpy as np
import numpy.typing as npt
import torch
from alike_answers import Noise, Sampling
from homes_asked import homes_by_proxy
from homes_model_rank import EMPTY
from machine import describe_machine, input_model, input_trace
from network import run_ranks
from network_plan import HOLDOUT, TRANSPORT, add_mesh_options, deal
from shaped_network import why_not
from transformers import AutoModelForCausalLM, LogitsProcessorList

from placement import Cluster, Options, Trace, evaluate, open_trace
from placement.grouping.assign import assign_homes
from placement.grouping.home_costs import home_costs
from placement.grouping.requests import requests_of
from placement.pipeline.with_homes import solve_grouped
from placement.runtime.wire import Wire
from placement.traces.prompts import prompts_of
from placement.traces.recorder import record

ROWS = 16  # answered together by the one process
COLUMNS = (
    *("way", "rows predicted, MB", "with exchanges, MB", "counted, MB", "counted / rows", "counted / with exchanges"),
    *("of random's", "tokens of a node, most over mean"),
    *("busiest direction, of random's", "per token, ms", "of random's", "a step, ms", "of random's", "answers alike"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=input_model, help="Hugging Face folder")
    parser.add_argument("trace", type=input_trace, help="folder of an expert-trace/1 of this model, with ids of tokens")
    parser.add_argument("--mbit", type=float, default=200.0, help="Mbit/s of every node's link; 0: unshaped")
    parser.add_argument("--redundant", type=int, default=0, help="redundant experts of a layer")
    parser.add_argument("--answers", type=int, default=2, help="to each held-out prompt, each a request of its own")
    parser.add_argument("--new-tokens", type=int, default=48, help="of each answer")
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--rounds", type=int, default=2, help="in which all ways take turns")
    parser.add_argument("--seed", type=int, default=100, help="of the split by request, the search and the answers")
    add_mesh_options(parser, gpus_per_node=1)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    if reason := why_not():
        raise SystemExit(f"skipped: {reason}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trace = open_trace(args.trace)
        print(f"# Homes from the proxy, a trained model: {trace.model.name}, {args.hops}\n")
        print(f"{describe_machine()}, torch {torch.__version__}, gloo; load average {os.getloadavg()[0]:.1f}\n")
        tell(trace, args, folder)
        print(f"\nLoad average at the end {os.getloadavg()[0]:.1f}.")


def tell(trace: Trace, args: argparse.Namespace, folder: Path) -> None:
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(args.model).eval()
    wire = Wire(hidden=model.config.hidden_size, dtype=model.dtype, width=trace.model.top_k)
    shape = {"num_nodes": args.nodes, "gpus_per_node": args.gpus_per_node}
    cluster = Cluster.fit(trace.model.num_experts, redundant_experts=args.redundant, **shape)
    cluster = replace(cluster, dispatch_bytes=wire.row_bytes, combine_bytes=wire.return_bytes)
    carrier = TRANSPORT[args.hops]
    grouped = solve_grouped(trace, cluster, Options(seed=args.seed, transport=carrier), holdout=HOLDOUT)
    prompts = held_out_prompts(trace, grouped.requests.lists, grouped.held_out_Q) * args.answers
    sampling = Sampling(new_tokens=args.new_tokens, temperature=args.temperature, seed=args.seed)
    own = own_answers(model, prompts, sampling, folder / "trace", trace.model.name)
    answered, placement = open_trace(folder / "trace"), grouped.solution.placement
    tokens_Q = answered.tokens_Q()
    costs = home_costs(answered, requests_of(answered), placement, cluster, transport=carrier)
    home_Q = asyncio.run(homes_by_proxy(grouped, prompts, tokens_Q, folder, at_a_time=len(prompts), seed=args.seed))
    homes = {
        "random": np.full(len(prompts), -1),
        "proxy": home_Q,
        "oracle": assign_homes(costs.cost_QN, costs.tokens_Q, tolerance=grouped.tolerance).home_Q,
    }
    ways = {name: deal(tokens_Q, one, cluster) for name, one in homes.items()}
    job = shape | {
        "nodes": args.nodes,
        "hops": args.hops,
        "model": str(args.model.absolute()),
        "rounds": args.rounds,
        "prompts": prompts,
        "sampling": asdict(sampling),
        "ways": {name: rank_Q.tolist() for name, rank_Q in ways.items()},
    }
    print(
        f"{args.nodes} nodes x {args.gpus_per_node} ranks, {args.redundant} redundant experts, split seed {args.seed}: "
        f"{len(prompts)} requests, {args.answers} for each held-out prompt, {int(tokens_Q.sum())} tokens with "
        f"{len(prompts) * args.new_tokens} of answers, all {trace.model.num_layers} layers, hidden size {wire.hidden}, "
        f"{args.rounds} rounds.\n\n## {f'{args.mbit:g} Mbit/s a node and direction' if args.mbit else 'Unshaped'}\n",
        flush=True,
    )
    measured = run_ranks(folder, job, Path(__file__).with_name("homes_model_rank.py"), args.mbit)
    predicted = {
        name: predicted_bytes(answered, rank_Q // args.gpus_per_node, placement, cluster, carrier)
        for name, rank_Q in ways.items()
    }
    print("\n".join(table(ways, predicted, measured, tokens_Q, own, args)))


def held_out_prompts(trace: Trace, lists_of: Any, held_out_Q: npt.NDArray[np.bool_]) -> list[list[int]]:
    """The ids of the prompts of the held-out requests."""
    prompts = lists_of(prompts_of(trace))
    asked = np.flatnonzero(held_out_Q & (prompts.length_Q > 0)).tolist()
    if not asked:
        raise SystemExit("the trace has no ids of tokens; record it with --token-ids")
    return [prompts.list_of(q).tolist() for q in asked]


@torch.no_grad()
def own_answers(model: Any, prompts: Sequence[list[int]], sampling: Sampling, to: Path, name: str) -> list[list[int]]:
    """The answers as one process gives them; a trace of all tokens goes to the folder `to`."""
    found = []
    end = model.config.eos_token_id
    with record(model, to, name=name, weights=False) as recorder:
        for first in range(0, len(prompts), ROWS):
            some = prompts[first : first + ROWS]
            longest = max(map(len, some))
            rows = torch.tensor([[0] * (longest - len(one)) + one for one in some])
            mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in some])
            numbers = range(first, first + len(some))
            recorder.requests([f"request {number}" for number in numbers])
            noise = Noise(sampling, sampling.noise(numbers, model.config.vocab_size), end)
            whole = model.generate(
                input_ids=rows,
                attention_mask=mask,
                max_new_tokens=sampling.new_tokens,
                do_sample=False,
                logits_processor=LogitsProcessorList([noise]),
            )
            found += whole[:, longest:].tolist()
    return found


def predicted_bytes(trace: Trace, home_Q: npt.NDArray[Any], placement: Any, cluster: Cluster, transport: str) -> float:
    """What these tokens send from these homes."""
    (one,) = evaluate(trace, [placement], cluster=cluster, transport=transport, home_Q=home_Q.astype(np.int32))
    return one.bytes_per_token() * one.num_tokens * placement.model.num_layers


def table(
    ways: dict[str, npt.NDArray[np.int64]],
    predicted: dict[str, float],
    measured: list[dict[str, Any]],
    tokens_Q: npt.NDArray[np.int64],
    own: list[list[int]],
    args: argparse.Namespace,
) -> list[str]:
    """One row a way, beside the first."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"{'|---' * len(COLUMNS)}|"]
    first: list[float] = []
    for name, rank_Q in ways.items():
        rounds = list(zip(*(rank[name] for rank in measured), strict=True))
        nodes = [one[:: args.gpus_per_node] for one in rounds]
        sent = sum(rank["sent"] for one in nodes for rank in one) / len(rounds)
        busiest = sum(max(max(rank["sent"], rank["came"]) for rank in one) for one in nodes)
        ends = [max(rank["end"] for rank in one) for one in rounds]
        whole = sum(end - min(rank["start"] for rank in one) for end, one in zip(ends, rounds, strict=True))
        steps = sum(end - max(rank["read"] for rank in one) for end, one in zip(ends, rounds, strict=True))
        written = [answer for one in rounds for rank in one for answer in rank["answers"].items()]
        alike = sum(own[int(q)] == answer for q, answer in written)
        load_N = np.bincount(rank_Q // args.gpus_per_node, tokens_Q, args.nodes)
        exchanges = rounds[0][0]["forwards"] * sum(rank[EMPTY][0]["sent"] for rank in measured[:: args.gpus_per_node])
        with_exchanges = predicted[name] + exchanges
        values = [sent, busiest, whole, steps]
        first = first or values
        share = [f"{one / plain:.3f}" for one, plain in zip(values, first, strict=True)]
        cells = [
            name,
            f"{predicted[name] / 1e6:.2f}",
            f"{with_exchanges / 1e6:.2f}",
            f"{sent / 1e6:.2f}",
            f"{sent / predicted[name]:.4f}",
            f"{sent / with_exchanges:.4f}",
            share[0],
            f"{load_N.max() / load_N.mean():.3f}",
            share[1],
            f"{whole * 1e3 / (len(written) * args.new_tokens):.3f}",
            share[2],
            f"{steps * 1e3 / (len(rounds) * (args.new_tokens - 1)):.1f}",
            share[3],
            f"{alike} of {len(written)}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
