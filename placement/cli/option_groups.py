"""Options that several commands take together: a dataclass a group, whose fields become options of the command.

A command names such a group as one parameter, see `placement.cli.commands`. In `--help` the options stand under the
name of their panel.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from placement.cli.executor import Workers, open_executor
from placement.cli.option_texts import caps_of
from placement.cli.outputs import output_file
from placement.cli.shared import (
    Engine,
    Json,
    ReplicaChoice,
    Seed,
    TopK,
    Transport,
    cluster_from_options,
    progress_listener,
)
from placement.core.choices import BALANCE_WEIGHT, BOUNDS, HOLDOUT, OBJECTIVES
from placement.solvers import SOLVERS

if TYPE_CHECKING:
    from placement.core.cluster import Cluster
    from placement.solvers.options import Options

CLUSTER, GOAL, SEARCH, MEASURE, RUN = "Cluster", "Goal", "Search", "Measuring", "Running and output"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterOptions:
    """The cluster, by its numbers or by its file."""

    nodes: Annotated[int | None, typer.Option(help="Machines of the EP group.", rich_help_panel=CLUSTER)] = None
    gpus_per_node: Annotated[
        int | None,
        typer.Option(
            help="GPUs of a machine. [default: the largest of 8, 4, 2, 1 that all get an expert]",
            rich_help_panel=CLUSTER,
        ),
    ] = None
    redundant_experts: Annotated[
        int | None, typer.Option(help="Slots beyond one for each expert.", rich_help_panel=CLUSTER)
    ] = None
    slots_per_gpu: Annotated[
        int | None, typer.Option(help="Experts that a GPU holds of each layer.", rich_help_panel=CLUSTER)
    ] = None
    cluster: Annotated[
        Path | None, typer.Option(help="cluster.yaml, instead of the four options above.", rich_help_panel=CLUSTER)
    ] = None

    def of(self, num_experts: int) -> Cluster:
        return cluster_from_options(
            num_experts,
            file=self.cluster,
            nodes=self.nodes,
            gpus_per_node=self.gpus_per_node,
            slots_per_gpu=self.slots_per_gpu,
            redundant_experts=self.redundant_experts,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """What is best, and how long to look for the best map."""

    objective: Annotated[str, typer.Option(help=f"What is best: {', '.join(OBJECTIVES)}.", rich_help_panel=GOAL)] = (
        "locality"
    )
    balance_weight: Annotated[
        float,
        typer.Option(help="Sends per token that one unit of rank imbalance (max/mean) is worth.", rich_help_panel=GOAL),
    ] = BALANCE_WEIGHT
    max_imbalance: Annotated[
        str | None,
        typer.Option(
            metavar="GPUS,NODES",
            help="Hard caps on every layer's imbalance of GPUs and of nodes on the training requests: 1.2; 1.2,1.05; "
            "or ,1.05 for nodes alone.",
            rich_help_panel=GOAL,
        ),
    ] = None
    engine: Engine = None
    transport: Transport = ""
    replica_choice: ReplicaChoice = ""
    solver: Annotated[str, typer.Option(help=f"One of {', '.join(SOLVERS)}.", rich_help_panel=SEARCH)] = "auto"
    bound: Annotated[
        str,
        typer.Option(
            help=f"Proof of how good the answer is: {', '.join(BOUNDS)}; tight takes seconds a layer.",
            rich_help_panel=SEARCH,
        ),
    ] = "quick"
    work_limit: Annotated[
        int | None, typer.Option(help="Moves that a search proposes per layer.", rich_help_panel=SEARCH)
    ] = None
    time_limit: Annotated[
        float | None,
        typer.Option(help="Seconds for solving; the answer then depends on the machine.", rich_help_panel=SEARCH),
    ] = None
    seed: Seed = 0

    def of(self, *, max_moves: int | None = None, max_moves_per_layer: int | None = None) -> Options:
        from placement.solvers.options import Options

        of_gpus, of_nodes = caps_of(self.max_imbalance)
        return Options(
            solver=self.solver,
            objective=self.objective,
            transport=self.transport,
            balance_weight=self.balance_weight,
            max_imbalance=of_gpus,
            max_node_imbalance=of_nodes,
            replica_choice=self.replica_choice,
            engine=self.engine,
            bound=self.bound,
            seed=self.seed,
            time_limit_s=self.time_limit,
            work_limit=self.work_limit,
            max_moves=max_moves,
            max_moves_per_layer=max_moves_per_layer,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What is measured, where the tasks run, and what is written beside the placement."""

    holdout: Annotated[
        float | None,
        typer.Option(
            help=f"Share of the requests to measure on, not to fit; 0 fits all. [default: {HOLDOUT}, or as counted]",
            show_default=False,
            rich_help_panel=MEASURE,
        ),
    ] = None
    top_k: TopK = None
    report: Annotated[Path | None, output_file(help="HTML report to write.", panel=RUN)] = None
    workers: Workers = None
    json_output: Json = False

    @contextmanager
    def running(self) -> Iterator[dict[str, Any]]:
        """Where the tasks run and who hears of their progress, as the library's solves take them."""
        with (
            open_executor(self.workers) as (engine, workers),
            progress_listener(quiet=self.json_output) as listener,
        ):
            yield {"holdout": self.holdout, "engine": engine, "workers": workers, "listener": listener}
