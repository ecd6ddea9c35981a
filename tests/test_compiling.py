"""What numba compiles for a solve: each kernel once, and nothing that lies in its cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[1]

# Run in a fresh process: in this one other tests have compiled for types of their own.
SOLVE = """
import json, sys
from numba.core import event
from placement import Cluster, Options, open_trace, solve

compiled, stages = [], []

class Told(event.Listener):
    def on_start(self, told):
        function = told.data["dispatcher"].py_func
        compiled.append(f"{function.__module__}.{function.__name__}")

    def on_end(self, told):
        pass

event.register("numba:compile", Told())
trace = open_trace("examples/traces")
cluster = Cluster.fit(trace.model.num_experts, num_nodes=4, gpus_per_node=2, redundant_experts=int(sys.argv[1]))
solve(trace, cluster, Options(work_limit=100), holdout=0.3, listener=lambda event: stages.append((event.stage, event.done, event.total)))
ours = [module for name, module in sys.modules.items() if name.startswith("placement.")]
kernels = {id(value): value for module in ours for value in vars(module).values() if hasattr(value, "signatures")}
counts = {f"{k.py_func.__module__}.{k.py_func.__name__}": len(k.signatures) for k in kernels.values()}
print(json.dumps({"compiled": compiled, "stages": stages, "signatures": counts}))
"""


def solved(redundant: int, cache: Path) -> dict[str, Any]:
    env = os.environ | {"NUMBA_CACHE_DIR": str(cache)}
    command = [sys.executable, "-c", SOLVE, str(redundant)]
    done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("redundant", [0, 8])
def test_each_kernel_is_compiled_once(redundant: int, tmp_path: Path) -> None:
    """Of whatever types its callers' numbers are: a second specialisation costs the first solve seconds."""
    signatures = solved(redundant, tmp_path)["signatures"]
    assert len([number for number in signatures.values() if number]) > 10
    assert {name: number for name, number in signatures.items() if number > 1} == {}
