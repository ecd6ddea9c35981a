"""One self-contained HTML page of advice: no script, nothing fetched, the same bytes every time."""

from __future__ import annotations

from typing import Any

from placement import __version__
from placement.analysis.advise.advice import Advice
from placement.analysis.advise.decay import Decay
from placement.analysis.advise.map_cost import EPLB, LINEAR, SOLVED
from placement.cost.transports import TRANSPORTS
from placement.errors import printable
from placement.report.advice import advice_charts as figures
from placement.report.advice import advice_text as words
from placement.report.advice.advice_tables import HEADERS, factor_text
from placement.report.drawing.numbers import human_bytes, percent
from placement.report.drawing.page import render
from placement.report.steps.step_charts import step_charts, steps_legend

STEP_LOOKS = {LINEAR: ("s0", "circle"), EPLB: ("s1", "square"), SOLVED: ("s2", "diamond")}
TEMPLATE = "advice/advice.html.j2"


def advice_html(advice: Advice) -> str:
    """The page as text; write it with `placement.support.atomic_files.write_atomic`."""
    return render(TEMPLATE, _context(advice))


def _context(advice: Advice) -> dict[str, Any]:
    said = words.answers(advice)
    headline, *said["worth"] = said["worth"]
    return {
        "advice": advice,
        "name": printable(advice.model.name),
        "headline": headline,
        "sizes": words.SIZES if advice.default_sizes else None,
        "questions": words.QUESTIONS,
        "said": {key: [printable(sentence) for sentence in sentences] for key, sentences in said.items()},
        "tiles": _tiles(advice),
        "engines": {one.transport: TRANSPORTS.make(one.transport).engines for one in advice.transports or ()},
        "redundancy_charts": figures.by_redundancy(advice.redundancy),
        "dropped": figures.dropped(advice.capacity),
        "peaks": figures.peaks(advice.capacity),
        "views": HEADERS,
        "factor_text": factor_text,
        "step_charts": [] if advice.steps is None else step_charts(advice.steps.sizes, STEP_LOOKS),
        "steps_legend": steps_legend(STEP_LOOKS),
        "drifts": [_drift(one) for one in advice.drift],
        "facts": [
            ("expert-placement", __version__),
            ("model", printable(advice.model.name)),
            ("tokens, requests", f"{advice.num_tokens:,}, {advice.num_requests:,}"),
            ("held out", percent(advice.holdout)),
            ("cluster", f"{advice.cluster.num_nodes} × {advice.cluster.gpus_per_node} GPUs"),
            ("slots of a GPU", f"{advice.cluster.slots_per_gpu}"),
            ("transport, replica choice", f"{advice.options.transport}, {advice.options.replica_choice}"),
            ("work limit", f"{advice.options.work_limit:,} moves a layer and map"),
            ("seed", f"{advice.options.seed}"),
            ("input", advice.input_hash),
        ],
    }


def _tiles(advice: Advice) -> list[tuple[str, str, str]]:
    """(what, value, beside what)."""
    worth, copies = advice.worth, advice.redundancy.recommended
    tiles = [
        (
            f"Saved of the {words.basis(advice)}",
            percent(worth.over_linear),
            f"against linear; {percent(worth.over_eplb)} against eplb",
        )
    ]
    solved = worth.maps[SOLVED]
    if solved.bytes_per_token is not None:
        linear = human_bytes(worth.maps[LINEAR].bytes_per_token or 0.0)
        beside = f"per token and layer, `{advice.options.transport}`; linear {linear}"
        tiles.append(("Bytes between nodes", human_bytes(solved.bytes_per_token), beside.replace("`", "")))
    given = human_bytes(copies.given_up_bytes)
    tiles.append(("Redundant experts", f"{copies.redundant}", f"{given} of KV cache given up per GPU"))
    windows = [one for one in advice.drift if one.by != "domain"]
    if windows and (kept := windows[0].kept(0, len(windows[0].names) - 1)) is not None:
        tiles.append(("Gain kept in the last window", percent(kept), "by the map solved for the first"))
    return tiles


def _drift(found: Decay) -> dict[str, Any]:
    return {
        "by": "domain" if found.by == "domain" else "window",
        "rows": [
            (printable(name), [tuple(map(printable, cell)) for cell in cells])
            for name, cells in figures.kept_cells(found)
        ],
        "windows": figures.over_windows(found) if found.by != "domain" else None,
        "left_out": [printable(name) for name in found.left_out],
    }
