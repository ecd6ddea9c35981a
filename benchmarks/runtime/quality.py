"""What capacity costs in quality: perplexity of held-out text by domain, policy and gamma.

python benchmarks/runtime/quality.py MODEL DOCUMENTS [--gamma 1 1.25 1.5 2] [--batches mixed one-domain] [--plot FILE]

MODEL is a Hugging Face folder of OLMoE's layout (examples/train_tiny_moe.py makes one), DOCUMENTS a JSON of domain ->
list of held-out documents. Every expert layer runs in `placement.runtime`: `--ranks` ranks in lockstep hold an equal
share of the experts and of each batch's tokens, the limit is on all of a batch's tokens.

Order, Reverse, Random  kept by position in the batch, or by chance
Score                   kept by router score (Token Drop)
Expanded                the same, and a token's candidates are also the experts on its own rank (Expanded Drop)
mixed                   a batch has one window of each domain, in random order; one-domain: windows of one domain alone
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import describe_machine, input_file, input_model, output_file

from placement import Model, Placement
from placement.errors import OptionError
from placement.runtime import CapacityPolicy, Dispatcher, GroupedExperts, LayerMap, Lockstep, Mesh, MoELayer

NAMES = {
    "Order": {"mode": "drop", "keep": "first"},
    "Reverse": {"mode": "drop", "keep": "last"},
    "Random": {"mode": "drop", "keep": "random"},
    "Score": {"mode": "drop", "keep": "score"},
    "Expanded": {"mode": "expanded", "keep": "score"},
}
Loss = dict[str, Tensor]  # domain -> of every token, [X]


class LimitedExperts:
    """A model whose experts run in the runtime, with a policy that can be changed.

    dropped, routed  assignments so far; `extra` those of experts beyond the top-k sets
    """

    def __init__(self, model: Any, ranks: int) -> None:
        self.model, self.policy = model, CapacityPolicy()
        self.dropped = self.extra = self.routed = 0
        config, layers = model.config, model.model.layers
        if config.num_experts % ranks:
            raise OptionError(f"--ranks {ranks} does not divide the {config.num_experts} experts; give a divisor")
        self._model = Model(
            name=config.model_type,
            layer_ids=tuple(range(len(layers))),
            num_experts=config.num_experts,
            top_k=config.num_experts_per_tok,
        )
        self._world = Lockstep(1, ranks)
        self._scores: Tensor | None = None
        for number, layer in enumerate(layers):
            layer.mlp.gate.register_forward_hook(self._see_scores)
            self._replace(layer.mlp.experts, number, ranks)

    def _see_scores(self, _: Any, inputs: Any, outputs: tuple[Tensor, Tensor, Tensor]) -> None:
        self._scores = outputs[0].float().softmax(dim=1)

    def _replace(self, module: Any, layer: int, ranks: int) -> None:
        placement = Placement(
            model=self._model,
            num_nodes=1,
            gpus_per_node=ranks,
            slots_per_gpu=self._model.num_experts // ranks,
            phy2log_LP=np.tile(np.arange(self._model.num_experts), (self._model.num_layers, 1)),
        )
        layer_map = LayerMap.of(placement, layer)

        def forward(x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
            parts = [part.tensor_split(ranks) for part in (x, ids, weights, self._scores)]

            def program(mesh: Mesh) -> Tensor:
                own = layer_map.slots_of_rank(mesh.rank)
                held = slice(own[0], own[-1] + 1)
                experts = GroupedExperts(gate_up=module.gate_up_proj[held].mT, down=module.down_proj[held].mT)
                moe = MoELayer(Dispatcher(mesh, layer_map), experts, self.policy)
                y, stats = moe(*(part[mesh.rank] for part in parts))
                self.dropped += int(stats.dropped)
                self.extra += int(stats.extra)
                return y

            self.routed += ids.numel()
            return torch.cat(self._world.run(program))

        module.forward = forward

    @torch.no_grad()
    def losses(self, batches: list[list[tuple[str, Tensor]]], policy: CapacityPolicy) -> Loss:
        """Cross entropy of every token but the first of each window."""
        self.policy, self.dropped, self.extra, self.routed = policy, 0, 0, 0
        found: dict[str, list[Tensor]] = {}
        for batch in batches:
            rows = torch.stack([row for _, row in batch])
            logits = self.model(input_ids=rows[:, :-1], use_cache=False).logits.float()
            loss_RX = functional.cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none")
            for (domain, _), loss_X in zip(batch, loss_RX, strict=True):
                found.setdefault(domain, []).append(loss_X)
        return {domain: torch.cat(losses) for domain, losses in sorted(found.items())}


def windows(tokenizer: Any, documents: dict[str, list[str]], count: int, size: int) -> dict[str, list[Tensor]]:
    """The first `count` windows of `size + 1` tokens of each domain's documents, an end-of-text after each."""
    rows = {}
    for domain, texts in documents.items():
        ids = [i for one in tokenizer(texts)["input_ids"] for i in (*one, tokenizer.eos_token_id)]
        ids = ids[: count * (size + 1)]
        rows[domain] = list(torch.tensor(ids[: len(ids) // (size + 1) * (size + 1)]).split(size + 1))
        if not rows[domain]:
            raise OptionError(f"domain {domain!r} has fewer than {size + 1} tokens; give more text or fewer --tokens")
    return rows


def batched(rows: dict[str, list[Tensor]], how: str, seed: int) -> Iterator[list[tuple[str, Tensor]]]:
    """Batches of as many windows as there are domains."""
    rng, width = random.Random(seed), len(rows)
    if how == "one-domain":
        for domain, own in rows.items():
            for start in range(0, len(own), width):
                yield [(domain, row) for row in own[start : start + width]]
        return
    for number in range(max(map(len, rows.values()))):
        batch = [(domain, own[number]) for domain, own in rows.items() if number < len(own)]
        rng.shuffle(batch)
        yield batch


def perplexity(losses: Loss) -> dict[str, float]:
    """Of every domain, and of all with equal weight."""
    mean = {domain: float(loss_X.mean()) for domain, loss_X in losses.items()}
    return {
        **{domain: math.exp(loss) for domain, loss in mean.items()},
        "all": math.exp(sum(mean.values()) / len(mean)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=input_model)
    parser.add_argument("documents", type=input_file)
    parser.add_argument("--gamma", type=float, nargs="+", default=[1.0, 1.25, 1.5, 2.0])
    parser.add_argument("--batches", nargs="+", choices=["mixed", "one-domain"], default=["mixed", "one-domain"])
    parser.add_argument("--windows", type=int, default=4, help="windows of each domain")
    parser.add_argument("--tokens", type=int, default=192, help="of a window")
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--renormalize", action="store_true", help="scale what is left of a token's weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=output_file)
    args = parser.parse_args()
    torch.set_num_threads(1)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model).eval()
    rows = windows(tokenizer, json.loads(args.documents.read_text()), args.windows, args.tokens)
    start = time.perf_counter()
    limited = LimitedExperts(model, args.ranks)
    config = model.config
    print(
        f"# Quality: {config.num_hidden_layers} layers, {config.num_experts} experts, top-{config.num_experts_per_tok}"
    )
    print(f"\n{describe_machine()}, torch {torch.__version__}; {sum(map(len, rows.values()))} windows of ", end="")
    print(f"{args.tokens} tokens, {args.ranks} ranks, renormalize={args.renormalize}, seed {args.seed}; ", end="")
    print(f"load average {os.getloadavg()[0]:.1f}")
    curves = {}
    for how in args.batches:
        print(f"\n## {how} batches\n", flush=True)
        curves[how] = table(limited, list(batched(rows, how, args.seed)), args)
    print(f"\n{time.perf_counter() - start:.0f} s")
    if args.plot:
        draw(curves, args.plot, args.gamma)


def table(
    limited: LimitedExperts, batches: list[list[tuple[str, Tensor]]], args: argparse.Namespace
) -> dict[str, list[float]]:
    """Prints one row a policy and gamma; returns the perplexities of all domains by policy, first without a limit."""
    plain = perplexity(limited.losses(batches, CapacityPolicy()))
    print(f"| gamma | policy | dropped | extra | {' | '.join(plain)} | worse domains than Score |")
    print("|---" * (len(plain) + 5) + "|")
    print(f"| - | none | 0.0% | 0.0% | {' | '.join(f'{value:.2f}' for value in plain.values())} | - |", flush=True)
    curves: dict[str, list[float]] = {"none": [plain["all"]]}
    for gamma in args.gamma:
        found = {}
        for name in ("Score", *(name for name in NAMES if name != "Score")):
            policy = CapacityPolicy(gamma=gamma, renormalize=args.renormalize, seed=args.seed, **NAMES[name])
            found[name] = perplexity(limited.losses(batches, policy))
            curves.setdefault(name, []).append(found[name]["all"])
            worse = sum(found[name][domain] > found["Score"][domain] for domain in plain if domain != "all")
            share = (f"{count / limited.routed:.1%}" for count in (limited.dropped, limited.extra))
            values = (f"{value:.2f}" for value in found[name].values())
            compared = "-" if name == "Score" else f"{worse} of {len(plain) - 1}"
            print(f"| {gamma:g} | {name} | {' | '.join([*share, *values])} | {compared} |", flush=True)
    return curves


def draw(curves: dict[str, dict[str, list[float]]], to: Path, gammas: list[float]) -> None:
    """Perplexity over gamma, one panel a kind of batches."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(curves), figsize=(5.5 * len(curves), 4), squeeze=False, sharey=True)
    for panel, (how, lines) in zip(axes[0], curves.items(), strict=True):
        panel.axhline(lines["none"][0], color="black", linewidth=1, linestyle=":", label="no limit")
        for name in NAMES:
            panel.plot(gammas, lines[name], "o--" if name == "Expanded" else "o-", label=name)  # often upon Score's
        panel.set(title=f"{how} batches", xlabel="capacity factor gamma", xticks=gammas)
        panel.grid(alpha=0.3)
    axes[0][0].set(ylabel="perplexity, all domains")
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(to, dpi=120)


if __name__ == "__main__":
    main()
