"""The JSON form of a grouping: schema `expert-grouping/2`.

The JSON Schema is published as placement/documents/schemas/expert-grouping-2.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from placement.core.placement import Placement
from placement.documents.document import Document, DocumentPart
from placement.documents.figure_parts import SummaryPart
from placement.documents.parts import ModelPart, ProvenancePart
from placement.errors import InputError, OptionError
from placement.grouping.router import Router
from placement.grouping.router_part import RouterPart
from placement.traces.trace import Trace

VERSION_1 = "expert-grouping/1"  # still read


class GroupPart(DocumentPart):
    """The requests whose home is one node."""

    node: int
    requests: int
    tokens: int
    domains: dict[str, int] = Field(description="Requests of each domain, most first")


class DomainPart(DocumentPart):
    """Where the requests of a domain went, and what they send per token and layer; training requests."""

    domain: str
    tokens: int
    tokens_by_node: list[int]
    sends_before: float = Field(description="Under the placement for random homes, at random homes")
    sends_after: float = Field(description="Under the placement and the homes of this file")


class BalancePart(DocumentPart):
    """How evenly tokens are shared by nodes: max over mean."""

    tolerance: float = Field(description="What was asked for: no node gets more than 1 + tolerance of its share")
    kept: bool = Field(description="False where requests are too long or too few for that")
    train: float
    held_out: float | None = Field(description="Held-out requests, grouped together from the first part of each")
    routed: float | None = Field(description="The same if the router decides one after the other")


class CostPart(DocumentPart):
    """Sends per token and layer of the training requests at their homes."""

    sends_per_token: float
    bound: float = Field(description="No homes within the tolerance send less under this placement")
    gap: float = Field(description="(sends - bound) / sends")


class GainPart(DocumentPart):
    """One way to place and to group."""

    name: str
    homes: Literal["random", "grouped"]
    train: SummaryPart
    held_out: SummaryPart | None = Field(description="Held-out requests; grouped together if homes are grouped")
    routed: SummaryPart | None = Field(description="Held-out requests, homes decided by the router one by one")


class SourceGainPart(DocumentPart):
    """Homes of held-out requests from one thing that a router may know, measured on the rest of each.

    Sends per token and layer, and most tokens of a node over the mean: grouped together, and routed one by one.
    """

    name: str
    grouped_sends: float
    grouped_balance: float
    routed_sends: float
    routed_balance: float


class GroupingFile(Document):
    """Requests grouped by home node, for one placement."""

    SCHEMA = "expert-grouping/2"
    MEND = "give a grouping file"
    BEFORE = (VERSION_1,)
    ROWS = ("router.saved", "homes")

    schema_: Literal["expert-grouping/2"] = Field(alias="schema")
    model: ModelPart
    num_nodes: int
    placement_hash: str = Field(description="SHA-256 of the map that this is for, as in expert-migration/1")
    home_from: str = Field(
        description="What homes of new requests are decided from: prefill, or the share that is first"
    )
    groups: list[GroupPart]
    domains: list[DomainPart]
    balance: BalancePart
    cost: CostPart
    gains: list[GainPart]
    sources: list[SourceGainPart] = Field(
        default=[], description="Where prompts or labels were known: what each source is worth"
    )
    session_tokens: float | None = Field(
        default=None,
        description="So many cached tokens of a session weigh as much as the best home saves beside the mean one",
    )
    without_tokens: list[str] = Field(description="Requests that the trace has no tokens of, and that get no home")
    provenance: ProvenancePart
    router: RouterPart
    homes: dict[str, int] = Field(description="Request id -> home node")

    @model_validator(mode="before")
    @classmethod
    def _from_version_1(cls, document: Any) -> Any:
        """A file of version 1 has neither prices nor a predictor."""
        if isinstance(document, dict) and document.get("schema") == VERSION_1:
            return document | {"schema": cls.SCHEMA}
        return document

    def home_Q(self, trace: Trace) -> npt.NDArray[np.int32]:
        """Home node of every entry of the trace's requests, int32; -1 for those that this file does not know."""
        return np.array([self.homes.get(entry.id, -1) for entry in trace.requests], dtype=np.int32)

    def check_fits(self, placement: Placement) -> None:
        """Raises OptionError unless the placement has the nodes and the layers that the homes are for."""
        model, mine = placement.model, self.model
        same = (list(model.layer_ids), model.num_experts) == (mine.layer_ids, mine.num_experts)
        if placement.num_nodes != self.num_nodes or not same:
            raise OptionError(
                f"the grouping is for {self.num_nodes} nodes and {len(mine.layer_ids)} layers of {mine.num_experts} "
                f"experts; the map has {placement.num_nodes} nodes and {model.num_layers} layers of {model.num_experts}"
            )


def load_grouping(path: str | Path) -> GroupingFile:
    """Read and check a grouping file. Raises InputError with what is wrong."""
    path = Path(path)
    file = GroupingFile.read(path)
    bad = next((f"{name}: {node}" for name, node in file.homes.items() if not 0 <= node < file.num_nodes), None)
    if bad is not None:
        raise InputError(f"{path} has home {bad}; nodes from 0 to {file.num_nodes - 1} are allowed")
    try:
        router = file.router.router()
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if (router.num_nodes, router.num_layers) != (file.num_nodes, len(file.model.layer_ids)):
        raise InputError(
            f"{path}: the router is for {router.num_layers} layers and {router.num_nodes} nodes, the file is not"
        )
    return file


def load_router(path: str | Path) -> Router:
    """The router of a grouping file, which `placement group` writes.

    Raises:
        InputError: The file cannot be read, or is no grouping file.
    """
    return load_grouping(path).router.router()
