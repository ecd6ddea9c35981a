"""The placement files of the maps by class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from placement.documents.placement import save_placement
from placement.pipeline.by_class_solution import ByClass, Cost
from placement.pipeline.solution import solution_document, summaries
from placement.support.atomic_files import make_folder


def by_class_document(answer: ByClass) -> dict[str, Any]:
    """The placement file of the one map, with what own maps gain over it on every class."""
    figures = answer.figures()
    sides = {"train": figures.train, "held_out": figures.held_out}
    return solution_document(
        answer.solution,
        asked={"by": answer.by},
        classes={
            "by": answer.by,
            "mean": {
                side: {name: _mean(answer.mean(answers, name)) for name in answer.classes[0].solution.maps}
                if any(answers)
                else None
                for side, answers in sides.items()
            },
            "classes": [
                {"name": one.name, "file": one.file, **summaries(one.solution.train, one.solution.held_out)}
                for one in answer.classes
            ],
            "left_out": list(answer.left_out),
            "own_not_better": answer.not_better(),
        },
    )


def _mean(cost: Cost) -> dict[str, float]:
    figures = {"sends_per_token": cost.sends, "rank_imbalance": cost.rank_imbalance, "cost": cost.cost}
    return {name: round(value, 6) for name, value in figures.items()}


def save_classes(folder: Path, answer: ByClass) -> None:
    """Write the placement file of every class, whole or not at all; make the folder if absent. Raises OutputError."""
    make_folder(folder)
    for one in answer.classes:
        document = solution_document(one.solution, asked={"by": answer.by, "class": one.name})
        save_placement(folder / one.file, document)
