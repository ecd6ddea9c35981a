"""The form of a solve: what it asks, what it proposes for a trace, and how its words become a request."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from placement.core.choices import BOUNDS, OBJECTIVES
from placement.core.cluster import Cluster
from placement.cost.choices import REPLICA_CHOICES
from placement.cost.transports import TRANSPORTS
from placement.documents.cluster_yaml import ClusterFile, cluster_of
from placement.errors import PlacementError
from placement.exporters.engines import ENGINES
from placement.solvers import SOLVERS
from placement.solvers.options import Options
from placement_api.problems import Problem
from placement_api.store.tables import TraceRow

Kind = Literal["whole", "number", "choice", "flag", "id"]
LONGEST = 40
DEFAULTS = {field.name: field.default for field in fields(Options)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One field of the form.

    part     where its value goes: cluster, options, or body (the request itself)
    least    of numbers; empty values are left out, so that the library's default holds
    """

    part: Literal["cluster", "options", "body"]
    name: str
    label: str
    hint: str = ""
    kind: Kind = "number"
    least: float = 0
    choices: tuple[str, ...] = ()
    required: bool = False


CLUSTER = (
    Field(part="cluster", name="num_nodes", label="Nodes", kind="whole", least=1, required=True),
    Field(part="cluster", name="gpus_per_node", label="GPUs per node", kind="whole", least=1, required=True),
    Field(part="cluster", name="redundant_experts", label="Redundant experts", kind="whole", required=True),
)
MORE = (
    Field(part="options", name="objective", label="Aim", kind="choice", choices=OBJECTIVES,
          hint="locality: few sends and even load; balance: even load alone; time: the modelled step time"),
    Field(part="options", name="balance_weight", label="Price of imbalance", hint="in sends; more is more even"),
    Field(part="options", name="max_imbalance", label="Most imbalance of a GPU", least=1, hint="empty: no cap"),
    Field(part="options", name="engine", label="Engine", kind="choice", choices=("", *ENGINES),
          hint="sets what the next two leave empty"),
    Field(part="options", name="transport", label="What the engine sends", kind="choice", choices=("", *TRANSPORTS),
          hint="node: one copy per node (DeepEP normal); assignment: DeepEP low latency; allgather: vLLM's default"),
    Field(part="options", name="replica_choice", label="Choice among copies", kind="choice",
          choices=("", *REPLICA_CHOICES)),
    Field(part="options", name="solver", label="Solver", kind="choice", choices=tuple(SOLVERS)),
    Field(part="options", name="bound", label="Proof", kind="choice", choices=BOUNDS,
          hint="tight takes seconds per layer"),
    Field(part="body", name="robust", label="Robust against shifts of", kind="choice",
          choices=("", "domain", "category"), hint="the traffic's mix: the worst part costs least"),
    Field(part="options", name="time_limit_s", label="Time limit, s", hint="empty: until the search is done"),
    Field(part="options", name="seed", label="Seed", kind="whole"),
    Field(part="body", name="holdout", label="Share held out", hint="of the requests: measured, not fitted"),
    Field(part="cluster", name="inter_gbps", label="Network of a GPU, Gbit/s", hint="between nodes"),
    Field(part="cluster", name="intra_gbps", label="NVLink of a GPU, Gbit/s", hint="within a node"),
)  # fmt: skip
GROUP = Field(
    part="body", name="group", label="Also give every request a home node", kind="flag",
    hint="The placement then comes with groups of requests and a router",
)  # fmt: skip
CURRENT = Field(part="body", name="current", label="Placement in use", kind="id")
MOVES = Field(
    part="options",
    name="max_moves",
    label="Most slots that may change",
    kind="whole",
    hint="of all layers; empty: any number",
)
FIELDS = (*CLUSTER, *MORE, GROUP, CURRENT, MOVES)


def proposal(row: TraceRow) -> dict[str, str]:
    """Values to begin with: a cluster that the trace's experts fit, and the library's defaults."""
    cluster = _cluster_for(row.num_experts)
    values = {field.name: "" if DEFAULTS[field.name] is None else f"{DEFAULTS[field.name]}" for field in MORE
              if field.part == "options"}  # fmt: skip
    if row.kind == "counts":
        values["objective"] = "balance"
    return (
        values
        | _shape(cluster, row.num_experts)
        | {
            "inter_gbps": f"{cluster.inter_gbps:g}",
            "intra_gbps": f"{cluster.intra_gbps:g}",
            "holdout": "0.2",
            **dict.fromkeys(("group", "robust", "current", "max_moves"), ""),
        }
    )


def _shape(cluster: Cluster, num_experts: int) -> dict[str, str]:
    return {
        "num_nodes": f"{cluster.num_nodes}",
        "gpus_per_node": f"{cluster.gpus_per_node}",
        "redundant_experts": f"{cluster.num_slots - num_experts}",
    }


def _cluster_for(num_experts: int) -> Cluster:
    """Several nodes and the most GPUs of a node that leave two experts or more for each; else one for each."""
    for least in (2, 1):
        for num_nodes in (4, 2):
            for gpus in (8, 4, 2, 1):
                if num_experts % (num_nodes * gpus) == 0 and num_experts >= least * num_nodes * gpus:
                    return Cluster.fit(num_experts, num_nodes=num_nodes, gpus_per_node=gpus)
    return Cluster.fit(num_experts, num_nodes=2, gpus_per_node=1, redundant_experts=num_experts % 2)


def values_of(request: Mapping[str, Any], num_experts: int) -> dict[str, str]:
    """The form of a request that was made before: what the form has no field for is not in it."""
    values = {}
    for field in FIELDS:
        value = (request if field.part == "body" else request[field.part]).get(field.name)
        values[field.name] = "" if value is None else "1" if field.kind == "flag" else f"{value}"
    try:
        cluster = cluster_of(ClusterFile.model_validate(request["cluster"]), num_experts)
    except PlacementError:
        return values  # as it was given: what is wrong with it is said when it is sent again
    return values | _shape(cluster, num_experts)


def body_of(trace: str, form: Mapping[str, Any]) -> dict[str, Any]:
    """What `POST /v1/placements` takes. Raises Problem with the field's label."""
    parts: dict[str, dict[str, Any]] = {"cluster": {}, "options": {}, "body": {"traces": [trace]}}
    for field in FIELDS:
        text = str(form.get(field.name) or "").strip()
        if field.kind == "flag":
            parts["body"][field.name] = {} if text else None
        elif text:
            parts[field.part][field.name] = _value(field, text)
        elif field.required:
            raise Problem(422, f"{field.label} is empty", "give a whole number")
    return {**parts["body"], "cluster": parts["cluster"], "options": parts["options"]}


def _value(field: Field, text: str) -> Any:
    shown = f"{field.label}: {text[:LONGEST]!r} is not allowed"
    if field.kind == "id":
        return text
    if field.kind == "choice":
        if text not in field.choices:
            raise Problem(422, shown, f"choose one of {', '.join(field.choices)}")
        return text
    try:
        value = int(text) if field.kind == "whole" else float(text)
    except ValueError:
        value = math.nan
    if not (field.least <= value < 1e18 and len(text) <= LONGEST):
        what = "a whole number" if field.kind == "whole" else "a number"
        raise Problem(422, shown, f"give {what} from {field.least:g} on")
    return value
