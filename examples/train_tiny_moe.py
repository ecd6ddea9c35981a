"""Train a small Mixture-of-Experts language model on nine domains of text, then record which experts it uses.

    python examples/train_tiny_moe.py --texts TEXTS -o OUT
    python examples/train_tiny_moe.py --texts TEXTS -o OUT --record-only

OUT/model is a Hugging Face folder (OlmoeForCausalLM, safetensors, tokenizer), OUT/trace an expert-trace/1 of held-out
prompts and what the model wrote after them, OUT/report.json the perplexities. Needs torch and transformers 5. The same
seed, texts, versions and number of threads give the same model on a CPU. examples/README.md says where TEXTS come from.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from tiny_moe_texts import domains
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from torch.nn import functional
from transformers import OlmoeConfig, OlmoeForCausalLM, PreTrainedTokenizerFast

from placement.errors import OutputError
from placement.support.atomic_files import check_folder, check_free
from placement.traces.recorder import record

BALANCE = 0.01  # weight of the load-balancing loss: Switch Transformer's and OLMoE's
ROUTER_Z = 0.001
END = "<|end|>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """How long and how wide; `cpu` takes about 20 minutes of one core."""

    hidden: int = 192
    expert: int = 96
    layers: int = 8
    experts: int = 32
    top_k: int = 4
    vocabulary: int = 4096
    tokens: int = 192
    batch: int = 12
    steps: int = 1100
    learning_rate: float = 3e-3
    chars: int = 2_500_000
    requests: int = 33  # of each domain, to record


PRESETS = {
    "cpu": Preset(),
    "gpu": Preset(hidden=256, expert=128, tokens=256, batch=64, steps=2000, learning_rate=2e-3),
    "smoke": Preset(
        hidden=32,
        expert=16,
        layers=2,
        experts=8,
        top_k=2,
        vocabulary=512,
        tokens=128,
        batch=4,
        steps=5,
        chars=100_000,
        requests=4,
    ),
}

PROMPT_TOKENS = range(32, 97)
NEW_TOKENS = 48
ROWS = 11

Texts = dict[str, tuple[list[str], list[str]]]


def make_tokenizer(texts: Texts, size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE from the training documents, an equal number of characters of each domain."""
    bpe = ByteLevelBPETokenizer()
    samples = ("".join(train)[:300_000] for train, _ in texts.values())
    bpe.train_from_iterator(samples, size, special_tokens=[END], show_progress=False)
    plain = Tokenizer.from_str(bpe.to_str())
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token=END, pad_token=END, padding_side="left")


def make_model(preset: Preset) -> OlmoeForCausalLM:
    config = OlmoeConfig(
        vocab_size=preset.vocabulary,
        hidden_size=preset.hidden,
        intermediate_size=preset.expert,
        num_hidden_layers=preset.layers,
        num_attention_heads=preset.hidden // 32,
        num_key_value_heads=preset.hidden // 32,
        num_experts=preset.experts,
        num_experts_per_tok=preset.top_k,
        norm_topk_prob=True,
        max_position_embeddings=2 * preset.tokens,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=0,
    )
    return OlmoeForCausalLM(config)


def streams(texts: Texts, tokenizer: PreTrainedTokenizerFast, part: int) -> dict[str, torch.Tensor]:
    """All documents of a part of each domain as one row of tokens, with END after each."""
    return {
        name: torch.tensor([i for ids in tokenizer(parts[part])["input_ids"] for i in (*ids, tokenizer.eos_token_id)])
        for name, parts in texts.items()
    }


def batches(train: dict[str, torch.Tensor], preset: Preset, seed: int) -> Iterator[torch.Tensor]:
    """Windows of `tokens + 1`, the domains in turn, places drawn at random."""
    rng = random.Random(seed)
    names = list(train)
    while True:
        rows = []
        for _ in range(preset.batch):
            stream = train[rng.choice(names)]
            at = rng.randrange(len(stream) - preset.tokens)
            rows.append(stream[at : at + preset.tokens + 1])
        yield torch.stack(rows)


def router_losses(router_logits: tuple[torch.Tensor, ...], top_k: int) -> torch.Tensor:
    """Load-balancing loss of each layer by itself (Switch Transformer, eq. 4) plus the z-loss, mean over layers."""
    total = torch.zeros((), device=router_logits[0].device)
    for logits_TE in router_logits:
        share_TE = logits_TE.float().softmax(dim=1)
        chosen_TE = torch.zeros_like(share_TE).scatter_(1, share_TE.topk(top_k, dim=1).indices, 1.0 / top_k)
        balance = logits_TE.shape[1] * (chosen_TE.mean(0) * share_TE.mean(0)).sum()
        total = total + BALANCE * balance + ROUTER_Z * logits_TE.float().logsumexp(dim=1).square().mean()
    return total / len(router_logits)


def train(model: OlmoeForCausalLM, feed: Iterator[torch.Tensor], preset: Preset, device: str) -> None:
    """AdamW with warm-up and cosine decay."""
    model.to(device).train()
    matrices = [weight for weight in model.parameters() if weight.dim() > 1]
    others = [weight for weight in model.parameters() if weight.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=preset.learning_rate, betas=(0.9, 0.95), fused=True)
    warm_up = max(1, preset.steps // 20)
    start = time.perf_counter()
    for step in range(preset.steps):
        decay = 0.05 + 0.95 * (1 + math.cos(math.pi * step / preset.steps)) / 2
        for group in optimizer.param_groups:
            group["lr"] = preset.learning_rate * min(1.0, (step + 1) / warm_up) * decay
        rows = next(feed).to(device)
        out = model.model(input_ids=rows[:, :-1], use_cache=False, output_router_logits=True)
        logits = model.lm_head(out.last_hidden_state).flatten(0, 1).float()
        loss = functional.cross_entropy(logits, rows[:, 1:].flatten())
        (loss + router_losses(out.router_logits, preset.top_k)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 25 == 0 or step == preset.steps - 1:
            print(f"step {step} loss {loss.item():.3f} after {time.perf_counter() - start:.0f} s", flush=True)


@torch.no_grad()
def perplexity(model: OlmoeForCausalLM, stream: torch.Tensor, preset: Preset, device: str) -> float:
    """Of the first 64 windows of held-out text, each from an empty context."""
    model.eval()
    rows = stream[: 64 * (preset.tokens + 1)].unfold(0, preset.tokens + 1, preset.tokens + 1)
    losses = []
    for part in rows.split(preset.batch):
        logits = model(input_ids=part[:, :-1].to(device), use_cache=False).logits.flatten(0, 1).float().cpu()
        losses.append(functional.cross_entropy(logits, part[:, 1:].flatten(), reduction="none"))
    return math.exp(torch.cat(losses).mean().item())


def record_requests(
    model: OlmoeForCausalLM,
    held_out: dict[str, torch.Tensor],
    path: Path,
    preset: Preset,
    seed: int,
    device: str,
    *,
    tokens: bool = False,
) -> None:
    """Prompts from held-out text, the domains mixed, each continued by sampling; with `tokens` their ids too."""
    rng = random.Random(seed)
    requests = []
    for domain, stream in held_out.items():
        for number in range(preset.requests):
            size = rng.choice(PROMPT_TOKENS)
            at = rng.randrange(len(stream) - size)
            requests.append((f"{domain}/{number}", domain, stream[at : at + size]))
    rng.shuffle(requests)
    torch.manual_seed(seed)
    model.to(device).eval()
    with record(model, path, name="tiny-moe", tokens=tokens) as recorder:
        for start in range(0, len(requests), ROWS):
            ids, labels, prompts = zip(*requests[start : start + ROWS], strict=True)
            longest = max(len(prompt) for prompt in prompts)
            mask = torch.stack([torch.arange(longest) >= longest - len(prompt) for prompt in prompts]).long()
            padded = torch.stack([functional.pad(prompt, (longest - len(prompt), 0)) for prompt in prompts])
            recorder.requests(ids, domain=labels)
            model.generate(
                input_ids=padded.to(device),
                attention_mask=mask.to(device),
                max_new_tokens=NEW_TOKENS,
                do_sample=True,
                temperature=0.8,
                top_k=0,
            )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--texts", type=Path, default=Path("/"), help="folder with unpacked Debian packages")
    options.add_argument("-o", "--output", type=Path, required=True)
    options.add_argument("--preset", choices=PRESETS, default="gpu" if torch.cuda.is_available() else "cpu")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    options.add_argument("--steps", type=int, help="of training; default: those of the preset")
    options.add_argument("--token-ids", action="store_true", help="record the ids of the tokens too: they are the text")
    options.add_argument("--record-only", action="store_true", help="record again with the model in OUT/model")
    given = options.parse_args()
    folder, trace = given.output / "model", given.output / "trace"
    try:
        for path in (folder, trace):
            check_folder(path)
        check_free(trace)
    except OutputError as error:
        options.error(str(error))
    if not given.texts.is_dir():
        options.error(f"argument --texts: {given.texts} is no folder; examples/README.md says how to make one")
    if given.record_only and not (folder / "config.json").is_file():
        options.error(f"argument --record-only: {folder} holds no model; train one first, without --record-only")
    torch.set_num_threads(given.threads)
    torch.manual_seed(given.seed)
    preset = PRESETS[given.preset]
    preset = preset if given.steps is None else replace(preset, steps=given.steps)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    texts = domains(given.texts, given.seed, preset.chars)
    print(f"domains: {', '.join(texts)}; {device}", flush=True)
    if not given.record_only:
        tokenizer = make_tokenizer(texts, preset.vocabulary)
        model = make_model(preset)
        print(f"{sum(weight.numel() for weight in model.parameters()):,} parameters", flush=True)
        parts = streams(texts, tokenizer, 0)
        print({name: len(stream) for name, stream in parts.items()}, flush=True)
        start = time.perf_counter()
        train(model, batches(parts, preset, given.seed), preset, device)
        seconds = time.perf_counter() - start
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        held_out = {name: perplexity(model, s, preset, device) for name, s in streams(texts, tokenizer, 1).items()}
        report = {"preset": asdict(preset), "seed": given.seed, "seconds": seconds, "held_out_perplexity": held_out}
        (given.output / "report.json").write_text(json.dumps(report, indent=1) + "\n")
        print(json.dumps(report), flush=True)
    tokenizer, model = PreTrainedTokenizerFast.from_pretrained(folder), OlmoeForCausalLM.from_pretrained(folder)
    record_requests(model, streams(texts, tokenizer, 1), trace, preset, given.seed, device, tokens=given.token_ids)


if __name__ == "__main__":
    main()
