"""What measured step times say of a cluster, as tables for the terminal and as a document."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from rich.table import Table

from placement.cost.calibration.calibrate import KEYS, Calibration
from placement.errors import printable
from placement.report.drawing.numbers import number, percent
from placement.report.drawing.table import table_of

MOST_ROWS = 30  # that the terminal shows: those of the largest errors


def calibration_tables(answer: Calibration) -> Iterator[Table]:
    """What was fitted and kept; then the measured steps, the worst fitted first."""
    keys = table_of("cluster file", "value")
    keys.add_column("from")
    for key in KEYS.values():
        told = "measured times" if key in answer.fitted else f"kept, as {answer.kept[key]}"
        keys.add_row(key, number(getattr(answer.cluster, key)), told)
    yield keys
    error_R = np.abs(answer.error_R())
    steps = table_of("map", "tokens a GPU", "measured ms", "modelled ms", "error")
    for place in np.argsort(-error_R, kind="stable")[:MOST_ROWS].tolist():
        row, modelled_us = answer.rows[place], float(answer.modelled_us_R[place])
        cells = number(row.time_us / 1e3), number(modelled_us / 1e3), percent(modelled_us / row.time_us - 1)
        steps.add_row(printable(row.map.name), f"{row.step_tokens:,}", *cells)
    steps.caption = f"error of {len(error_R)} steps: mean {percent(error_R.mean())}, largest {percent(error_R.max())}"
    yield steps


def calibration_document(answer: Calibration) -> dict[str, Any]:
    """Plain values for JSON."""
    return {
        "fitted": {key: float(f"{value:.6g}") for key, value in answer.fitted.items()},
        "kept": answer.kept,
        "steps": [
            {
                "map": str(row.map),
                "step_tokens": row.step_tokens,
                "phase": row.phase,
                "time_us": row.time_us,
                "modelled_us": round(float(modelled_us), 3),
            }
            for row, modelled_us in zip(answer.rows, answer.modelled_us_R, strict=True)
        ],
    }
