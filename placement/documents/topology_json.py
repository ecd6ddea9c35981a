"""The topology of a cluster in files: `cluster.yaml` and the placement file."""

from __future__ import annotations

from dataclasses import asdict

from pydantic import BaseModel, ConfigDict, Field

from placement.core.topology import Level, Topology


class LevelPart(BaseModel):
    """A level of the network above nodes."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    nodes: int = Field(description="Consecutive nodes of a block")
    gbps: float = Field(description="Bandwidth of a GPU from block to block, Gbit/s")


class TopologyPart(BaseModel):
    """How links between nodes differ; the meaning of the keys is that of `placement.core.topology.Topology`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    levels: list[LevelPart] = []
    node_gbps: list[float] = []
    rank_cost: list[list[float]] = []

    @staticmethod
    def of(topology: Topology) -> TopologyPart:
        return TopologyPart(
            levels=[LevelPart(**asdict(level)) for level in topology.levels],
            node_gbps=list(topology.node_gbps),
            rank_cost=[list(row) for row in topology.rank_cost],
        )

    def topology(self) -> Topology:
        return Topology(
            levels=tuple(Level(**level.model_dump()) for level in self.levels),
            node_gbps=tuple(self.node_gbps),
            rank_cost=tuple(map(tuple, self.rank_cost)),
        )
