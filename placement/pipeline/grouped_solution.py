"""What a solve with homes answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from placement.core.placement import Placement
from placement.cost.evaluation import Evaluation
from placement.grouping.assign import Assignment
from placement.grouping.home_costs import HomeCosts
from placement.grouping.requests import Requests
from placement.grouping.router import Router
from placement.pipeline.solution import Solution
from placement.pipeline.source_gains import SourceGain

GROUPED, JOINT = "grouped", "joint"
PLACED = "map"  # what a table calls a given placement
WITH_HOMES = " + homes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Homes:
    """Requests and their homes for one placement.

    assignment  of the training requests, from all their tokens; the others have none there
    held_out_Q  int32 [Q], homes of the held-out ones, grouped together from the first part of each; -1: none
    routed_Q    the same if the router decides one after the other as they come
    sources     what each thing that the router may know is worth; none where neither prompts nor labels were known
    session_tokens  so many cached tokens weigh as much as the best home saves beside the mean; None: nothing held out
    """

    assignment: Assignment
    router: Router
    router_keeps: float
    costs: HomeCosts
    held_out_Q: npt.NDArray[np.int32] | None
    routed_Q: npt.NDArray[np.int32] | None
    sources: tuple[SourceGain, ...] = ()
    session_tokens: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """One way to place and to group, measured on both sides; `homes` is None where they are random.

    held_out, routed  on the held-out requests, grouped together and routed one by one
    """

    name: str
    placement: Placement
    homes: Homes | None
    train: Evaluation
    held_out: Evaluation | None
    routed: Evaluation | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedSolution:
    """A placement with homes.

    solution   the maps; the result `grouped` is measured with its homes, all others with random ones
    gains      by name: what placement alone, grouping alone and both bring
    home_from  what a home is decided from: `prefill`, or the share of a request's tokens that come first; the held-out
               side is measured on the tokens after that
    tokens_Q   int64 [Q], tokens of every request; `held_out_Q` says which are held out, and `rest_tokens_Q` how many
               tokens of theirs are measured
    """

    solution: Solution
    requests: Requests
    homes: Homes
    gains: tuple[Gain, ...]
    home_from: str
    tolerance: float
    tokens_Q: npt.NDArray[np.int64]
    held_out_Q: npt.NDArray[np.bool_]
    rest_tokens_Q: npt.NDArray[np.int64]

    @property
    def home_Q(self) -> npt.NDArray[np.int32]:
        """The home of every request, int32 [Q]; -1 for those that the trace has no tokens of."""
        home_Q = self.homes.assignment.home_Q
        if self.homes.held_out_Q is not None:
            home_Q = np.where(self.held_out_Q, self.homes.held_out_Q, home_Q)
        return np.where(self.tokens_Q > 0, home_Q, -1).astype(np.int32)

    def gain(self, name: str) -> Gain:
        return next(one for one in self.gains if one.name == name)

    def held_out_balance(self, home_Q: npt.NDArray[np.int32]) -> float:
        """Most tokens of a node over the mean if held-out requests have these homes, [Q]."""
        mine = self.held_out_Q & (home_Q >= 0)
        load_N = np.bincount(home_Q[mine], self.rest_tokens_Q[mine], self.solution.cluster.num_nodes)
        return float(load_N.max() / load_N.mean()) if load_N.any() else 1.0
