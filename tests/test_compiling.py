"""What numba compiles for a solve: each kernel once, side by side, and nothing that lies in its cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from placement.pipeline.warm_up import TOP_KS, warm_up
from placement.support.compiling import CompilePiece, compile_pieces
from placement.support.file_lock import file_lock
from placement.support.progress import Progress

REPOSITORY = Path(__file__).parents[1]

# Run in a fresh process: in this one other tests have compiled for types of their own.
LISTEN = """
import json, sys
from numba.core import event
from placement import Cluster, Options, open_trace, solve

compiled, stages = [], []

class Told(event.Listener):
    def on_start(self, told):
        compiled.append(told.data["dispatcher"].py_func.__name__)

    def on_end(self, told):
        pass

event.register("numba:compile", Told())
trace = open_trace("examples/traces")
cluster = Cluster.fit(trace.model.num_experts, num_nodes=4, gpus_per_node=2, redundant_experts=int(sys.argv[1]))
"""
SOLVE = """
tell = lambda event: stages.append((event.stage, event.done, event.total))
solve(trace, cluster, Options(work_limit=100), holdout=0.3, listener=tell)
"""
STEPS = """
from placement.cost.choices import REPLICA_CHOICES
from placement.cost.steps.replay import evaluate_steps
one = solve(trace, cluster, Options(solver="linear", bound="none")).placement
for rule in REPLICA_CHOICES:
    evaluate_steps(trace, [one], step_tokens=[16, 64], replica_choice=rule)
"""
SERVE = """
import torch
from placement.cost.choices import REPLICA_CHOICES
from placement.runtime import CapacityPolicy, Dispatcher, LayerMap, Lockstep, MoELayer
placement = solve(trace, cluster, Options(solver="linear", bound="none")).placement
layer_map = LayerMap.of(placement, placement.model.layer_ids[0])

def program(mesh, dtype, hops, rule):
    weights, ids = torch.rand(3, layer_map.num_experts).topk(placement.model.top_k)
    dispatcher = Dispatcher(mesh, layer_map, hops=hops, choice=rule)
    layer = MoELayer(dispatcher, lambda rows, counts: rows, CapacityPolicy(mode="drop"))
    layer(torch.zeros(3, 16, dtype=dtype), ids, weights)

for rule in REPLICA_CHOICES:
    for dtype, hops in ((torch.float32, "flat"), (torch.bfloat16, "hierarchical")):
        Lockstep(4, 2).run(lambda mesh: program(mesh, dtype, hops, rule))
"""
COUNT = """
ours = [module for name, module in sys.modules.items() if name.startswith("placement.")]
kernels = {id(value): value for module in ours for value in vars(module).values() if hasattr(value, "py_func")}
counts = {f"{k.py_func.__module__}.{k.py_func.__name__}": len(k.signatures) for k in kernels.values()}
print(json.dumps({"compiled": compiled, "stages": stages, "signatures": counts}))
"""


def ran(work: str, redundant: int, cache: Path | None) -> dict[str, Any]:
    env = os.environ | ({"NUMBA_CACHE_DIR": str(cache)} if cache else {})
    command = [sys.executable, "-c", LISTEN + work + COUNT, str(redundant)]
    done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("redundant", [0, 8])
def test_each_kernel_is_compiled_once(redundant: int, tmp_path: Path) -> None:
    """Whatever the types of its callers' numbers: a second specialisation costs the first solve seconds. The solve says
    that it compiles, piece by piece, and the next one has nothing to compile and says nothing."""
    cold = ran(SOLVE, redundant, tmp_path)
    signatures = {name: number for name, number in cold["signatures"].items() if number}
    assert len(signatures) > 10
    assert {name: number for name, number in signatures.items() if number > 1} == {}
    told = [(done, total) for stage, done, total in cold["stages"] if stage == "compile"]
    assert told == [(done, len(told) - 1) for done in range(len(told))] and len(told) > 4
    others = {name.rpartition(".")[2] for name in signatures} - set(cold["compiled"])
    assert others  # loaded here, and compiled by another process: which, depends on who comes first
    warm = ran(SOLVE, redundant, tmp_path)
    assert warm["compiled"] == []
    assert "compile" not in {stage for stage, _, _ in warm["stages"]}


def test_after_a_warm_up_nothing_is_compiled() -> None:
    """Neither by a solve, nor by steps under any rule, nor by a second warm-up; steps have one type of each kernel."""
    warm_up()
    assert 4 in TOP_KS  # that of the example traces
    for redundant in (0, 8):
        assert ran(SOLVE, redundant, None)["compiled"] == []
        steps = ran(STEPS, redundant, None)
        assert steps["compiled"] == []
        assert steps["signatures"]["placement.cost.steps.kernel_steps.cost_steps"] == 1
    again = [sys.executable, "-c", "from placement.cli import main; main(['warm-up', '--json'])"]
    done = subprocess.run(again, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["pieces"] == 0
    assert done.stderr == ""


def test_a_rank_compiles_nothing_after_a_warm_up() -> None:
    """The others wait for it within their time limit, so its first layers must not wait for numba: under any rule, in
    float32 and bfloat16."""
    pytest.importorskip("torch")
    warm_up()
    served = ran(SERVE, 8, None)
    assert served["compiled"] == []
    assert served["signatures"]["placement.runtime.kernels.cpu_sums.sum_rows"] == 2


FIRST = """
from placement.pipeline.warm_up import FIRST_TRACE
from placement.report.solution.solution_page import report_html
from placement.solvers.pieces import EXPERTS, pieces_of

small = Cluster.fit(EXPERTS, num_nodes=2, gpus_per_node=2)
for piece in [FIRST_TRACE, *pieces_of(EXPERTS, small, Options(), shows_parts=True)]:
    piece.run(*piece.arguments)
types = lambda kernel: [str(signature) for signature in kernel.signatures]
kernels = [value for name, module in list(sys.modules.items()) if name.startswith("placement.")
           for value in vars(module).values() if hasattr(value, "py_func")]
before = [types(kernel) for kernel in kernels]
report_html(solve(trace, cluster, Options(), by_domain=True))
stages = [kernel.py_func.__name__ for kernel, known in zip(kernels, before) if types(kernel) != known]
"""


def test_what_is_compiled_ahead_is_what_a_first_solve_needs() -> None:
    """Every kernel of a solve of the example with its report, with its types: a service begins with these pieces. The
    generator of synthetic traces, which takes as long as the search, is in none of them."""
    answer = ran(FIRST, 0, None)
    assert set(answer["stages"]) <= {"balanced_packing"}  # compiled, and cached, with `eplb_row`
    assert not [name for name, number in answer["signatures"].items() if number and ".synthetic." in name]


class Never:
    """A kernel that no cache holds."""

    signatures = ()


def test_pieces_that_fail_are_left_to_their_first_call() -> None:
    """A process that dies does not stop the solve, which compiles then what is missing."""
    told: list[Progress] = []
    pieces = [CompilePiece(run=fails, kernels=(Never(),))] * 2
    assert compile_pieces(pieces, workers=2, listener=told.append) == 0
    assert told == [Progress(stage="compile", done=0, total=2)]


class Kept:
    """A kernel whose cache lies in a folder."""

    def __init__(self, folder: Path) -> None:
        self.signatures: list[str] = []
        self.stats = SimpleNamespace(cache_path=str(folder))


def test_a_piece_that_another_process_compiles_is_waited_for(tmp_path: Path) -> None:
    """Others are compiled first; then it is there, and is compiled no second time."""
    theirs, ours = Kept(tmp_path / "theirs"), Kept(tmp_path / "ours")
    first = CompilePiece(run=fails, kernels=(theirs,))
    second = CompilePiece(run=ours.signatures.append, kernels=(ours,), arguments=("compiled here",))
    answers: list[int] = []
    with file_lock(first.lock) as held:
        assert held and first.is_taken() and not second.is_taken()
        thread = threading.Thread(target=lambda: answers.append(compile_pieces([first, second], workers=1)))
        thread.start()
        while not ours.signatures:
            assert thread.is_alive()
            time.sleep(0.01)
        assert not answers
        theirs.signatures.append("compiled elsewhere")
    thread.join(30)
    assert answers == [2]
    assert ours.signatures == ["compiled here"]


def test_a_lock_is_no_condition(tmp_path: Path) -> None:
    """Where no file can be, whoever asks has the lock: the work is done, if twice."""
    (tmp_path / "file").write_text("")
    for path in (None, tmp_path / "file" / "below.lock"):
        with file_lock(path) as one, file_lock(path, wait=False) as other:
            assert one and other


def fails() -> None:
    raise RuntimeError


@pytest.mark.parametrize("workers", [0, -1])
def test_a_number_of_workers_that_is_none_is_refused(workers: int, run_cli: Any) -> None:
    """Whether there is something to compile or not, in one line."""
    result = run_cli("warm-up", "--workers", workers)
    assert result.code == 2
    assert result.stderr == f"placement: error: workers={workers} must be at least 1\n"
