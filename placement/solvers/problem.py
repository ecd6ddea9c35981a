"""What a solver is asked and what it answers."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from placement.bounds.set_sizes import set_sizes
from placement.core.cluster import Cluster
from placement.cost.choices import REPLICA_CHOICES
from placement.cost.choices.base import LayerCost, LayerTokens, ReplicaChoice
from placement.cost.cost_layer import cost_layer, in_server_order
from placement.cost.node_families import MOST_NODES
from placement.cost.transport import links_NN
from placement.cost.transports import TRANSPORTS
from placement.cost.transports.base import PER_NODE, Transport
from placement.errors import InfeasibleError
from placement.solvers.options import Options

CAP_ROUNDING = 1e-9  # a map may exceed its caps by this much


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A map of one layer on the training data.

    objective      send_price * paid_sends + balance_price * expected_imbalance, the prices those of the problem
    sends          what the transport sends per token, each copy weighed by its link; mean over tokens and homes
    busiest_sends  N times the sends into the node that gets most
    paid_sends     the sends, but a share of them (the problem's `busy_share`) as if as much went into every node as
                   goes into the busiest: at least `sends`
    imbalance      max / mean over ranks of the training loads
    node_imbalance the same over nodes
    expected_imbalance  the mean of that over the training loads and bootstraps of the requests
    excess         by how much the imbalances are above their caps, together
    """

    objective: float
    sends: float
    busiest_sends: float
    paid_sends: float
    imbalance: float
    node_imbalance: float
    expected_imbalance: float
    excess: float = 0.0

    @property
    def feasible(self) -> bool:
        """True if the map keeps all caps."""
        return self.excess <= CAP_ROUNDING

    def better_than(self, other: Score) -> bool:
        """Feasible beats infeasible; then the lower objective; of infeasible ones the nearer to the caps."""
        if self.feasible and other.feasible:
            return self.objective < other.objective
        return (self.excess, self.objective) < (other.excess, other.objective)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerProblem:
    """One layer to place.

    Attributes:
        index: Position of the layer among the MoE layers.
        top_k: Experts of the largest sets, K.
        sets_UK: The distinct top-k sets of the token sample, int32 [U, K], ids ascending in a row; a short set has -1
            in its last places.
        count_U: How many sampled tokens have each set, int64 [U].
        load_BE: Share of assignments of each expert, float64 [B, E]: row 0 exact, the others bootstraps of requests.
        coact_EE: Tokens that visit both experts, int64 [E, E]; diagonal 0.
        home_U: Home node of each row of `sets_UK`, int32 [U], -1: uniformly random; None: all are. Where homes are
            given, rows are distinct by set and home.
        seed: Seed of this layer's own random stream.
        deadline: Time of `time.monotonic()` at which to stop, s, or None.
        starts: Maps to start from beside a solver's own, int32 [P] each: no answer of `auto` is worse than one of them.
    """

    index: int
    num_experts: int
    top_k: int
    num_groups: int | None
    cluster: Cluster
    options: Options
    sets_UK: npt.NDArray[np.int32]
    count_U: npt.NDArray[np.int64]
    load_BE: npt.NDArray[np.float64]
    coact_EE: npt.NDArray[np.int64]
    seed: int
    deadline: float | None = None
    home_U: npt.NDArray[np.int32] | None = None
    starts: tuple[npt.NDArray[np.int32], ...] = ()
    _scores: dict[bytes, Score] = field(init=False, default_factory=dict, repr=False, compare=False)

    def balanced(self) -> LayerProblem:
        """The problem that is left to a map: its ranks are the nodes where GPUs of a node share load at run time.

        Slots lie as before.

        Raises:
            InfeasibleError: a node has more slots than there are experts.
        """
        cluster = self.cluster.balanced()
        if cluster is self.cluster:
            return self
        if cluster.slots_per_gpu > self.num_experts:
            raise InfeasibleError(
                f"run_time_balance: node leaves nothing to place: a node has {cluster.slots_per_gpu} slots for "
                f"{self.num_experts} experts, so it can hold them all; use run_time_balance: none"
            )
        return replace(self, cluster=cluster)

    @property
    def send_price(self) -> float:
        """What one send per token costs; 0 if balance is all that counts."""
        return self.options.prices(self.cluster, self.assignments)[0]

    @property
    def balance_price(self) -> float:
        """What one unit of expected imbalance costs."""
        return self.options.prices(self.cluster, self.assignments)[1]

    @property
    def busy_share(self) -> float:
        """Share of the sends that is counted as if all nodes were as busy as the busiest.

        0 where sends do not count; where every copy is one of an assignment, so that the busiest node is the most
        loaded one; and where experts have several copies, unless nodes get one copy of a token and are few enough for
        a search to know what goes into each.
        """
        counts = self.options.sends_count and self.transport.distinct
        if self.num_redundant:
            few = self.cluster.num_nodes <= MOST_NODES and self.choice.chances is None
            counts = counts and few and self.transport.copies == PER_NODE
        return self.options.busy_share if counts else 0.0

    @property
    def assignments(self) -> float:
        """Experts that a sampled token visits, in the mean: `top_k`, or fewer where sets are short."""
        tokens = int(self.count_U.sum())
        return int(self.count_U @ set_sizes(self.sets_UK)) / tokens if tokens else float(self.top_k)

    @property
    def choice(self) -> ReplicaChoice:
        """The replica choice of the options."""
        return REPLICA_CHOICES.make(self.options.replica_choice)

    @property
    def transport(self) -> Transport:
        """The transport of the options."""
        return TRANSPORTS.make(self.options.transport)

    @property
    def homes_U(self) -> npt.NDArray[np.int32]:
        """`home_U`, -1 everywhere if it is None."""
        return np.full(len(self.sets_UK), -1, dtype=np.int32) if self.home_U is None else self.home_U

    @property
    def num_redundant(self) -> int:
        """Slots beyond one for each expert."""
        return self.cluster.num_slots - self.num_experts

    @property
    def load_E(self) -> npt.NDArray[np.float64]:
        """Share of assignments of each expert, float64 [E]."""
        return np.asarray(self.load_BE[0])

    def out_of_time(self) -> bool:
        """True once the deadline has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    def score(self, phy2log_P: npt.NDArray[np.integer]) -> Score:
        """Judge a map on the training data, exactly, under the replica choice of the options; each map once."""
        key = np.asarray(phy2log_P, dtype=np.int32).tobytes()
        if key not in self._scores:
            self._scores[key] = self._judge(phy2log_P)
        return self._scores[key]

    def _judge(self, phy2log_P: npt.NDArray[np.integer]) -> Score:
        tokens = LayerTokens(self.sets_UK, self.count_U, self.homes_U, self.home_U is None)
        choice = self.choice
        if choice.in_order and self.num_redundant:
            tokens = in_server_order(tokens)
        layer = LayerCost.start(np.asarray(phy2log_P), self.num_experts, self.cluster, self.options.transport)
        cost_layer(tokens, choice, layer)
        links_HN = links_NN(layer.traffic, self.cluster, self.options.transport, int(self.count_U.sum()))
        sends, busiest = float(links_HN.sum()), float(links_HN.sum(axis=0).max()) * self.cluster.num_nodes
        paid_sends = sends + self.busy_share * (busiest - sends)
        load_BG = self.load_BG(phy2log_P, layer.load_P)
        imbalance_B = load_BG.max(axis=1) * self.cluster.num_ranks
        expected = float(imbalance_B.mean())
        imbalance, node_imbalance = float(imbalance_B[0]), self._node_imbalance(load_BG[0])
        caps = ((imbalance, self.options.max_imbalance), (node_imbalance, self.options.max_node_imbalance))
        return Score(
            objective=self.send_price * paid_sends + self.balance_price * expected,
            sends=sends,
            busiest_sends=busiest,
            paid_sends=paid_sends,
            imbalance=imbalance,
            node_imbalance=node_imbalance,
            expected_imbalance=expected,
            excess=sum(max(value - cap, 0.0) for value, cap in caps if cap is not None),
        )

    def _node_imbalance(self, load_G: npt.NDArray[np.float64]) -> float:
        """`load_G`: shares of the training load divided by relative speed."""
        shape = (self.cluster.num_nodes, self.cluster.gpus_per_node)
        speed = self.cluster.speed_G().reshape(shape)
        load_N = (load_G.reshape(shape) * speed).sum(axis=1) / speed.mean(axis=1)
        return float(load_N.max() * self.cluster.num_nodes)

    def load_BG(self, phy2log_P: npt.NDArray[np.integer], load_P: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Shares of load of each rank divided by its relative speed, under each row of `load_BE`, float64 [B, G].

        An expert's load is shared over its slots as `load_P` is.
        """
        copies_E = np.bincount(phy2log_P, minlength=self.num_experts)
        served_E = np.bincount(phy2log_P, weights=load_P, minlength=self.num_experts)[phy2log_P]
        even_P = 1.0 / copies_E[phy2log_P]
        share_P = np.divide(load_P, served_E, out=even_P, where=served_E > 0)
        load_BP = self.load_BE[:, phy2log_P] * share_P
        by_rank_BG = load_BP.reshape(len(load_BP), self.cluster.num_ranks, -1).sum(axis=2)
        return np.asarray(self.cluster.served_XG(by_rank_BG) / self.cluster.speed_G())


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSolution:
    """A solver's answer for one layer.

    Attributes:
        solver: The one that found the map.
        status: `optimal` (proven), `feasible`, or `limit` (stopped by the time or work limit).
        bound: A proven lower bound on the objective of any map, or None where none was computed.
    """

    phy2log_P: npt.NDArray[np.int32]
    solver: str
    status: str = "feasible"
    bound: float | None = None
