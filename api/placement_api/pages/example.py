"""A small synthetic trace for those who have none at hand."""

from __future__ import annotations

import tarfile
import tempfile
from pathlib import Path

from placement.core.model import Model
from placement.traces.synth import write_synthetic
from placement.traces.synthetic.presets import TraceShape

MODEL = Model(name="Example: synthetic MoE", layer_ids=tuple(range(8)), num_experts=32, top_k=4)
TOKENS, REQUESTS, SEED = 16_000, 120, 1


def write_example(archive: Path) -> None:
    """The same bytes of trace at every call, as a tar."""
    with tempfile.TemporaryDirectory(prefix="example-") as folder:
        trace = Path(folder) / "trace"
        write_synthetic(trace, TraceShape(model=MODEL), num_tokens=TOKENS, num_requests=REQUESTS, seed=SEED)
        with tarfile.open(archive, "w") as tar:
            for path in sorted(trace.iterdir()):
                tar.add(path, path.name)
