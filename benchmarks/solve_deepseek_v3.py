"""Solve a DeepSeek-V3-shaped trace as a user would: one command, a fresh process, the numba cache warm."""

from __future__ import annotations

import json
import tempfile

from machine import describe_machine, placement

SEED = 1
SYNTH = ["--preset", "deepseek-v3", "--no-group-limit", "--tokens", "100000", "--requests", "400", "--seed", str(SEED)]
SHAPES = {
    "4 nodes x 8 GPUs": ["--nodes", "4", "--gpus-per-node", "8"],
    "40 nodes x 8 GPUs, 64 redundant experts": ["--nodes", "40", "--gpus-per-node", "8", "--slots-per-gpu", "1"],
}


def measure(trace: str, title: str, shape: list[str], answer: str) -> None:
    print(f"\n## {title}\n\n`placement solve TRACE {' '.join(shape)} --json`\n")
    print(
        "| run | wall s | CPU s | peak MB | held-out sends: linear | eplb | auto | auto against linear | "
        "rank imbalance: linear | eplb | auto | mean gap |"
    )
    print("|---" * 12 + "|")
    for run in ("first", "second", "third"):
        output, seconds, busy, peak = placement("solve", trace, *shape, "--json", "-o", answer)
        document = json.loads(output)
        maps = document["evaluation"]["held_out"]
        sends = {name: maps[name]["node_sends_per_token"] for name in ("linear", "eplb", "auto")}
        uneven = {name: maps[name]["rank_imbalance"]["mean"] for name in sends}
        gaps = [layer["gap"] for layer in document["layers"] if layer["gap"] is not None]  # few layers are bounded
        print(
            f"| {run} | {seconds:.1f} | {busy:.1f} | {peak / 1e6:.0f} | "
            + " | ".join(f"{value:.3f}" for value in sends.values())
            + f" | {100 * (sends['auto'] / sends['linear'] - 1):.1f}% | "
            + " | ".join(f"{value:.3f}" for value in uneven.values())
            + f" | {100 * sum(gaps) / len(gaps):.1f}% |",
            flush=True,
        )


def main() -> None:
    print(f"# DeepSeek-V3-shaped trace\n\n{describe_machine()}, seed {SEED}\n")
    with tempfile.TemporaryDirectory() as folder:
        trace = f"{folder}/trace"
        placement("traces", "synth", *SYNTH, "-o", trace)
        print(f"`placement traces synth {' '.join(SYNTH)} -o TRACE`")
        for title, shape in SHAPES.items():
            measure(trace, title, shape, f"{folder}/placement.json")


if __name__ == "__main__":
    main()
