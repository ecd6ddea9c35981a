"""The parts of a placement file that say what maps cost, and how far these figures can be trusted."""

from __future__ import annotations

from pydantic import Field

from placement.documents.document import DocumentPart


class MeanMax(DocumentPart):
    mean: float
    max: float


class BytesPart(DocumentPart):
    node: float | None = Field(description="One copy a remote node (DeepEP normal, hierarchical all-to-all)")
    rank: float | None = Field(description="One copy a remote rank")
    assignment: float | None = Field(description="One copy a remote assignment (DeepEP low latency)")


class SummaryPart(DocumentPart):
    """What a map costs on a trace; means over layers. Of counts alone, sends, bytes and time are null: unknown."""

    tokens: int
    sends_per_token: float | None = Field(
        default=None, description="What the transport sends, each copy weighed by the cost of its link"
    )
    node_sends_per_token: float | None = Field(description="Copies of a token that leave for distinct remote nodes")
    rank_sends_per_token: float | None = Field(description="Copies for distinct ranks on remote nodes")
    remote_assignments_per_token: float | None = Field(description="Assignments served on remote nodes")
    rank_imbalance: MeanMax = Field(description="Most loaded rank / mean rank, mean and max over layers")
    node_imbalance: MeanMax = Field(description="Most loaded node / mean node, mean and max over layers")
    busiest_in: MeanMax | None = Field(
        default=None, description="Sends into the busiest node / mean node, mean and max over layers; null: unknown"
    )
    busiest_out: MeanMax | None = Field(default=None, description="The same of sends out of home nodes")
    busiest_card: MeanMax | None = Field(
        default=None,
        description="Sends into the busiest GPU / mean GPU: what its network card gets, where each GPU has one",
    )
    bytes_per_token: BytesPart = Field(description="Bytes between nodes per token and layer, dispatch and combine")
    step_time_us: float | None = Field(description="Modelled time of all MoE layers of a step")
    sampled_tokens: int | None = Field(
        default=None, description="Tokens on which sends were measured, drawn uniformly; absent where it were all"
    )
    sends_error: float | None = Field(default=None, description="Then the standard error of sends_per_token")


class CapturePart(DocumentPart):
    """One of several captures that were solved together; all maps by name."""

    name: str
    weight: float = Field(description="Its share of the traffic")
    train: dict[str, SummaryPart]
    held_out: dict[str, SummaryPart] | None = Field(description="null where no request of the capture was held out")


class EvaluationPart(DocumentPart):
    """Summaries by map name (linear, eplb, the result) on the requests that were fitted and on those held out."""

    replica_choice: str
    transport: str = Field(default="node", description="What the engine sends: node, rank, assignment or allgather")
    result: str = Field(description="Name of the map in this file")
    train: dict[str, SummaryPart]
    held_out: dict[str, SummaryPart] | None
    best_split: dict[str, MeanMax] | None = Field(
        default=None,
        description="By train and held_out: rank imbalance of the map in this file if the load of every expert were "
        "split over its slots as well as can be; null where no expert has several",
    )
    captures: list[CapturePart] | None = Field(
        default=None, description="The maps on each of several captures; null where one was given"
    )


class TwicePart(DocumentPart):
    """What twice the requests would bring, [least, most]; from a learning curve."""

    sends_per_token: list[float] | None = Field(description="Fewer sends; null: sends do not count, or are unknown")
    rank_imbalance: list[float] = Field(description="Less rank imbalance")


class ErrorPart(DocumentPart):
    """Standard errors of held-out figures of the map in this file, from one set of so many requests to the next."""

    rank_imbalance: float
    against_reference: float = Field(description="Of its difference from the rank imbalance of eplb (of eplb: linear)")


class EvidencePart(DocumentPart):
    """How many requests the map rests on, and how far its figures can be trusted."""

    requests: int | None = Field(description="Requests that the map was fitted to; null: counts name none")
    more_requests: bool = Field(description="There are more requests than `requests`")
    held_out_requests: int | None = Field(description="null: none were held out, or so many that chance is no matter")
    twice_the_requests: TwicePart | None = Field(description="null: not measured")
    held_out_error: ErrorPart | None = Field(description="null: unknown, or so small that it is no matter")
