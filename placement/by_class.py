"""One map for each class of traffic, beside one map for all: a node pool for code, one for chat; prefill and decode."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from placement.cluster import Cluster
from placement.cost import Evaluation, evaluate
from placement.cost.by_part import Answers, PartFigures
from placement.errors import InfeasibleError, LimitError, OptionError
from placement.events import Listener, Progress, ignore
from placement.files import make_folder
from placement.parallel import make_executor
from placement.placement_json import save_placement
from placement.placement_map import Placement
from placement.problem import Options
from placement.solution import Solution, solution_document
from placement.solve import BASELINES, count_training
from placement.solvers import get_solver
from placement.solvers.run import solve_workload
from placement.traces.classes import Sides, split_classes
from placement.traces.trace import Trace

ONE, OWN = "one", "own"  # names of the map for all and of the class's own
LONGEST_NAME = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficClass:
    """A class of traffic and its own map.

    file      a name for its placement file that every file system takes, different for every class
    solution  the result `own` was fitted to the class's training requests and is measured on the class alone, beside
              `one`, `linear` and `eplb`, which were fitted to all traffic
    """

    name: str
    file: str
    solution: Solution


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a map costs on some traffic: means over layers, `cost` at the prices of the objective."""

    tokens: int
    sends: float
    rank_imbalance: float
    cost: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ByClass:
    """solution is of the one map for all traffic; left_out are classes that are too small for a map of their own."""

    by: str
    solution: Solution
    classes: tuple[TrafficClass, ...]
    left_out: tuple[str, ...]

    def figures(self) -> PartFigures:
        """All maps on every class."""
        options, top_k = self.solution.options, self.solution.placement.model.top_k
        send_price, balance_price = options.prices(self.solution.cluster, top_k)
        held_out = tuple(one.solution.held_out for one in self.classes)
        return PartFigures(
            by=self.by,
            names=tuple(one.name for one in self.classes),
            left_out=self.left_out,
            train=tuple(one.solution.train for one in self.classes),
            held_out=held_out if any(held_out) else (),
            send_price=send_price,
            balance_price=balance_price,
            objective_W={},
        )

    def cost(self, evaluation: Evaluation) -> Cost:
        return Cost(
            tokens=evaluation.num_tokens,
            sends=float(evaluation.sends_L.mean()),
            rank_imbalance=float(evaluation.rank_imbalance_L().mean()),
            cost=self.figures().cost(evaluation),
        )

    def mean(self, answers: Answers, name: str) -> Cost:
        """Of one map over the classes, each weighted by its tokens."""
        costs = [self.cost(answer[name]) for answer in answers if answer]
        tokens = sum(one.tokens for one in costs)
        sends, imbalance, cost = (
            sum(one.tokens * getattr(one, key) for one in costs) / max(tokens, 1)
            for key in ("sends", "rank_imbalance", "cost")
        )
        return Cost(tokens=tokens, sends=sends, rank_imbalance=imbalance, cost=cost)

    def not_better(self) -> list[str]:
        """Classes whose own map costs no less than the one for all, on held-out requests where there are any."""
        figures = self.figures()
        _, answers = figures.shown()
        return [
            name
            for name, answer in zip(figures.names, answers, strict=True)
            if figures.cost(answer[OWN]) >= figures.cost(answer[ONE])
        ]


def solve_by(
    trace: Trace,
    cluster: Cluster,
    options: Options | None = None,
    *,
    by: str,
    holdout: float = 0.2,
    workers: int | None = None,
    listener: Listener = ignore,
) -> ByClass:
    """Solve for all traffic, then for each class of it alone; measure both maps on the held-out requests of the class.

    by  `domain`, `category` or `phase`, see `placement.traces.classes`

    The search for a class's own map also starts from the one for all: with `auto` and `anneal` it is never worse on the
    class's training objective. Requests of no class are fitted by the one map. `options.time_limit_s` is for all solves
    together. Deterministic like `placement.solve`. Raises TraceError, InfeasibleError, LimitError, and OptionError
    where fewer than two classes are found.
    """
    options = options or Options()
    if not 0 <= holdout < 1:
        raise OptionError(f"holdout={holdout} must be at least 0 and less than 1")
    if options.moves_limited:
        raise OptionError("maps by class are new maps and know no current one; leave out max_moves")
    cluster.check_fits(trace.model.num_experts)
    get_solver(options.solver)
    names, left_out, sides, classes = split_classes(trace, by, holdout, options.seed)
    solves = 1 + len(names)
    each = options
    if options.time_limit_s is not None:
        each = replace(options, time_limit_s=options.time_limit_s / solves)
    with make_executor(workers) as executor:

        def measure(side: Trace, maps: dict[str, Placement]) -> dict[str, Evaluation]:
            answers = evaluate(
                side,
                list(maps.values()),
                cluster=cluster,
                replica_choice=options.replica_choice,
                transport=options.transport,
                executor=executor,
            )
            return dict(zip(maps, answers, strict=True))

        def solved(number: int, sides: Sides, known: dict[str, Placement], name: str) -> Solution:
            """Fitted to the first of the sides, measured on all of them beside the known maps."""
            workload = count_training(sides[0], each, executor, ignore if number else listener)
            found, layers = solve_workload(
                workload,
                cluster,
                each,
                baselines=() if known else BASELINES,
                starts=known.get(ONE),
                executor=executor,
                workers=workers,
                listener=_part_of(listener, number, solves),
            )
            maps = known | {OWN: found[options.solver]} if known else found
            listener(Progress(stage="evaluate", done=number, total=solves))
            figures = [measure(side, maps) for side in sides]
            return Solution(
                placement=maps[name],
                cluster=cluster,
                options=options,
                layers=layers,
                result_name=name,
                maps=maps,
                train=figures[0],
                held_out=figures[1] if len(figures) > 1 else {},
                holdout=holdout if len(figures) > 1 else 0.0,
                input_hash=workload.digest(),
            )

        whole = solved(0, sides, {}, options.solver)
        known = {name: whole.maps[name] for name in BASELINES} | {ONE: whole.placement}
        answers = []
        for number, (name, file) in enumerate(zip(names, file_names(names), strict=True), start=1):
            try:
                own = solved(number, classes[number - 1], known, OWN)
            except (InfeasibleError, LimitError) as error:
                raise type(error)(f"{by} {name!r}: {error}") from None
            answers.append(TrafficClass(name=name, file=file, solution=own))
        listener(Progress(stage="evaluate", done=solves, total=solves))
    return ByClass(by=by, solution=whole, classes=tuple(answers), left_out=left_out)


def _part_of(listener: Listener, number: int, total: int) -> Listener:
    """Hears one of several solves, so that all of them make one bar that starts once."""

    def heard(event: Progress) -> None:
        if event.done or not number:
            listener(replace(event, done=event.done + number * event.total, total=event.total * total))

    return heard


def file_names(names: Sequence[str]) -> list[str]:
    """`<name>.json` with letters, digits, dots, dashes and underscores only; equal ones, in any case, are numbered."""
    taken: set[str] = set()
    files = []
    for name in names:
        stem = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._-")[:LONGEST_NAME] or "class"
        number, file = 1, stem
        while file.lower() in taken:
            number += 1
            file = f"{stem}-{number}"
        taken.add(file.lower())
        files.append(f"{file}.json")
    return files


def by_class_document(answer: ByClass) -> dict[str, Any]:
    """The placement file of the one map, with what own maps gain over it on every class."""
    figures = answer.figures()
    sides = {"train": figures.train, "held_out": figures.held_out}
    document = solution_document(
        answer.solution,
        classes={
            "by": answer.by,
            "mean": {
                side: {
                    name: {
                        "sends_per_token": round(mean.sends, 6),
                        "rank_imbalance": round(mean.rank_imbalance, 6),
                        "cost": round(mean.cost, 6),
                    }
                    for name in answer.classes[0].solution.maps
                    for mean in [answer.mean(answers, name)]
                }
                if any(answers)
                else None
                for side, answers in sides.items()
            },
            "classes": [
                {
                    "name": one.name,
                    "file": one.file,
                    "train": {name: answer.summary() for name, answer in one.solution.train.items()},
                    "held_out": {name: answer.summary() for name, answer in one.solution.held_out.items()} or None,
                }
                for one in answer.classes
            ],
            "left_out": list(answer.left_out),
            "own_not_better": answer.not_better(),
        },
    )
    document["provenance"]["options"] |= {"by": answer.by}
    return document


def save_classes(folder: Path, answer: ByClass) -> None:
    """Write the placement file of every class, whole or not at all; make the folder if absent. Raises OutputError."""
    make_folder(folder)
    for one in answer.classes:
        document = solution_document(one.solution)
        document["provenance"]["options"] |= {"by": answer.by, "class": one.name}
        save_placement(folder / one.file, document)
