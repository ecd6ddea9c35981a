"""llama.cpp's importance matrix (`llama-imatrix -o imatrix.gguf`): visits of each expert, without tokens.

`blk.<n>.ffn_<gate, up, down>_exps.weight.counts`, float32 [1, E], counts the tokens that each expert saw; the router's
`blk.<n>.ffn_gate_inp.weight.counts`, or that of any other dense weight of the layer, counts all tokens: the ratio is
top-k. Read in the source of llama.cpp, `tools/imatrix/imatrix.cpp`.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt

from placement.errors import TraceError
from placement.readers.base import CountRecording, ReadOptions, files_of, head_of, reading
from placement.readers.gguf import MAGIC, gguf_tensors, gguf_values

PATTERN = "*.gguf"
COUNTS = re.compile(r"blk\.(\d+)\.(\w+)\.weight\.counts")
EXPERTS = re.compile(r"ffn_\w*exps")
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
        found = [_counts(file) for file in files]
        layer_ids, first_LE, top_k = found[0]
        for file, (layers, count_LE, _) in zip(files, found, strict=True):
            if layers != layer_ids or count_LE.shape != first_LE.shape:
                raise TraceError(f"{file} is of another model than {files[0]}; convert them apart")
        return CountRecording(
            model=path.stem,
            layer_ids=layer_ids,
            count_QLE=np.stack([count_LE for _, count_LE, _ in found]),
            top_k=top_k if all(one == top_k for _, _, one in found) else None,
            notes=["a file is the only row of counts: nothing can be held out"] if len(files) == 1 else [],
        )


def _counts(path: Path) -> tuple[tuple[int, ...], npt.NDArray[np.int64], int | None]:
    """(layers, counts [L, E], top-k if it follows from them) of one file. Raises TraceError."""
    with reading(path, MEND), path.open("rb") as file:
        found: dict[int, dict[str, npt.NDArray[np.float32]]] = {}
        for name, tensor in gguf_tensors(file).items():
            if match := COUNTS.fullmatch(name):
                found.setdefault(int(match[1]), {})[match[2]] = gguf_values(file, tensor)
    rows: dict[int, npt.NDArray[np.float32]] = {}
    ratios: set[float] = set()
    for layer, counts in sorted(found.items()):
        experts = next((values for name, values in counts.items() if EXPERTS.fullmatch(name)), None)
        if experts is not None:
            if not np.isfinite(experts).all() or experts.min(initial=0) < 0 or experts.max(initial=0) >= 2**32:
                raise TraceError(f"{path}: counts must be numbers from 0 to 2^32; {MEND}")
            rows[layer] = experts
            tokens = [float(values[0]) for values in counts.values() if len(values) == 1]
            ratios.update(float(experts.sum(dtype=np.float64)) / one for one in tokens if one > 0)
    if not any(len(values) for values in rows.values()):
        raise TraceError(f"{path} has no ffn_*_exps.weight.counts: no layer of it has experts; {MEND}")
    if len({len(values) for values in rows.values()}) > 1:
        raise TraceError(f"{path} has layers with different numbers of experts, which one placement cannot have")
    count_LE = np.stack(list(rows.values()))
    ratio = ratios.pop() if len(ratios) == 1 else 0.0
    top_k = int(ratio) if ratio.is_integer() and ratio >= 1 else None
    return tuple(rows), np.rint(count_LE).astype(np.int64), top_k
