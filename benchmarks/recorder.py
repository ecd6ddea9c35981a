"""How much slower a Hugging Face model on a CPU is while its experts are recorded: prefill alone, and `generate`.

Each round runs the same work without and with the recorder, in turns. Seconds are those of the processor, so that what
else the machine does counts little, and the ratio is that of their medians.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from machine import describe_machine
from transformers import OlmoeConfig, OlmoeForCausalLM

from placement.traces.recorder import record

SEED = 0


def make_model(hidden: int, expert: int, layers: int, experts: int, top_k: int) -> OlmoeForCausalLM:
    torch.manual_seed(SEED)
    config = OlmoeConfig(
        vocab_size=4096,
        hidden_size=hidden,
        intermediate_size=expert,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 32,
        num_experts=experts,
        num_experts_per_tok=top_k,
        max_position_embeddings=1024,
    )
    model = OlmoeForCausalLM(config).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def seconds(task: Callable[[], object]) -> float:
    start = time.process_time()
    task()
    return time.process_time() - start


@torch.no_grad()
def compare(model: OlmoeForCausalLM, task: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median seconds of `task` without and with the recorder; the two take turns at going first."""
    task()
    plain, recorded = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for with_recorder in (number % 2 == 0, number % 2 == 1):
                if not with_recorder:
                    plain.append(seconds(task))
                    continue
                with record(model, Path(folder) / str(number)):
                    recorded.append(seconds(task))
    return median(plain), median(recorded)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=21)
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    generator = torch.Generator().manual_seed(SEED)
    print(f"# Recorder\n\n{describe_machine()}, torch {torch.__version__}, {given.threads} threads, seed {SEED},")
    print(f"medians of {given.rounds} rounds, processor time\n")
    print("| model | work | without, ms | with, ms | ratio |\n|---|---|---|---|---|")
    for name, shape in (("8 x 32 experts, 17M", (192, 96, 8, 32, 4)), ("16 x 64 experts, 107M", (256, 128, 16, 64, 8))):
        model = make_model(*shape)
        for work, rows, length, new in (
            ("prefill 8 x 128", 8, 128, 0),
            ("generate 1 x 32 + 32", 1, 32, 32),
            ("generate 8 x 64 + 16", 8, 64, 16),
        ):
            ids = torch.randint(4096, (rows, length), generator=generator)

            def task(model: OlmoeForCausalLM = model, ids: torch.Tensor = ids, new: int = new) -> object:
                if not new:
                    return model(input_ids=ids, use_cache=False)
                mask = torch.ones_like(ids)
                return model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=new, do_sample=False)

            plain, recorded = compare(model, task, given.rounds)
            print(
                f"| {name} | {work} | {plain * 1e3:.1f} | {recorded * 1e3:.1f} | {recorded / plain:.3f} |", flush=True
            )


if __name__ == "__main__":
    main()
