"""Small traces written without the library, and the command line run in this process or in one of its own."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings
from safetensors.numpy import save_file

from placement.cli import main
from placement.testing.problems import short_sets

# pytest imports tests by their path and leaves sys.path alone; this lets them import reference.py and its like
FOLDERS = (
    *("advise", "benchmarks", "checkpoint", "cost", "exporters", "grouping", "placement_file", "rank_hosts"),
    *("report", "runtime", "solvers", "traces", "watch", "workload"),
    *("cli/bad_input", "cli/end_to_end", "exporters/vllm_plugin"),
    *("traces/counts_folder", "traces/readers", "traces/recorder"),
)
sys.path += [str(Path(__file__).parent / folder) for folder in FOLDERS]

# Machines that run tests are slow at times: an example may take as long as it needs. A test draws the same examples in
# every run, so a commit passes everywhere or nowhere; `make test-random` draws new ones.
settings.register_profile("same", deadline=None, derandomize=True, database=None)
settings.register_profile("random", deadline=None, print_blob=True)
settings.load_profile("same")

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenTrace:
    """A trace on disk and what was written to it."""

    folder: Path
    ids_LTK: Array
    request_T: Array
    position_T: Array
    manifest: dict[str, Any]
    shards: tuple[Path, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CliResult:
    """What a run of the command line left behind."""

    code: int
    stdout: str
    stderr: str


WriteTrace = Callable[..., WrittenTrace]
RunCli = Callable[..., CliResult]


def random_ids(
    rng: np.random.Generator, *, num_layers: int, num_experts: int, top_k: int, request_T: Array, spread: float
) -> Array:
    """Top-k sets [L, T, K]; each request likes experts of its own, the more so the larger `spread`."""
    num_requests = int(request_T.max(initial=0)) + 1
    taste_LQE = rng.normal(0.0, spread, (num_layers, num_requests, num_experts))
    noise_LTE = rng.gumbel(size=(num_layers, len(request_T), num_experts))
    return np.argsort(-(taste_LQE[:, request_T] + noise_LTE), axis=2)[:, :, :top_k]


def _write_trace(
    folder: str | Path,
    *,
    num_layers: int = 2,
    num_experts: int = 8,
    top_k: int = 2,
    tokens: int = 60,
    requests: int = 6,
    seed: int = 0,
    spread: float = 1.0,
    num_shards: int = 1,
    layer_ids: Sequence[int] | None = None,
    ids_LTK: Array | None = None,
    request_T: Array | None = None,
    request_ids: Sequence[str] | None = None,
    name: str = "tiny",
    weights: bool = False,
    short: float | None = None,
    phase_T: Array | None = None,
    **manifest_keys: Any,
) -> WrittenTrace:
    """Write a trace of format expert-trace/1 to `folder` with safetensors alone, not the library's writer.

    Tokens are random unless `ids_LTK` is given; `manifest_keys` override or add keys of trace.json (None drops one).
    `short` writes signed ids, of whose sets that share of the places, drawn at random, has no expert. All is decode
    unless `phase_T` says otherwise.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    if ids_LTK is not None:
        num_layers, tokens, top_k = ids_LTK.shape
    if request_T is None:
        request_T = np.arange(tokens) * requests // max(tokens, 1)
    request_T = np.asarray(request_T, dtype=np.int32)
    if ids_LTK is None:
        ids_LTK = random_ids(
            rng, num_layers=num_layers, num_experts=num_experts, top_k=top_k, request_T=request_T, spread=spread
        )
    position_T = np.zeros(tokens, dtype=np.int32)
    for request in np.unique(request_T):
        mine = request_T == request
        position_T[mine] = np.arange(mine.sum())
    if short is not None:
        ids_LTK = short_sets(rng, ids_LTK, short)
    signed, unsigned = np.int16 if num_experts <= 32767 else np.int32, np.uint8 if num_experts <= 256 else np.uint16
    stored = ids_LTK.astype(unsigned if short is None else signed)
    shards = []
    for number, part in enumerate(np.array_split(np.arange(tokens), num_shards)):
        tensors = {
            "expert_ids": np.ascontiguousarray(stored[:, part]),
            "request": request_T[part],
            "position": position_T[part],
            "phase": np.ones(len(part), dtype=np.uint8) if phase_T is None else phase_T[part].astype(np.uint8),
        }
        if weights:
            tensors["expert_weights"] = np.full(tensors["expert_ids"].shape, 1 / top_k, dtype=np.float16)
        shards.append(folder / f"shard-{number:05d}.safetensors")
        save_file(tensors, shards[-1], metadata={"schema": "expert-trace/1"})
    manifest = {
        "schema": "expert-trace/1",
        "model": name,
        "layer_ids": list(range(num_layers) if layer_ids is None else layer_ids),
        "num_experts": num_experts,
        "top_k": top_k,
        "num_tokens": tokens,
        "requests": [{"id": q} for q in (request_ids or [f"r{q}" for q in range(requests)])],
    } | manifest_keys
    manifest = {key: value for key, value in manifest.items() if value is not None}
    (folder / "trace.json").write_text(json.dumps(manifest))
    return WrittenTrace(
        folder=folder,
        ids_LTK=ids_LTK,
        request_T=request_T,
        position_T=position_T,
        manifest=manifest,
        shards=tuple(shards),
    )


@pytest.fixture(scope="session")
def write_trace() -> WriteTrace:
    """`write_trace(folder, **shape)` makes a small random trace; see `_write_trace`."""
    return _write_trace


@pytest.fixture(scope="session")
def run_cli() -> RunCli:
    """`run_cli("solve", folder, "--nodes", 2)` runs the command line in this process and never raises SystemExit."""

    def run(*arguments: object) -> CliResult:
        stdout, stderr = io.StringIO(), io.StringIO()
        code: Any = 0
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            try:
                main([str(argument) for argument in arguments])
            except SystemExit as stop:
                code = stop.code or 0
        return CliResult(code=code, stdout=stdout.getvalue(), stderr=stderr.getvalue())

    return run


@pytest.fixture(scope="session")
def run_python() -> RunCli:
    """`run_python(code, *arguments)` runs a script in an interpreter of its own: what a user's shell would see."""

    def run(code: str, *arguments: object, cwd: str | Path | None = None) -> CliResult:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False, timeout=120)
        return CliResult(code=done.returncode, stdout=done.stdout, stderr=done.stderr)

    return run


@pytest.fixture(scope="session")
def run_process(run_python: RunCli) -> RunCli:
    """`run_cli` in a process of its own, through the console script's entry point."""

    def run(*arguments: object, cwd: str | Path | None = None) -> CliResult:
        return run_python("from placement.cli import main; main()", *arguments, cwd=cwd)

    return run
