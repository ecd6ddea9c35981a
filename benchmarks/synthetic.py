"""How near synthetic traces come to recordings: presets to the models that they are named for, `--like` to its file.

    python benchmarks/synthetic.py RECORDING...   # traces (expert-trace/1) and pair files

Each recording is followed by the synthetic trace that `--like` makes of it, and by the presets of the same shape, with
as many tokens; the figures are means over up to MOST_LAYERS layers, evenly spaced. `same` compares expert with expert:
the share of the load that is on other experts, and the correlation of the counts of the recording's strong pairs.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
from machine import describe_machine, run_script

from placement import Trace, count, open_trace
from placement.documents.pair_file import read_pairs
from placement.errors import InputError
from placement.support.parallel import make_executor
from placement.traces.synth import synthesize
from placement.traces.synthetic.likeness import Likeness, StrongPairs, strong_pairs_L
from placement.traces.synthetic.presets import PRESETS, QWEN3_30B, TraceShape
from placement.workload.as_likeness import likeness_of

TOKENS_OF_A_REQUEST, MOST_LAYERS, SEED = 250, 12, 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", type=input_recording, nargs="+", help="none is shipped")
    recordings: list[Likeness | Trace] = parser.parse_args().recordings
    print(f"# Synthetic traces beside recordings\n\n{describe_machine()}, seed {SEED}\n")
    print(f"Means over {MOST_LAYERS} layers, evenly spaced; requests of {TOKENS_OF_A_REQUEST} tokens.\n")
    print("| | tokens | max / mean | CV | Gini | share of strong pairs | their lift | same: load elsewhere | pairs |")
    print("|---|---|---|---|---|---|---|---|---|")
    for recording in recordings:
        real = likeness_of(count(recording)) if isinstance(recording, Trace) else recording
        real = of_layers(real, some(real.model.num_layers))
        print(row(real.model.name, real))
        like = TraceShape(model=real.model, strengths=QWEN3_30B)
        made = measured(like, real.num_tokens, real)
        print(row("`--like` it", made[0], same(real, *made)), flush=True)
        for name, shape in PRESETS.items():
            if (shape.model.num_experts, shape.model.top_k) == (real.model.num_experts, real.model.top_k):
                layer_ids = tuple(shape.model.layer_ids[layer] for layer in some(shape.model.num_layers))
                few = replace(shape, model=replace(shape.model, layer_ids=layer_ids))
                print(row(f"`--preset {name}`", measured(few, real.num_tokens, None)[0]), flush=True)


def input_recording(text: str) -> Likeness | Trace:
    """The type of an argument that names a trace, or a pair file."""
    try:
        return Likeness.of(read_pairs(text)) if text.endswith(".json") else open_trace(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def some(num_layers: int) -> list[int]:
    return np.unique(np.linspace(0, num_layers - 1, MOST_LAYERS).astype(int)).tolist()


def of_layers(like: Likeness, layers: list[int]) -> Likeness:
    return replace(
        like,
        model=replace(like.model, layer_ids=tuple(like.model.layer_ids[layer] for layer in layers)),
        share_LE=like.share_LE[layers],
        pairs_L=None if like.pairs_L is None else tuple(like.pairs_L[layer] for layer in layers),
    )


def measured(shape: TraceShape, num_tokens: int, like: Likeness | None) -> tuple[Likeness, np.ndarray]:
    """(what the synthetic trace is like, tokens that visit both of two experts [L, E, E])."""
    model = shape.model
    load_LE = np.zeros((model.num_layers, model.num_experts), dtype=np.int64)
    coact_LEE = np.zeros((model.num_layers, model.num_experts, model.num_experts), dtype=np.int64)
    with make_executor(None) as executor:
        _, pieces = synthesize(
            shape,
            num_tokens=num_tokens,
            num_requests=max(num_tokens // TOKENS_OF_A_REQUEST, 1),
            seed=SEED,
            like=like,
            executor=executor,
        )
        for piece in pieces:
            for layer, ids_TK in enumerate(piece.ids_LTK):
                visits_TE = np.zeros((len(ids_TK), model.num_experts), dtype=np.float32)
                np.put_along_axis(visits_TE, ids_TK.astype(np.int64), 1.0, axis=1)
                coact_EE = np.rint(visits_TE.T @ visits_TE).astype(np.int64)
                load_LE[layer] += np.diagonal(coact_EE)
                np.fill_diagonal(coact_EE, 0)
                coact_LEE[layer] += coact_EE
    pairs_L = strong_pairs_L(coact_LEE, load_LE, num_tokens, model.top_k)
    share_LE = load_LE / num_tokens
    return Likeness(
        model=replace(model, num_groups=None), num_tokens=num_tokens, share_LE=share_LE, pairs_L=pairs_L
    ), coact_LEE


def same(real: Likeness, made: Likeness, coact_LEE: np.ndarray) -> tuple[float, float]:
    """(share of the load that is on other experts, correlation of the counts of the recording's strong pairs)."""
    elsewhere = np.abs(made.share_LE - real.share_LE).sum(axis=1) / (2 * real.share_LE.sum(axis=1))

    def correlation(pairs: StrongPairs, coact_EE: np.ndarray) -> float:
        return float(np.corrcoef(coact_EE[pairs.pair_M2[:, 0], pairs.pair_M2[:, 1]], pairs.share_M)[0, 1])

    return float(elsewhere.mean()), float(np.mean(list(map(correlation, real.pairs_L or (), coact_LEE))))


def row(name: str, like: Likeness, compared: tuple[float, float] | None = None) -> str:
    load_LE = np.sort(like.share_LE, axis=1)
    mean_L, experts = load_LE.mean(axis=1), load_LE.shape[1]
    gini_L = 2 * (load_LE @ np.arange(1, experts + 1)) / (experts**2 * mean_L) - (experts + 1) / experts
    pairs_L = like.pairs_L or ()
    figures = (
        float((load_LE.max(axis=1) / mean_L).mean()),
        float((load_LE.std(axis=1) / mean_L).mean()),
        float(gini_L.mean()),
        float(np.mean([pairs.share for pairs in pairs_L])),
        float(np.mean([pairs.lift for pairs in pairs_L])),
    )
    cells = [f"{value:.2f}" if value > 1.5 else f"{value:.3f}" for value in figures]
    cells += ["", ""] if compared is None else [f"{compared[0]:.1%}", f"{compared[1]:.2f}"]
    return f"| {name} | {like.num_tokens:,} | {' | '.join(cells)} |"


if __name__ == "__main__":
    run_script(main)
