"""llama.cpp's importance matrix (`llama-imatrix -o imatrix.gguf`): visits of each expert, without tokens.

`blk.<n>.ffn_<gate, up, down, gate_up>_exps.weight.counts`, float32 [1, E], counts the tokens that each expert saw; the
router's `blk.<n>.ffn_gate_inp.weight.counts`, or that of any other dense weight of the layer, counts all tokens: the
ratio is top-k. GroveMoE's `ffn_*_chexps` are chunk experts, which several experts share: they are no experts that a
router chooses. Read in the source of llama.cpp, `tools/imatrix/imatrix.cpp`.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt

from placement.core.model import layers_named, ranges
from placement.errors import OptionError, TraceError
from placement.readers.base import CountRecording, ReadOptions, files_of, head_of, model_name, reading
from placement.readers.gguf import MAGIC, gguf_tensors, gguf_values

PATTERN = "*.gguf"
COUNTS = re.compile(r"blk\.(\d+)\.(\w+)\.weight\.counts")
EXPERTS, CHUNKS = re.compile(r"ffn_(gate|up|down|gate_up|up_gate)_exps"), re.compile(r"ffn_(gate|up|down)_chexps")
MEND = "make it again with llama-imatrix -o imatrix.gguf; its older format .dat has no counts of experts"


class LlamaCpp:
    name = "llama-cpp"
    title = "llama.cpp importance matrix"

    def sniff(self, path: Path) -> str | None:
        files = files_of(path, PATTERN)
        head = head_of(files[0], 1 << 20) if files else b""
        if head[:4] == MAGIC and b"_exps.weight.counts" in head:
            return f"{files[0].name} is a GGUF file with counts of experts"
        return None

    def read(self, path: Path, options: ReadOptions) -> CountRecording:
        files = files_of(path, PATTERN)
        if not files:
            raise TraceError(f"{path} has no {PATTERN}; {MEND}")
        found = [_counts(file, options.layer_ids) for file in files]
        layer_ids, first_LE, top_k, _ = found[0]
        for file, (layers, count_LE, _, _) in zip(files, found, strict=True):
            if layers != layer_ids or count_LE.shape != first_LE.shape:
                raise TraceError(f"{file} is of another model than {files[0]}; convert them apart")
        notes = ["a file is the only row of counts: nothing can be held out"] if len(files) == 1 else []
        return CountRecording(
            model=model_name(path),
            layer_ids=layer_ids,
            count_QLE=np.stack([count_LE for _, count_LE, _, _ in found]),
            top_k=top_k if all(one == top_k for _, _, one, _ in found) else None,
            notes=list(dict.fromkeys([*notes, *(note for *_, more in found for note in more)])),
        )


def _counts(
    path: Path, wanted: tuple[int, ...] | None
) -> tuple[tuple[int, ...], npt.NDArray[np.int64], int | None, list[str]]:
    """(layers, counts [L, E], top-k if it follows from them, notes) of one file: of `wanted` layers, None: of all.

    Raises TraceError.
    """
    with reading(path, MEND), path.open("rb") as file:
        found: dict[int, dict[str, npt.NDArray[np.float32]]] = {}
        for name, tensor in gguf_tensors(file).items():
            if match := COUNTS.fullmatch(name):
                found.setdefault(int(match[1]), {})[match[2]] = gguf_values(file, tensor)
    rows: dict[int, npt.NDArray[np.float32]] = {}
    ratios: set[float] = set()
    chunks: set[int] = set()
    for layer, counts in sorted(found.items()):
        experts = next((values for name, values in counts.items() if EXPERTS.fullmatch(name)), None)
        if experts is not None and (wanted is None or layer in wanted):
            if not np.isfinite(experts).all() or experts.min(initial=0) < 0 or experts.max(initial=0) >= 2**32:
                raise TraceError(f"{path}: counts must be numbers from 0 to 2^32; {MEND}")
            rows[layer] = experts
            tokens = [float(values[0]) for values in counts.values() if len(values) == 1]
            ratios.update(float(experts.sum(dtype=np.float64)) / one for one in tokens if one > 0)
            chunks.update(len(values) for name, values in counts.items() if CHUNKS.fullmatch(name))
    if missing := [layer for layer in wanted or () if layer not in rows]:
        raise OptionError(f"--layer-ids: {path} has no experts in {layers_named(missing)}; leave out what it lacks")
    if not any(len(values) for values in rows.values()):
        raise TraceError(f"{path} has no ffn_*_exps.weight.counts: no layer of it has experts; {MEND}")
    _check_alike(path, rows)
    count_LE = np.stack(list(rows.values()))
    ratio = ratios.pop() if len(ratios) == 1 else 0.0
    top_k = int(ratio) if ratio.is_integer() and ratio >= 1 else None
    others = sorted({layer for layer, counts in found.items() if any(map(EXPERTS.fullmatch, counts))} - set(rows))
    notes = [f"{layers_named(others)} left out: --layer-ids does not name them"] if others else []
    notes += [f"chunk experts (ffn_*_chexps, {size} a layer) left out: experts share them" for size in sorted(chunks)]
    return tuple(rows), np.rint(count_LE).astype(np.int64), top_k, notes


def _check_alike(path: Path, rows: dict[int, npt.NDArray[np.float32]]) -> None:
    """Raise TraceError where layers have different numbers of experts."""
    layers: dict[int, list[int]] = {}
    for layer, values in rows.items():
        layers.setdefault(len(values), []).append(layer)
    if len(layers) > 1:
        told = "; ".join(f"{size} in {layers_named(ids)}" for size, ids in layers.items())
        example = ranges(next(iter(layers.values())), to="-", then=",")
        raise TraceError(
            f"{path} has layers of different numbers of experts, {told}; one placement has one number: convert the "
            f"layers of each number apart, such as with --layer-ids {example}"
        )
