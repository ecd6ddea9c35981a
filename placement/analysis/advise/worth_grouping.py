"""Whether requests are worth grouping by home node, beside placing the experts."""

from __future__ import annotations

from dataclasses import dataclass

from placement.analysis.advise.map_cost import SOLVED, Figures, amount
from placement.core.cluster import Cluster
from placement.cost.transports import TRANSPORTS
from placement.pipeline.grouped_solution import JOINT, WITH_HOMES
from placement.pipeline.with_homes import solve_grouped
from placement.solvers.options import Options
from placement.traces.trace import Trace

FEWEST_A_NODE = 8  # fewest requests for each node


@dataclass(frozen=True, slots=True, kw_only=True)
class Grouping:
    """On the later part of held-out requests, whose homes are decided from the part before, `home_from`.

    maps    `linear`, `eplb` and `solved` with random homes; `solved + homes` and `joint + homes`: homes that a router
            gives to one request after another, for the solved map and for one that is solved together with homes
    """

    home_from: str
    requests: int
    maps: dict[str, Figures]

    @property
    def best(self) -> str:
        """The way to place and to group that costs least."""
        return min((name for name in self.maps if name.endswith(WITH_HOMES)), key=lambda name: self.maps[name].cost)

    @property
    def gain(self) -> float:
        """Share of the step of the solved map with random homes that grouping saves."""
        return self.maps[self.best].gain_over(self.maps[SOLVED])

    @property
    def verdict(self) -> str:
        return amount(self.gain)


def why_not_grouped(trace: Trace, cluster: Cluster, options: Options, holdout: float) -> str | None:
    """Why grouping is not asked about, if it is not."""
    requests = int((trace.tokens_Q() > 0).sum())
    if cluster.num_nodes < 2:
        return "one node is all there is"
    if TRANSPORTS.make(options.transport).everywhere:
        return f"{options.transport} sends every token everywhere, wherever its request is at home"
    if not holdout:
        return "no requests are held out to route"
    if requests < FEWEST_A_NODE * cluster.num_nodes:
        return (
            f"{requests} requests are too few for {cluster.num_nodes} nodes; {FEWEST_A_NODE} or more a node are needed"
        )
    return None


def grouping(trace: Trace, cluster: Cluster, options: Options, holdout: float, workers: int | None) -> Grouping:
    """Raises OptionError where the requests cannot be cut in what homes are decided from and a rest."""
    found = solve_grouped(trace, cluster, options, holdout=holdout, workers=workers)
    joint = f"{JOINT}{WITH_HOMES}"
    names = {one: one for one in ("linear", "eplb")} | {options.solver: SOLVED}
    names |= {f"{options.solver}{WITH_HOMES}": f"{SOLVED}{WITH_HOMES}", joint: joint}
    maps = {}
    for gain in found.gains:
        measured = gain.held_out if gain.homes is None else gain.routed
        if gain.name in names and measured is not None:
            maps[names[gain.name]] = Figures.of(measured)
    return Grouping(home_from=found.home_from, requests=int(found.held_out_Q.sum()), maps=maps)
