"""Balance of all layers from counts, beside EPLB's published code (the copy in the sglang wheel) in the same run.

The wheel is fetched by pip into a cache outside of this repository; of it one file is loaded, which needs torch. Where
either is missing the script says so and ends.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import types
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from machine import describe_machine

from placement.core.cluster import Cluster
from placement.solvers.balancing.balance import balance_maps
from placement.support.parallel import make_executor, usable_cores
from placement.traces.synth import write_synthetic
from placement.traces.synthetic.presets import preset
from placement.traces.trace import open_trace

WHEEL, FILE = "sglang==0.5.23", "sglang/srt/eplb/eplb_algorithms/deepseek.py"
LAYERS, EXPERTS, GROUPS = 58, 256, 8
CLUSTER = Cluster(num_nodes=4, gpus_per_node=8, slots_per_gpu=9)
SEEDS = (0, 1, 2)
TOKENS, SYNTH_TOKENS, REPEATS = 100_000, 20_000, 7

EXPLANATION = """\
EPLB runs with one torch thread and with all; the quicker counts. `groups`: groups kept on nodes (EPLB: hierarchical).
`doubles`: layers in which EPLB's map has an expert twice on a GPU, which engines cannot load; it may be more balanced
than any valid map. `worse`: layers in which ours is less balanced than EPLB's (in brackets: of them doubles).
"""


def published_eplb() -> Any:
    """The module, or the end of this script."""
    try:
        import torch  # noqa: F401
    except ImportError:
        raise SystemExit("skipped: EPLB's published code needs torch; install it beside this package") from None
    folder = Path(tempfile.gettempdir()) / "placement-benchmark-wheels"
    folder.mkdir(exist_ok=True)
    if not list(folder.glob("sglang*.whl")):
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), WHEEL]
        if subprocess.run(command, check=False).returncode:
            raise SystemExit(f"skipped: pip cannot download {WHEEL}, which holds EPLB's published code")
    module = types.ModuleType("published_eplb")
    source = zipfile.ZipFile(next(folder.glob("sglang*.whl"))).read(FILE)
    exec(compile(source, FILE, "exec"), module.__dict__)  # noqa: S102
    return module


def loads(seed: int) -> Iterator[tuple[str, npt.NDArray[np.int64]]]:
    """(name, counts [L, E]) of several skews, as many assignments as 100,000 tokens make with top-8."""
    rng = np.random.default_rng(seed)
    shares = {
        f"lognormal {spread}": rng.lognormal(0, spread, (LAYERS, EXPERTS)) for spread in (0.3, 0.6, 1.0, 1.5, 2.0)
    }
    shares |= {f"Dirichlet {alpha}": rng.dirichlet(np.full(EXPERTS, alpha), LAYERS) for alpha in (0.3, 1.0, 4.0)}
    for name, share_LE in shares.items():
        yield name, np.stack([rng.multinomial(8 * TOKENS, row / row.sum()) for row in share_LE])
    with tempfile.TemporaryDirectory() as folder:
        trace = f"{folder}/trace"
        write_synthetic(trace, preset("deepseek-v3"), num_tokens=SYNTH_TOKENS, num_requests=200, seed=seed)
        load_LE = np.zeros((LAYERS, EXPERTS), dtype=np.int64)
        for block in open_trace(trace).blocks():
            for layer in range(LAYERS):
                load_LE[layer] += np.bincount(block.ids_TK(layer).ravel(), minlength=EXPERTS)
        yield "traces synth", load_LE


def best_seconds(task: Callable[[], Any]) -> tuple[float, Any]:
    times, answer = [], task()  # compile, and warm the cache
    for _ in range(REPEATS):
        start = time.perf_counter()
        answer = task()
        times.append(time.perf_counter() - start)
    return min(times), answer


def imbalance_L(maps_LP: npt.NDArray[np.integer], load_LE: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    rows = []
    for row, load_E in zip(maps_LP, load_LE, strict=True):
        load_G = (load_E / np.bincount(row, minlength=EXPERTS))[row].reshape(CLUSTER.num_ranks, -1).sum(axis=1)
        rows.append(load_G.max() / load_G.mean())
    return np.array(rows)


def main() -> None:
    published = published_eplb()
    import torch

    print(f"# Balance from counts: {LAYERS} layers, {EXPERTS} experts on 288 slots of 4 nodes x 8 GPUs\n")
    print(f"{describe_machine()}, torch {torch.__version__}, EPLB of {WHEEL}, seeds {SEEDS}, best of {REPEATS}\n")
    print(EXPLANATION)
    print("| loads | seed | policy | ours ms | EPLB ms | ratio | imbalance mean / max: ours | EPLB | worse | doubles |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    with make_executor(usable_cores()) as executor:
        for seed in SEEDS:
            for name, load_LE in loads(seed):
                for groups in (False, True):
                    ours, maps_LP = best_seconds(
                        lambda load=load_LE, keep=groups: balance_maps(
                            load, CLUSTER, num_groups=GROUPS if keep else None, keep_groups=keep, executor=executor
                        )
                    )
                    times = []
                    for threads in (1, usable_cores()):
                        torch.set_num_threads(threads)
                        seconds, answer = best_seconds(
                            lambda load=load_LE, keep=groups: published.rebalance_experts(
                                torch.from_numpy(load),
                                CLUSTER.num_slots,
                                GROUPS,
                                CLUSTER.num_nodes,
                                CLUSTER.num_ranks,
                                keep,
                            )
                        )
                        times.append(seconds)
                    theirs_LP = answer[0].numpy()
                    mine_L, theirs_L = imbalance_L(maps_LP, load_LE), imbalance_L(theirs_LP, load_LE)
                    held = np.sort(theirs_LP.reshape(LAYERS, CLUSTER.num_ranks, -1), axis=2)
                    double_L = (np.diff(held, axis=2) == 0).any(axis=(1, 2))
                    worse_L = mine_L > theirs_L * (1 + 1e-9)
                    uneven = [f"{found_L.mean():.4f} / {found_L.max():.4f}" for found_L in (mine_L, theirs_L)]
                    print(
                        f"| {name} | {seed} | {'groups' if groups else 'global'} | {ours * 1e3:.1f} "
                        f"| {min(times) * 1e3:.1f} | {min(times) / ours:.1f} | {uneven[0]} | {uneven[1]} "
                        f"| {worse_L.sum()} ({(worse_L & double_L).sum()}) | {double_L.sum()} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
