"""What a solver is asked and what it answers."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from placement.cluster import Cluster
from placement.cost.kernels import cost_replicated, cost_single
from placement.cost.replica_choice import MIN_NODES, MIN_NODES_BALANCED, replica_choice_code
from placement.cost.tables import layer_tables
from placement.errors import OptionError

BALANCE_WEIGHT = 1.5
BOUNDS = ("quick", "tight", "none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to solve. `work_limit` keeps answers reproducible; `time_limit_s` does not.

    solver         a registered name; `auto` is never worse than linear or eplb on the training objective
    balance_weight price of imbalance: what one unit of expected rank imbalance (max/mean) costs in sends per token
    max_imbalance  hard cap on the rank imbalance of the training loads in every layer; None: only the price counts
    bound          quick (eigenvalues), tight (Lagrangian decomposition: seconds a layer) or none
    work_limit     moves that a search proposes per layer; None: by the size of the layer
    time_limit_s   wall seconds for the whole solve; layers share it evenly
    """

    solver: str = "auto"
    balance_weight: float = BALANCE_WEIGHT
    max_imbalance: float | None = None
    replica_choice: str = "min-nodes"
    bound: str = "quick"
    seed: int = 0
    work_limit: int | None = None
    time_limit_s: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.balance_weight <= 1e6:
            raise OptionError(f"balance_weight={self.balance_weight} must be from 0 to 1e6")
        if self.max_imbalance is not None and not (np.isfinite(self.max_imbalance) and self.max_imbalance >= 1):
            raise OptionError(f"max_imbalance={self.max_imbalance} must be 1 or more: it is max/mean over GPUs")
        if self.work_limit is not None and self.work_limit < 1:
            raise OptionError(f"work_limit={self.work_limit} must be at least 1 move")
        if self.time_limit_s is not None and not self.time_limit_s > 0:
            raise OptionError(f"time_limit={self.time_limit_s} must be more than 0 seconds")
        if not 0 <= self.seed < 2**63:
            raise OptionError(f"seed={self.seed} must be from 0 to 2^63 - 1")
        if self.bound not in BOUNDS:
            raise OptionError(f"bound={self.bound!r} is unknown; choose one of {', '.join(BOUNDS)}")
        replica_choice_code(self.replica_choice)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A map of one layer on the training data.

    objective      sends + balance_weight * expected_imbalance
    sends          copies of a token that leave for distinct remote nodes, mean over tokens and homes
    imbalance      max / mean over ranks of the training loads
    expected_imbalance  the mean of that over the training loads and bootstraps of the requests
    feasible       imbalance is within the cap
    """

    objective: float
    sends: float
    imbalance: float
    expected_imbalance: float
    feasible: bool

    def better_than(self, other: Score) -> bool:
        """Feasible beats infeasible; then the lower objective; of infeasible ones the lower imbalance."""
        if self.feasible != other.feasible:
            return self.feasible
        if not self.feasible:
            return (self.imbalance, self.objective) < (other.imbalance, other.objective)
        return self.objective < other.objective


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerProblem:
    """One layer to place.

    index       position of the layer among the MoE layers
    sets_UK     int32 [U, K], the distinct top-k sets of the token sample, ids ascending in a row
    count_U     int64 [U], how many sampled tokens have each
    load_BE     float64 [B, E], share of assignments of each expert: row 0 exact, the others bootstraps of the requests
    coact_EE    int64 [E, E], tokens that visit both experts; diagonal 0
    seed        of this layer's own random stream
    deadline    `time.monotonic()` at which to stop, or None
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

    @property
    def num_redundant(self) -> int:
        return self.cluster.num_slots - self.num_experts

    @property
    def load_E(self) -> npt.NDArray[np.float64]:
        return np.asarray(self.load_BE[0])

    def out_of_time(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline

    def score(self, phy2log_P: npt.NDArray[np.integer]) -> Score:
        """Judge a map on the training data, exactly, under the replica choice of the options."""
        tables = layer_tables(
            np.asarray(phy2log_P),
            num_experts=self.num_experts,
            num_nodes=self.cluster.num_nodes,
            gpus_per_node=self.cluster.gpus_per_node,
        )
        totals = np.zeros(3)
        load_P = np.zeros(self.cluster.num_slots)
        random_home = np.full(len(self.sets_UK), -1, dtype=np.int32)
        if self.num_redundant == 0:
            cost_single(self.sets_UK, self.count_U, random_home, tables, totals, load_P)
        else:
            code = replica_choice_code(self.options.replica_choice)
            if code == MIN_NODES_BALANCED:  # its sends are those of min-nodes; its loads need the order of the tokens
                code = MIN_NODES
            cost_replicated(self.sets_UK, self.count_U, random_home, code, tables, totals, load_P)
        sends = float(totals[0]) / float(self.count_U.sum())
        imbalance_B = self.imbalance_B(phy2log_P, load_P)
        cap = self.options.max_imbalance
        expected = float(imbalance_B.mean())
        return Score(
            objective=sends + self.options.balance_weight * expected,
            sends=sends,
            imbalance=float(imbalance_B[0]),
            expected_imbalance=expected,
            feasible=cap is None or float(imbalance_B[0]) <= cap + 1e-9,
        )

    def imbalance_B(
        self, phy2log_P: npt.NDArray[np.integer], load_P: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]:
        """Rank imbalance under each row of `load_BE`; an expert's load is shared over its slots as `load_P` is."""
        copies_E = np.bincount(phy2log_P, minlength=self.num_experts)
        served_E = np.bincount(phy2log_P, weights=load_P, minlength=self.num_experts)[phy2log_P]
        even_P = 1.0 / copies_E[phy2log_P]
        share_P = np.divide(load_P, served_E, out=even_P, where=served_E > 0)
        load_BP = self.load_BE[:, phy2log_P] * share_P
        load_BG = load_BP.reshape(len(load_BP), self.cluster.num_ranks, -1).sum(axis=2) / self.cluster.speed_G()
        return np.asarray(load_BG.max(axis=1) * self.cluster.num_ranks)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSolution:
    """A solver's answer for one layer.

    solver  the one that found the map
    status  optimal (proven), feasible, or limit (stopped by the time or work limit)
    bound   a proven lower bound on the objective of any map, or None where none was computed
    """

    phy2log_P: npt.NDArray[np.int32]
    solver: str
    status: str = "feasible"
    bound: float | None = None
