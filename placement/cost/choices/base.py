"""The protocol of a replica choice: its cost on many tokens, the slots that it draws, what a search takes it for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from placement.core.cluster import Cluster
from placement.cost.kernel_balanced import RunningLoad
from placement.cost.lookup_tables import LayerTables, layer_tables
from placement.cost.step_groups import StepGroups
from placement.cost.traffic import Traffic
from placement.cost.transport import links_alike

Floats = npt.NDArray[np.float64]
# (ids_TK, running, slot_TK): write the slot of each assignment to slot_TK, int32 [T, K]; -1 where the id is below 0
Drawer = Callable[[npt.NDArray[Any], RunningLoad, npt.NDArray[np.int32]], None]
# (ids_TK, request_T, cost_QN, saved_EN): add what tokens cost from each home they might have, see HomeCosts
HomeCoster = Callable[[npt.NDArray[Any], npt.NDArray[np.int32], Floats, Floats], None]


class LayerTokens(NamedTuple):
    """Tokens of one layer.

    Attributes:
        ids_UK: Logical experts of each token, [U, K]; of signed ids, -1 fills the places of a short set from its end.
        count_U: How many tokens each row stands for, int64 [U].
        home_U: Home node of each row, int32 [U]; -1: the mean over all nodes.
        homes_random: True if all homes are -1.
    """

    ids_UK: npt.NDArray[Any]
    count_U: npt.NDArray[np.int64]
    home_U: npt.NDArray[np.int32]
    homes_random: bool


class InModel(NamedTuple):
    """Where a layer is in its model.

    Attributes:
        rows_HP: The map of all hidden layers as an engine numbers layers and slots, int64 [H, P].
        row: The row of the layer.
    """

    rows_HP: npt.NDArray[np.int64]
    row: int


class LayerCost(NamedTuple):
    """What one layer's map has cost so far; who costs tokens adds to `running`, `traffic` and `load_P`.

    Attributes:
        links_alike: True if every copy for a remote node or rank costs 1, and one that stays at home need not be there.
        running: What the choice remembers of the tokens so far.
        load_P: Assignments of each slot, float64 [P].
        within: Where the layer is in its model, for rules that go on from layer to layer; None: not known.
    """

    tables: LayerTables
    cluster: Cluster
    links_alike: bool
    running: RunningLoad
    traffic: Traffic
    load_P: Floats
    within: InModel | None = None

    @staticmethod
    def start(
        phy2log_P: npt.NDArray[np.integer],
        num_experts: int,
        cluster: Cluster,
        transport: str,
        within: InModel | None = None,
    ) -> LayerCost:
        """Of no token yet."""
        tables = layer_tables(phy2log_P, num_experts, cluster)
        running, traffic = RunningLoad.start(cluster), Traffic.start(cluster.num_nodes, cluster.num_ranks)
        load_P = np.zeros(cluster.num_slots)
        return LayerCost(tables, cluster, links_alike(cluster, transport), running, traffic, load_P, within)


class ReplicaChoice(Protocol):
    """Keeps no state between calls: what a rule remembers of a layer's tokens is in `RunningLoad`.

    Attributes:
        name: Name, as users give it.
        in_order: True if what a token gets depends on those before it: then tokens come one by one, requests mixed.
        without_order: Where `in_order`, the name of the choice that stands in where tokens have no order; else None.
        chances: The rule of `placement.cost.kernel_chances` that a search takes the choice for; None: the choice looks
            for few nodes, and so does the search.
    """

    name: str
    in_order: bool
    without_order: str | None
    chances: int | None

    def kernels(self, num_nodes: int) -> tuple[Any, ...]:
        """The compiled functions that `cost` runs where homes are random and links alike."""

    def is_quick(self, layer: LayerCost, *, homes_random: bool) -> bool:
        """True if a token costs less time than it takes to find the tokens that are equal to it."""

    def cost(self, tokens: LayerTokens, layer: LayerCost) -> None:
        """Add what the tokens send and which slots serve them: exact, or the expectation of what is drawn."""

    def drawer(self, tables: LayerTables, rank: int, cluster: Cluster) -> Drawer:
        """What draws slots for tokens of `rank`: on average what `cost` says. The same tokens get the same slots."""

    def on_device(self, num_nodes: int) -> str | None:
        """ "module:class" of the choice in torch, as `placement.runtime.choice_on_device:DeviceChooser`; None: the host
        draws, and the device waits for it."""

    def step_groups(self, tables: LayerTables) -> StepGroups | None:
        """How all ranks together share out the tokens of a step; None: each rank draws for its own (`drawer`)."""

    def home_coster(self, tables: LayerTables, cluster: Cluster, fare_HN: Floats, distinct: bool) -> HomeCoster:
        """What adds up the costs of homes, by the fares of nodes; `distinct`: a node is paid once a token."""
