"""What is wrong with a solve or an evaluation is found when the request comes, as far as its traces need not be read.

The rows of the traces and of the placements say enough of them; what only their contents show, the job finds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

from placement.analysis.info import StudyOptions
from placement.core.choices import CAPTURES
from placement.core.cluster import Cluster
from placement.core.model import Model
from placement.cost.choices import REPLICA_CHOICES
from placement.cost.steps.given import check_step_tokens
from placement.cost.transports import TRANSPORTS
from placement.documents.cluster_yaml import ClusterFile, cluster_of
from placement.errors import MapError, OptionError, PlacementError, TraceError
from placement.exporters.engines import check_loadable
from placement.pipeline.front import check_front
from placement.pipeline.solve import check_moves
from placement.pipeline.with_homes import check_grouping
from placement.solvers import get_solver
from placement.solvers.options import Options
from placement.traces.parts import check_parting
from placement_api.problems import Fault, Problem, from_library, in_rest_words
from placement_api.settings import Limits
from placement_api.store.tables import JobRow, TraceRow

COUNTS = "counts"


@dataclass(frozen=True, slots=True)
class _Faults:
    """Each fault of a request and the place of it, in the order of the checks."""

    found: list[tuple[Fault, Problem]] = field(default_factory=list)

    @contextmanager
    def at(self, where: str) -> Iterator[None]:
        """Note what is raised within."""
        try:
            yield
        except PlacementError as error:
            self.found.append((Fault(where=where, what=in_rest_words(str(error))), from_library(error)))

    def end(self) -> None:
        """Raise the first fault, with all of them in its body."""
        if self.found:
            problem = self.found[0][1]
            problem.body.faults = [fault for fault, _ in self.found]
            raise problem


def check_solve(
    request: dict[str, Any],
    traces: Sequence[TraceRow],
    current: JobRow | None,
    limits: Limits,
    mend_moves: str = "give its id as current",
) -> None:
    """Raise Problem (422) for a solve that cannot be done.

    Args:
        request: The body, with the ids of traces alone.
        traces: Their rows, one or more.
        current: The job that made the placement in use, if any.
        limits: What the service allows.
        mend_moves: What to do about limits of moves without a current placement.
    """
    faults, options, cluster = _Faults(), None, None
    with faults.at("body/options"):
        options = Options(**request["options"])
    with faults.at("body/traces"):
        _check_together(traces)
    with faults.at("body/cluster"):
        cluster = _cluster(request["cluster"], traces[0], limits)
    if options is not None and options.engine is not None and cluster is not None:
        with faults.at("body/options/engine"):
            check_loadable(options.engine, _model_of(traces[0]), cluster)
    counts = next((trace for trace in traces if trace.kind == COUNTS), traces[0])
    if options is not None:
        _check_options(faults, options, counts, limits)
        with faults.at("body/options/max_moves"):
            if options.moves_limited and current is None:
                raise OptionError(f"max_moves says how far the answer may be from a current map; {mend_moves}")
            check_moves(options, has_current=current is not None)
    if request["robust"] is not None:
        with faults.at("body/robust"):
            _check_robust(request, traces)
    if current is not None and cluster is not None:
        with faults.at("body/current"):
            _check_current(current, traces[0], cluster)
    if request["group"] is not None and options is not None and cluster is not None:
        with faults.at("body/group"):
            _check_group(request, options, counts, cluster)
    faults.end()


def check_front_of(request: dict[str, Any], traces: Sequence[TraceRow], limits: Limits) -> None:
    """Raise Problem (422) for a front that cannot be found."""
    check_solve(request, traces, None, limits, "the front looks for new maps: leave the limits of moves out")
    faults = _Faults()
    with faults.at("body/traces"):
        if any(trace.kind == COUNTS for trace in traces):
            raise OptionError("the front needs a trace: counts do not say sends; give a trace")
    with faults.at("body/options"):
        check_front(Options(**request["options"]))
    faults.end()


def check_study(request: dict[str, Any], traces: Sequence[TraceRow]) -> None:
    """Raise Problem (422) for a study that cannot be made."""
    faults = _Faults()
    with faults.at("body/traces"):
        _check_together(traces)
        if len(traces) > 1 and any(trace.kind == COUNTS for trace in traces):
            raise OptionError("counts and other traces do not go together; give one file of counts, or traces alone")
    with faults.at("body"):
        study_of(request).checked_nodes(_model_of(traces[0]))
    faults.end()


def study_of(request: dict[str, Any]) -> StudyOptions:
    """The options of a study, as its body has them."""
    return StudyOptions(**{field.name: request[field.name] for field in fields(StudyOptions)})


def check_evaluate(request: dict[str, Any], traces: Sequence[TraceRow], placement: JobRow) -> None:
    """Raise Problem (422) for an evaluation of a placement that cannot be done."""
    faults = _Faults()
    with faults.at("body/transport"):
        TRANSPORTS.check(request["transport"])
    with faults.at("body/replica_choice"):
        REPLICA_CHOICES.check(request["replica_choice"])
    with faults.at("body/step_tokens"):
        if request.get("step_tokens") is not None:
            check_step_tokens(request["step_tokens"])
    with faults.at("body/traces"):
        _check_together(traces)
        if any(trace.kind == COUNTS for trace in traces):
            raise OptionError("a placement is measured on a trace: counts do not say sends; give a trace")
        _check_model(placement, traces[0], "the placement")
    faults.end()


def _check_together(traces: Sequence[TraceRow]) -> None:
    for trace in traces[1:]:
        if _routing(trace) != _routing(traces[0]):
            raise TraceError(
                f"trace {trace.id} has {_routing(trace)}, trace {traces[0].id} has {_routing(traces[0])}; "
                f"give traces of one model"
            )


def _model_of(trace: TraceRow) -> Model:
    layer_ids = tuple(range(trace.num_layers))
    return Model(name=trace.name, layer_ids=layer_ids, num_experts=trace.num_experts, top_k=trace.top_k)


def _cluster(document: dict[str, Any], trace: TraceRow, limits: Limits) -> Cluster:
    cluster = cluster_of(ClusterFile.model_validate(document), trace.num_experts)
    if cluster.num_slots > limits.slots:
        raise OptionError(
            f"the cluster has {cluster.num_slots} slots in a layer; at most {limits.slots} are allowed here"
        )
    return cluster


def _check_options(faults: _Faults, options: Options, trace: TraceRow, limits: Limits) -> None:
    with faults.at("body/options/solver"):
        get_solver(options.solver)
    with faults.at("body/options/work_limit"):
        if options.work_limit is not None and options.work_limit > limits.work:
            raise OptionError(f"work_limit={options.work_limit} is too much; at most {limits.work} moves are allowed")
    with faults.at("body/options/time_limit_s"):
        if options.time_limit_s is not None and options.time_limit_s > limits.job_time_limit_s:
            raise OptionError(
                f"time_limit_s={options.time_limit_s:g} is more than this service lets a job run; give at most "
                f"{limits.job_time_limit_s:g} s, or start the service with a larger --job-time-limit"
            )
    with faults.at("body/options/objective"):
        if trace.kind == COUNTS and options.sends_count:
            raise OptionError(
                f"objective={options.objective!r} needs the experts that each token visits, which counts do not say; "
                f"use balance, or give a trace"
            )


def _check_robust(request: dict[str, Any], traces: Sequence[TraceRow]) -> None:
    check_parting(request["robust"])
    captures = len(traces) > 1 and request["robust"] == CAPTURES
    if any(trace.kind == COUNTS for trace in traces) and not captures:
        raise OptionError(
            f"robust={request['robust']!r} needs a trace: counts do not say which requests belong together; give "
            f"several traces or counts and robust={CAPTURES!r}, or leave robust out"
        )
    for name in ("current", "group"):
        if request[name] is not None:
            raise OptionError(f"robust looks for a map of its own and does not go with {name}; leave one of them out")


def _check_current(current: JobRow, trace: TraceRow, cluster: Cluster) -> None:
    _check_model(current, trace, "the current placement")
    for name in ("num_nodes", "gpus_per_node", "slots_per_gpu"):
        if current.summary[name] != getattr(cluster, name):
            raise MapError(
                f"the current placement has {name}={current.summary[name]}, the cluster {getattr(cluster, name)}; "
                f"give the cluster of the placement, or another placement"
            )


def _check_group(request: dict[str, Any], options: Options, trace: TraceRow, cluster: Cluster) -> None:
    if trace.kind == COUNTS:
        raise OptionError("group needs a trace: counts do not say which experts a request's tokens visit; leave it out")
    if request["current"] is not None:
        raise OptionError("group looks for a map of its own and does not go with current; leave one of them out")
    check_grouping(cluster, options, **request["group"])


def _check_model(placement: JobRow, trace: TraceRow, what: str) -> None:
    summary = placement.summary
    if (summary["layers"], summary["experts"]) != (trace.num_layers, trace.num_experts):
        raise MapError(
            f"{what} is for {summary['layers']} layers of {summary['experts']} experts, trace {trace.id} has "
            f"{_routing(trace)}; give a trace of the same model"
        )


def _routing(trace: TraceRow) -> str:
    return f"{trace.num_layers} layers of {trace.num_experts} experts, top-{trace.top_k}"
