"""How time and memory of `placement solve` grow with each thing that can be larger, on synthetic traces."""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass, replace

from machine import describe_machine, placement

from placement.traces.synthetic.presets import preset

SEED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A trace and a cluster; GPUs hold one slot or more, as `Cluster.fit` chooses, beside the redundant ones."""

    tokens: int = 100_000
    layers: int = 24
    experts: int = 64
    top_k: int = 6
    nodes: int = 4
    gpus_per_node: int = 8
    redundant: int = 0
    workers: int = 2
    preset: str = ""

    def synth(self) -> list[str]:
        if self.preset:
            shape = ["--preset", self.preset, "--no-group-limit", "--tokens", self.tokens]
            return [str(word) for word in ["--requests", 400, "--seed", SEED, *shape]]
        shape = ["--layers", self.layers, "--experts", self.experts, "--top-k", self.top_k, "--tokens", self.tokens]
        return [str(word) for word in ["--requests", 400, "--seed", SEED, *shape]]

    def solve(self) -> list[str]:
        shape = ["--nodes", self.nodes, "--gpus-per-node", self.gpus_per_node, "--redundant-experts", self.redundant]
        return [str(word) for word in [*shape, "--workers", self.workers]]


def of_preset(name: str, **given: int) -> Point:
    model = preset(name).model
    sizes = {"layers": model.num_layers, "experts": model.num_experts, "top_k": model.top_k}
    return Point(preset=name, **sizes, **given)


BASE = Point()
MODELS = (
    ("qwen3-next", 4),
    ("qwen3-next", 8),
    ("kimi-k2", 4),
    ("deepseek-v4-pro", 4),
    ("qwen3-30b", 4),
    ("gpt-oss-120b", 4),
)
AXES = {
    "tokens": [replace(BASE, tokens=number) for number in (10_000, 100_000, 1_000_000, 4_000_000)],
    "layers": [replace(BASE, layers=number) for number in (6, 12, 24, 48, 96)],
    "experts": [replace(BASE, experts=number, top_k=8) for number in (32, 64, 128, 256, 512)],
    "nodes": [replace(BASE, experts=256, top_k=8, nodes=number, gpus_per_node=4) for number in (2, 4, 8, 16, 32, 64)],
    "redundant": [replace(BASE, redundant=number) for number in (0, 32, 64)],
    "models": [of_preset(name, nodes=nodes, redundant=number) for name, nodes in MODELS for number in (0, 32)],
    "workers": [replace(BASE, workers=number) for number in (1, 2)],
}


def row(point: Point) -> str:
    with tempfile.TemporaryDirectory() as folder:
        trace, answer = f"{folder}/trace", f"{folder}/placement.json"
        placement("traces", "synth", *point.synth(), "-o", trace)
        output, seconds, busy, peak = placement("solve", trace, *point.solve(), "--json", "-o", answer)
        _, _, measuring, _ = placement("evaluate", trace, "--map", answer)
        placement("export", answer, "--to", "sglang", "-o", f"{folder}/map-of-sglang.json")
    held_out = json.loads(output)["evaluation"]["held_out"]
    against = held_out["auto"]["node_sends_per_token"] / held_out["eplb"]["node_sends_per_token"] - 1
    shape = [point.tokens, point.layers, point.experts, point.top_k, point.nodes, point.gpus_per_node]
    cells = [f"{value:,}" for value in [*shape, point.redundant, point.workers]]
    cells += [f"{seconds:.1f}", f"{busy:.1f}", f"{measuring:.1f}", f"{peak / 1e6:.0f}", f"{100 * against:+.1f}%"]
    return "| " + " | ".join(cells) + " |"


def axis(text: str) -> str:
    """The type of an argument that names one of AXES."""
    if text not in AXES:
        raise argparse.ArgumentTypeError(f"unknown axis {text}; give some of {', '.join(AXES)}")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("axes", type=axis, nargs="*", default=list(AXES), help=f"of {', '.join(AXES)}; default: all")
    axes: list[str] = parser.parse_args().axes
    print(f"# Time and memory of a solve\n\n{describe_machine()}, seed {SEED}, synthetic traces of 400 requests\n")
    print(
        "`placement traces synth ... -o TRACE; placement solve TRACE ...`: wall and CPU seconds of the solve alone, all"
    )
    print(
        "of it: counting, solving, measuring three maps on all tokens; sends held out against eplb's. Then one map is"
    )
    print("measured by `placement evaluate` on all tokens, and exported.")
    for name in axes:
        print(f"\n## {name}\n")
        heads = ["tokens", "layers", "experts", "top-k", "nodes", "GPUs a node", "redundant", "workers"]
        print("| " + " | ".join([*heads, "wall s", "CPU s", "evaluate CPU s", "peak MB", "sends"]) + " |")
        print("|---" * 13 + "|")
        for point in AXES[name]:
            print(row(point), flush=True)


if __name__ == "__main__":
    main()
