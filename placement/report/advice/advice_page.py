"""One self-contained HTML page of advice: no script, nothing fetched, the same bytes every time."""

from __future__ import annotations

from typing import Any

from placement import __version__
from placement.analysis.advise.advice import Advice
from placement.analysis.advise.decay import Drift
from placement.analysis.advise.map_cost import EPLB, LINEAR, SOLVED, Figures
from placement.cost.transports import TRANSPORTS
from placement.errors import printable
from placement.report.advice import advice_charts as figures
from placement.report.advice import advice_text as words
from placement.report.advice.advice_tables import HEADERS, factor_text
from placement.report.drawing.numbers import NONE, human_bytes, number, percent, plural
from placement.report.drawing.page import render

TEMPLATE = "advice/advice.html.j2"


def advice_html(advice: Advice) -> str:
    """The page as text; write it with `placement.support.atomic_files.write_atomic`."""
    return render(TEMPLATE, _context(advice))


def _context(advice: Advice) -> dict[str, Any]:
    said = words.answers(advice)
    headline, *said["worth"] = said["worth"]
    capacity = advice.capacity
    return {
        "advice": advice,
        "name": printable(advice.model.name),
        "plural": plural,
        "headline": headline,
        "sizes": words.SIZES if advice.default_sizes else None,
        "questions": words.QUESTIONS,
        "said": {key: [printable(sentence) for sentence in sentences] for key, sentences in said.items()},
        "tiles": _tiles(advice),
        "worth": [(name, _cells(advice.worth.maps[name])) for name in (LINEAR, EPLB, SOLVED)],
        "transports": _transports(advice),
        "kv_known": advice.redundancy.rows[0].kv_share is not None,
        "redundancy": _redundancy(advice),
        "redundancy_charts": figures.by_redundancy(advice.redundancy),
        "phases": [
            (phase.name, [(name, _cells(one)) for name, one in phase.maps.items()])
            for phase in (advice.phases.phases if advice.phases else ())
        ],
        "grouping": [(name, _cells(one), name == advice.grouping.best) for name, one in advice.grouping.maps.items()]
        if advice.grouping
        else [],
        "dropped": figures.dropped(capacity),
        "peaks": figures.peaks(capacity),
        "views": [HEADERS[name] for name in capacity.overall],
        "capacity": _capacity(advice),
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


def _cells(figures: Figures) -> list[str]:
    return [
        number(figures.sends),
        NONE if figures.bytes_per_token is None else human_bytes(figures.bytes_per_token),
        number(figures.imbalance),
        number(figures.worst_imbalance),
        number(figures.step_us),
    ]


def _transports(advice: Advice) -> list[tuple[str, str, list[str]]]:
    return [
        (
            one.transport,
            TRANSPORTS.make(one.transport).engines,
            [
                *(human_bytes(one.maps[name].bytes_per_token or 0.0) for name in (LINEAR, EPLB, SOLVED)),
                "fixed" if one.fixed else percent(one.saved),
                *(number(one.maps[name].step_us) for name in (LINEAR, EPLB, SOLVED)),
            ],
        )
        for one in advice.transports or ()
    ]


def _redundancy(advice: Advice) -> list[tuple[bool, int, list[str]]]:
    """(recommended, redundant experts, cells)."""
    best = advice.redundancy.recommended
    return [
        (
            row is best,
            row.redundant,
            [
                f"{row.slots_per_gpu}",
                number(row.maps[SOLVED].sends),
                number(row.maps[SOLVED].imbalance),
                number(row.maps[SOLVED].step_us),
                number(row.maps[EPLB].step_us),
                human_bytes(row.weights_bytes),
                human_bytes(row.given_up_bytes),
                *([] if row.kv_share is None else [percent(row.kv_share)]),
            ],
        )
        for row in advice.redundancy.rows
    ]


def _capacity(advice: Advice) -> list[tuple[str, list[str]]]:
    found = advice.capacity
    rows = [(f"{layer.layer_id}", layer.by) for layer in found.layers]
    return [
        (
            title,
            [
                *(number(by[name].peak) for name in found.overall),
                *(factor_text(by[name].factor, found.factors[-1]) for name in found.overall),
            ],
        )
        for title, by in [*rows, ("all", found.overall)]
    ]


def _drift(found: Drift) -> dict[str, Any]:
    return {
        "by": "domain" if found.by == "domain" else "window",
        "rows": [
            (printable(name), [tuple(map(printable, cell)) for cell in cells])
            for name, cells in figures.kept_cells(found)
        ],
        "windows": figures.over_windows(found) if found.by != "domain" else None,
        "left_out": [printable(name) for name in found.left_out],
    }
