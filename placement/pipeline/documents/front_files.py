"""The files of the front."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from placement.documents.document import json_bytes
from placement.documents.placement import save_placement
from placement.pipeline.front_solution import Front
from placement.pipeline.run import BASELINES
from placement.pipeline.solution import Solution, solution_document
from placement.support.atomic_files import make_folder, write_atomic

SCHEMA = "expert-front/1"
FRONT_FILE, PLOT_FILE = "front.json", "front.svg"


def front_document(front: Front) -> dict[str, Any]:
    """What `front.json` holds: the baselines and every point, on the requests fitted and on those held out."""
    solution = front.solution
    return {
        "schema": SCHEMA,
        "balance_weight": solution.options.balance_weight,
        "max_imbalance": solution.options.max_imbalance,
        "replica_choice": solution.options.replica_choice,
        "transport": solution.options.transport,
        "input_hash": solution.input_hash,
        "chosen": front.chosen.file,
        "baselines": [{"name": name} | _figures(solution, name) for name in BASELINES],
        "points": [
            {
                "weight": point.weight,
                "file": point.file,
                "objective": {
                    "sends": round(point.sends, 9),
                    "paid_sends": round(point.paid_sends, 9),
                    "expected_imbalance": round(point.expected_imbalance, 9),
                },
            }
            | _figures(point.solution, point.solution.result_name)
            for point in front.points
        ],
    }


def _figures(solution: Solution, name: str) -> dict[str, Any]:
    sides = {"train": solution.train, "held_out": solution.held_out}
    return {
        side: {
            key: value for key, value in answers[name].summary().items() if key in ("sends_per_token", "rank_imbalance")
        }
        if answers
        else None
        for side, answers in sides.items()
    }


def save_front(folder: Path, front: Front) -> None:
    """Write the placement file of every point, then `front.json`, each whole or not at all; make the folder if absent.

    Raises OutputError.
    """
    make_folder(folder)
    for point in front.points:
        save_placement(folder / point.file, solution_document(point.solution))
    write_atomic(folder / FRONT_FILE, json_bytes(front_document(front), "points"))
