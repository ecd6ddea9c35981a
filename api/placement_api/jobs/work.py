"""What a job computes: calls to the library alone. Runs in a process of its own."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from placement.analysis.advise import advise
from placement.analysis.info import describe
from placement.core.choices import CAPTURES
from placement.core.cluster import Cluster
from placement.cost.evaluation import evaluate
from placement.cost.steps.replay import evaluate_steps
from placement.documents.cluster_yaml import ClusterFile, cluster_of
from placement.documents.document import json_bytes
from placement.documents.placement import PlacementFile, load_placement
from placement.errors import OptionError
from placement.pipeline.captures import Captures, Given, together
from placement.pipeline.documents.front_files import front_document
from placement.pipeline.documents.grouping_document import grouping_file
from placement.pipeline.front import solve_front
from placement.pipeline.solution import Solution, solution_document
from placement.pipeline.solve import solve
from placement.pipeline.with_homes import solve_grouped
from placement.report.advice.advice_page import advice_html
from placement.report.front.front_report import front_svg
from placement.report.solution.solution_page import report_html
from placement.report.trace.trace_page import trace_html
from placement.solvers.options import Options
from placement.support.parallel import make_executor
from placement.support.progress import Listener, Progress
from placement.traces.trace import Trace
from placement.workload.counts_file import ExpertCounts
from placement_api.checks import study_of
from placement_api.jobs.task import Answer, Task
from placement_api.pages.figures import figures_bytes
from placement_api.settings import Settings
from placement_api.store.blobs import Blobs
from placement_api.store.opening import open_files
from placement_api.store.traces import open_input

log = logging.getLogger("placement")


def compute(task: Task, listener: Listener) -> Answer:
    """Raises PlacementError, Problem."""
    return KINDS[task.kind](task, listener)


def _solve(task: Task, listener: Listener) -> Answer:
    request, blobs = task.request, _blobs(task)
    given = _given(task)
    cluster, options = _asked(task, given)
    files: dict[str, str] = {}
    grouped = None
    if request["group"] is None:
        solution = solve(
            given,
            cluster,
            options,
            current=None if task.placement is None else load_placement(task.placement)[0],
            holdout=request["holdout"],
            robust=request["robust"],
            by_domain=request["report"],
            workers=task.workers,
            listener=listener,
        )
    else:
        if not isinstance(given, Trace):
            raise OptionError(
                "group needs a trace: counts do not say which experts a request's tokens visit; leave it out"
            )
        grouped = solve_grouped(
            given,
            cluster,
            options,
            holdout=request["holdout"],
            home_from=request["group"]["home_from"],
            tolerance=request["group"]["tolerance"],
            workers=task.workers,
            listener=listener,
        )
        solution = grouped.solution
        files["grouping"] = blobs.put(grouping_file(grouped).content())
    document = solution_document(solution)
    files["figures"] = blobs.put(figures_bytes(solution))
    files["placement"] = blobs.put(PlacementFile.encode(document))
    if request["report"]:
        files["report"] = blobs.put(report_html(solution, grouped=grouped).encode())
    return Answer(files=files, summary=_summary(solution, document))


def _given(task: Task) -> Given | Captures:
    """What a task solves: several traces are captures that weigh alike, unless they are grouped or parted otherwise."""
    if task.request["group"] is not None or task.request["robust"] not in (None, CAPTURES):
        return _opened(task)
    paths = [Path(path) for path in task.traces]
    given, said = together([(path, open_input([path], task.top_k), None) for path in paths])
    if said is not None:
        log.info("%s", said)
    return given


def _opened(task: Task) -> Trace | ExpertCounts:
    """All of a task's traces as one, or its file of counts."""
    return open_input([Path(path) for path in task.traces], task.top_k)


def _asked(task: Task, given: Given | Captures) -> tuple[Cluster, Options]:
    """The cluster and the options of a request."""
    cluster = cluster_of(ClusterFile.model_validate(task.request["cluster"]), given.model.num_experts)
    return cluster, Options(**task.request["options"])


def _blobs(task: Task) -> Blobs:
    return Blobs(files=open_files(Settings(data=Path(task.data), blobs=task.blobs)))


def _summary(solution: Solution, document: dict[str, Any]) -> dict[str, Any]:
    """What lists and tables show of a placement: its figures beside those of the baselines."""
    model, cluster, evaluation = solution.placement.model, solution.cluster, document["evaluation"]
    return {
        "model": model.name,
        "layers": model.num_layers,
        "experts": model.num_experts,
        "num_nodes": cluster.num_nodes,
        "gpus_per_node": cluster.gpus_per_node,
        "slots_per_gpu": cluster.slots_per_gpu,
        "result": evaluation["result"],
        "part": "train" if evaluation["held_out"] is None else "held_out",
        "maps": evaluation["held_out"] or evaluation["train"],
    }


def _evaluate(task: Task, listener: Listener) -> Answer:
    request = task.request
    sizes = request.get("step_tokens")
    passes = 1 if sizes is None else 2
    listener(Progress(stage="evaluate", done=0, total=passes))
    placement, file = load_placement(str(task.placement))
    trace = _opened(task)
    if not isinstance(trace, Trace):
        raise OptionError("a placement is measured on a trace: counts do not say sends; give a trace")
    cluster = file.described_cluster() or Cluster(**file.cluster.sizes())
    rule = {name: request[name] for name in ("replica_choice", "transport")}
    with make_executor(task.workers) as executor:
        [answer] = evaluate(trace, [placement], cluster=cluster, **rule, executor=executor)
        document: dict[str, Any] = rule | {"summary": answer.summary(), "layers": answer.layers()}
        if sizes is not None:
            listener(Progress(stage="evaluate", done=1, total=passes))
            [rows] = evaluate_steps(trace, [placement], step_tokens=sizes, cluster=cluster, **rule, executor=executor)
            document["steps"] = [row.document() for row in rows]
    return Answer(files={"evaluation": _blobs(task).put(_json(document))}, summary=answer.summary())


def _advise(task: Task, listener: Listener) -> Answer:
    request, blobs, given = task.request, _blobs(task), _opened(task)
    advice = advise(
        given,
        *_asked(task, given),
        holdout=request["holdout"],
        step_tokens=request["step_tokens"],
        most_dropped=request["max_dropped"],
        kv_cache_bytes=None if request["kv_cache_gb"] is None else request["kv_cache_gb"] * 1e9,
        workers=task.workers,
        listener=listener,
    )
    page = blobs.put(advice_html(advice).encode())
    return Answer(files={"advice": blobs.put(_json(advice.document())), "page": page})


def _study(task: Task, listener: Listener) -> Answer:
    given = _opened(task)
    total = given.num_tokens_stored if isinstance(given, Trace) else 0
    done = 0

    def count_done(tokens: int) -> None:
        nonlocal done
        done += tokens
        listener(Progress(stage="count", done=done, total=total))

    with make_executor(task.workers) as executor:
        info = describe(given, executor, count_done, study=study_of(task.request))
    files = {"study": _blobs(task).put(_json(info.as_dict()))}
    if info.study is not None:
        files["page"] = _blobs(task).put(trace_html(info).encode())
    return Answer(files=files)


def _front(task: Task, listener: Listener) -> Answer:
    """`front.json`, the picture, and each map under the name that `front.json` has for its file."""
    blobs, given = _blobs(task), _opened(task)
    front = solve_front(
        given, *_asked(task, given), holdout=task.request["holdout"], workers=task.workers, listener=listener
    )
    maps = {one.file: blobs.put(PlacementFile.encode(solution_document(one.solution))) for one in front.points}
    document = blobs.put(json_bytes(front_document(front), "points"))
    return Answer(files={**maps, "front": document, "plot": blobs.put(front_svg(front).encode())})


KINDS = {"solve": _solve, "evaluate": _evaluate, "advise": _advise, "study": _study, "front": _front}


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode(errors="replace") + b"\n"
