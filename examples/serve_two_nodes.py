"""Serve a Mixture-of-Experts model on 2 nodes of 2 ranks by a solved map: record, solve, cut, serve, swap, lose a rank.

    python examples/serve_two_nodes.py prepare FOLDER [--model HUGGING_FACE_FOLDER]
    torchrun --nproc-per-node 4 examples/serve_two_nodes.py serve FOLDER [--kill 2]

`prepare` records prompts, solves a map and a newer one, and cuts the checkpoint by the first; without --model it makes
a tiny random model, whose text is noise. `serve` has all prompts answered, greedily: each rank answers its own, which
are of unequal length and number, joins the others' forwards when it has none left, and goes over to the newer map
between two tokens. What a rank has generated is in FOLDER/text-RANK.json; with --kill, which rank is missing.

Between machines with GPUs, on each of two nodes (not run on a GPU):

    torchrun --nnodes 2 --node-rank NODE --nproc-per-node 2 --master-addr HOST --master-port 29500 \
        examples/serve_two_nodes.py serve FOLDER --device cuda

torchrun asks a node's other ranks to end when it sees that one has died, and kills them half a minute later: they take
the time of --timeout-s to tell which rank is missing.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from placement import Cluster, Options, load_placement, open_trace, save_placement, solution_document, solve
from placement.errors import RankError
from placement.runtime import Attached, attach, torch_mesh
from placement.runtime.checkpoint import apply_map
from placement.traces.recorder import record

NODES, GPUS = 2, 2
PROMPTS = (
    "def fib(n):",
    "import os\nimport sys",
    "12 + 30 =",
    "for i in range(10):",
    "Once upon a time",
    "3, 5, 7, 11,",
    "It was a dark and stormy night",
)
HOMES = (0, 1, 0, 2)  # the rank of every fourth request: rank 3 has none
NEW_TOKENS, SWAP_AT, KILL_AT = 8, 4, 7
TINY = {"vocab_size": 260, "hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 2}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 8, "num_experts_per_tok": 2}


class Bytes:
    """The tokens of a model without a tokenizer: a byte each."""

    def encode(self, text: str) -> list[int]:
        return [byte + 3 for byte in text.encode()]

    def decode(self, ids: list[int]) -> str:
        return bytes(max(one - 3, 0) % 256 for one in ids).decode("latin-1")


def tokens_of(model: Path) -> Any:
    return AutoTokenizer.from_pretrained(model) if (model / "tokenizer.json").exists() else Bytes()


def make_tiny(folder: Path) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("mixtral", **TINY))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                weight.normal_(std=0.3)
    model.save_pretrained(folder)


@torch.no_grad()
def prepare(folder: Path, given: Path | None) -> None:
    """Everything that `serve` reads: `model`, `placement.json`, `newer.json` and `ranks`."""
    folder.mkdir(parents=True)
    path = folder / "model" if given is None else given.absolute()
    if given is None:
        make_tiny(path)
    else:
        (folder / "model").symlink_to(path)
    model, tokens = AutoModelForCausalLM.from_pretrained(path).eval(), tokens_of(path)
    with record(model, folder / "trace") as recorder:
        for number, prompt in enumerate(PROMPTS):
            recorder.requests([f"request {number}"])
            ids = torch.tensor([tokens.encode(prompt)])
            model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False)
    trace = open_trace(folder / "trace")
    slots = -(-trace.model.num_experts // (NODES * GPUS)) + 1
    cluster = Cluster(num_nodes=NODES, gpus_per_node=GPUS, slots_per_gpu=slots)
    for name, objective in (("placement.json", "locality"), ("newer.json", "balance")):
        solution = solve(trace, cluster, Options(objective=objective), workers=1)
        save_placement(folder / name, solution_document(solution))
    placement, _ = load_placement(folder / "placement.json")
    apply_map(folder / "model", placement, folder / "ranks")


class Requests:
    """This rank's requests, one after another; each `forward` gives one token."""

    def __init__(self, model: Any, tokens: Any, mine: dict[int, str], device: str) -> None:
        self._model, self._tokens, self._device = model, tokens, device
        self._cache_name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
        self._waiting = list(mine.items())
        self._number, self._fed, self._cache = -1, [], None
        self.generated: dict[int, list[int]] = {}

    @property
    def busy(self) -> bool:
        return bool(self._waiting) or bool(self._fed)

    @torch.no_grad()
    def forward(self) -> None:
        """The next token of the request that runs, or the first of the next one."""
        if not self._fed:
            self._number, prompt = self._waiting.pop(0)
            self._fed, self._cache = self._tokens.encode(prompt), None
            self.generated[self._number] = []
        ids = torch.tensor([self._fed], device=self._device)
        out = self._model(input_ids=ids, use_cache=True, **{self._cache_name: self._cache})
        chosen = int(out.logits[0, -1].argmax())
        self.generated[self._number].append(chosen)
        done = len(self.generated[self._number]) == NEW_TOKENS or chosen == self._model.config.eos_token_id
        self._fed, self._cache = [] if done else [chosen], out[self._cache_name]

    def texts(self) -> dict[int, str]:
        return {number: self._tokens.decode(ids) for number, ids in self.generated.items()}


def serve(folder: Path, device: str, timeout_s: float, kill: int | None) -> int:
    """What one rank does; 1 if another rank is lost."""
    torch.set_num_threads(1)
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # on NCCL the group's own time must be the longer one: its watchdog would end the process without a word
    dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=timedelta(seconds=10 * timeout_s))
    mesh = torch_mesh(NODES, GPUS, device=device, timeout_s=timeout_s)
    model = AutoModelForCausalLM.from_pretrained(folder / "model").eval().to(device)
    placement, _ = load_placement(folder / "placement.json")
    newer, _ = load_placement(folder / "newer.json")
    attached = attach(model, placement, mesh, checkpoint=folder / "ranks", keep_weights=False)
    tokens = tokens_of(folder / "model")
    mine = {number: prompt for number, prompt in enumerate(PROMPTS) if HOMES[number % 4] == mesh.rank}
    requests = Requests(model, tokens, mine, device)
    # torchrun asks the others to end as soon as one has died: they tell first which one
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(int(timeout_s) + 5))
    dist.barrier()  # ranks load at their own pace; from here on they keep to `timeout_s`
    told: dict[str, Any] = {"rank": mesh.rank}
    try:
        told["steps"] = run(attached, requests, newer, kill)
    except RankError as error:
        told |= {"missing": error.ranks, "message": str(error)}
    told |= {"texts": requests.texts(), "newer": attached.placement is not placement}
    (folder / f"text-{mesh.rank}.json").write_text(json.dumps(told))
    print(json.dumps(told), flush=True)
    return int("missing" in told)


def run(attached: Attached, requests: Requests, newer: Any, kill: int | None) -> int:
    """One forward of all ranks after another, and between them a step of the swap; how many forwards."""
    swap, over, step = None, False, 0
    while attached.anyone(requests.busy) or not over:
        if requests.busy:
            requests.forward()
        else:
            attached.join()
        step += 1
        if step == SWAP_AT:
            swap = attached.swap(newer)
        if swap is not None and not over:
            over = swap.advance()
        if step == KILL_AT and kill == attached.mesh.rank:
            os.kill(os.getpid(), signal.SIGKILL)
    return step


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["prepare", "serve"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--timeout-s", type=float, default=20.0)
    parser.add_argument("--kill", type=int, help="rank that ends itself after some tokens")
    args = parser.parse_args()
    if args.what == "prepare":
        lowest = next(path for path in args.folder.absolute().parents if path.exists())
        if args.folder.exists() or not lowest.is_dir() or not os.access(lowest, os.W_OK):
            parser.error(f"cannot make {args.folder}; give a new folder in one that is writable")
        if args.model is not None and not (args.model / "config.json").is_file():
            parser.error(f"argument --model: {args.model} has no config.json; give a Hugging Face folder")
        prepare(args.folder, args.model)
        return 0
    if not (args.folder / "placement.json").is_file():
        parser.error(f"{args.folder} has no placement.json; run `prepare {args.folder}` first")
    return serve(args.folder, args.device, args.timeout_s, args.kill)


if __name__ == "__main__":
    sys.exit(main())
