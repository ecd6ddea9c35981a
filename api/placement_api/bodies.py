"""What requests say. Options and clusters are the library's own: their keys, defaults and meaning are not repeated."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Any, get_type_hints

from pydantic import BaseModel, ConfigDict, FailFast, Field, create_model
from typing_extensions import TypeAliasType

from placement.core.choices import (
    BOUNDS,
    HOLDOUT,
    MOST_DROPPED,
    OBJECTIVES,
    REPLICA_CHOICE,
    STUDIES,
    TOKEN_TOLERANCE,
    TRANSPORT,
)
from placement.cost.choices import REPLICA_CHOICES
from placement.cost.transports import TRANSPORTS
from placement.documents.cluster_yaml import ClusterFile
from placement.exporters.engines import ENGINES
from placement.solvers import SOLVERS
from placement.solvers.options import Options

COUNTS_EXAMPLE: Any = {"top_k": 1, "counts": [[9, 1, 4, 4], [2, 8, 6, 2]]}
PLACEMENT_EXAMPLES: list[Any] = [
    {
        "counts": COUNTS_EXAMPLE,
        "cluster": {"num_nodes": 2, "gpus_per_node": 1},
        "options": {"objective": "balance"},
    },
    {
        "traces": ["0f3c…, an id that POST /v1/traces answered"],
        "cluster": {"num_nodes": 4, "gpus_per_node": 2, "redundant_experts": 8},
        "options": {"solver": "auto", "seed": 0},
        "holdout": 0.2,
    },
]


# of a long list that is wrong the first fault is told, not each
Rows = TypeAliasType("Rows", Annotated[list[Annotated[list[float], FailFast()]], FailFast()])
ManyRows = TypeAliasType("ManyRows", Annotated[list[Rows], FailFast()])

Note = Annotated[str, Field(default="", max_length=1000, description="Why; kept in the history")]
Expect = Annotated[
    int | None, Field(default=None, description="Version that the alias must have now: else nothing moves")
]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


def _one_of(*names: str | None) -> dict[str, Any]:
    """What the document says of a field that takes one of these names; the library says so of others."""
    return {"enum": list(names)}


_ENUMS: dict[str, dict[str, Any]] = {
    "solver": _one_of(*dict.fromkeys(("auto", *SOLVERS))),
    "objective": _one_of(*OBJECTIVES),
    "bound": _one_of(*BOUNDS),
    "transport": _one_of("", *TRANSPORTS),
    "replica_choice": _one_of("", *REPLICA_CHOICES),
    "engine": _one_of(None, *ENGINES),
}


def _field(name: str, default: Any) -> Any:
    return Field(default=default, json_schema_extra=_ENUMS.get(name))


_HINTS = get_type_hints(Options)
OptionsBody: type[BaseModel] = create_model(
    "Options",
    __config__=ConfigDict(extra="forbid", strict=True),
    __doc__=Options.__doc__,
    **{field.name: (_HINTS[field.name], _field(field.name, field.default)) for field in fields(Options)},  # type: ignore[call-overload]
)


class CountsBody(Body):
    """Assignments of every expert, enough for `objective: balance`."""

    model_config = ConfigDict(json_schema_extra={"examples": [COUNTS_EXAMPLE]})

    counts: Rows | ManyRows = Field(description="[layers][experts], or that by request")
    top_k: int = Field(ge=1, description="Experts that a token visits")
    layer_ids: list[int] | None = None
    model: str | None = Field(default=None, max_length=200)


class GroupBody(Body):
    """Group requests by home node together with placing the experts; the placement then has a router."""

    home_from: str | None = Field(default=None, max_length=40)
    tolerance: float = TOKEN_TOLERANCE


class PlacementBody(Body):
    """A problem: traces (or counts), cluster and options, as `placement solve` takes them."""

    model_config = ConfigDict(json_schema_extra={"examples": PLACEMENT_EXAMPLES})

    traces: list[str] = Field(default=[], max_length=1000, description="Ids of traces")
    counts: CountsBody | None = Field(default=None, description="Instead of traces")
    cluster: ClusterFile
    options: OptionsBody = Field(default_factory=OptionsBody)  # type: ignore[valid-type]
    holdout: float = Field(default=0.2, ge=0, lt=1, description="Share of the requests to measure on, not to fit")
    robust: str | None = Field(
        default=None, max_length=40, description="How the traffic is parted, as `placement robust --parts`"
    )
    current: str | None = Field(default=None, description="Id of the placement in use: the answer is a change of it")
    group: GroupBody | None = None
    report: bool = Field(default=True, description="Make the HTML report too")


class FitBody(Body):
    """What maps are fitted to: traces, a cluster, options."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"traces": ["0f3c…"], "cluster": {"num_nodes": 4, "gpus_per_node": 2}}]}
    )

    traces: list[str] = Field(min_length=1, max_length=1000, description="Ids of traces")
    cluster: ClusterFile
    options: OptionsBody = Field(default_factory=OptionsBody)  # type: ignore[valid-type]
    holdout: float = Field(default=HOLDOUT, ge=0, lt=1, description="Share of the requests to measure on, not to fit")


class AdviseBody(FitBody):
    """What is asked of `placement advise`; the objective is the modelled step time, whatever the options say."""

    traces: list[str] = Field(min_length=1, max_length=1000, description="Ids of traces, or of one file of counts")
    holdout: float = Field(default=HOLDOUT, ge=0, lt=1)
    step_tokens: int | None = Field(default=None, ge=1, le=1 << 20, description="Of each GPU, for capacity factors")
    max_dropped: float = Field(default=MOST_DROPPED, ge=0, lt=1, description="Share that a capacity factor may drop")
    kv_cache_gb: float | None = Field(default=None, gt=0, description="KV cache of a GPU without redundant experts")


class FrontBody(FitBody):
    """What is asked of `placement front`."""


class StudyBody(Body):
    """What is asked of `placement traces info --study`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"traces": ["0f3c…"], "by": "domain", "num_nodes": 4}]})

    traces: list[str] = Field(min_length=1, max_length=1000, description="Ids of traces, or of one file of counts")
    by: str = Field(
        default="domain",
        max_length=40,
        description="What requests are told apart by",
        json_schema_extra=_one_of(*STUDIES),
    )
    num_nodes: int | None = Field(default=None, description="null: 4, or as many as there are experts")
    gpus_per_node: int = 1
    seed: int = Field(default=0, description="Of the folds in which domains are told held out")


class EvaluateBody(Body):
    """Measure a placement on other traces."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"traces": ["0f3c…"], "replica_choice": "min-nodes"}]})

    traces: list[str] = Field(min_length=1, max_length=1000)
    replica_choice: str = Field(default=REPLICA_CHOICE, max_length=40, json_schema_extra=_one_of(*REPLICA_CHOICES))
    transport: str = Field(default=TRANSPORT, max_length=40, json_schema_extra=_one_of(*TRANSPORTS))
    step_tokens: list[int] | None = Field(
        default=None, min_length=1, max_length=16, description="Measure also in steps of so many tokens for each GPU"
    )


class PublishBody(Body):
    """A placement that this service made, or a placement file."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"placement": "5f0a…", "note": "traffic of week 48"}]})

    placement: str | None = Field(default=None, max_length=64, description="Id of a placement of this service")
    document: dict[str, Any] | None = Field(default=None, description="Instead: a file of schema expert-placement/1")
    note: Note


class MoveBody(Body):
    model_config = ConfigDict(json_schema_extra={"examples": [{"version": 3, "expect": 2, "note": "soaked for a day"}]})

    version: int = Field(ge=1, le=2**53)
    expect: Expect
    note: Note


class RollbackBody(Body):
    model_config = ConfigDict(json_schema_extra={"examples": [{"note": "GPU 3 of node 1 runs hot"}]})

    expect: Expect
    note: Note


def options_of(body: dict[str, Any]) -> Options:
    return Options(**body)
