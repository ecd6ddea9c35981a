"""One self-contained HTML page about a study: no script, nothing fetched, the same bytes every time."""

from __future__ import annotations

from typing import Any

from placement import __version__
from placement.analysis.info import Study, TraceInfo
from placement.analysis.info.domains import Similarity, Telling
from placement.analysis.info.findings import HomeFindings
from placement.errors import OptionError, printable
from placement.report.drawing.numbers import number, percent, plural
from placement.report.drawing.page import render
from placement.report.trace import trace_charts as figures
from placement.report.trace import trace_text as words

TEMPLATE = "trace/trace.html.j2"
LAYER_COLUMNS = {
    "load_skew": "Busiest expert over mean",
    "load_gini": "Gini",
    "load_cv": "Variation",
    "top_share": "Share of the busiest tenth",
    "rank_imbalance": "Rank imbalance",
    "drift": "Drift of domains",
    "overlap_next": "Shared with token before",
    "overlap_request": "Shared within request",
    "overlap_chance": "Shared by chance",
    "own": "First part foretells rest",
}


def trace_html(info: TraceInfo) -> str:
    """The page of a trace that was studied, as text; write it with `placement.support.atomic_files.write_atomic`."""
    if info.study is None:
        raise OptionError("this trace was described without a study; give describe() StudyOptions")
    return render(TEMPLATE, _context(info, info.study))


def _context(info: TraceInfo, study: Study) -> dict[str, Any]:
    return {
        "study": study,
        "name": printable(study.model.name),
        "words": words,
        "parts": words.parts(study),
        "charts": figures.charts(study),
        "domains_word": "categories" if study.by == "category" else "domains",
        "tiles": _tiles(study),
        "missing": [*info.missing, *study.missing],
        "similarity": _similarity(study.similarity) if study.similarity else None,
        "confusion": _confusion(study.telling) if study.telling else None,
        "homes": _homes(study, study.homes) if study.homes else None,
        "columns": LAYER_COLUMNS,
        "facts": [
            ("expert-placement", __version__),
            ("model", printable(study.model.name)),
            ("tokens, requests", f"{study.num_tokens:,}, {study.num_requests:,}"),
            ("domains", f"{len(info.domains):,}"),
            ("requests in the sample", f"{study.sampled_requests:,}"),
            ("told apart by", study.by),
            ("nodes, GPUs per node", f"{study.num_nodes}, {study.gpus_per_node}"),
            ("seed", str(study.seed)),
        ],
    }


def _tiles(study: Study) -> list[tuple[str, str, str]]:
    """(what, value, beside what)."""
    tiles = [("Busiest expert over the mean", number(study.mean("load_skew")), "mean over layers; 1 is even")]
    if study.telling is not None:
        tiles.append(
            (
                f"{study.by.capitalize()} told from {words.parts(study)[0]}",
                percent(study.telling.first.accuracy),
                f"always the most frequent {percent(study.telling.majority)}; held out",
            )
        )
    if study.values("own"):
        first, rest = words.parts(study)
        other = study.mean("other_domain")
        beside = "" if other is None else f", of another {study.by} {number(other)}"
        tiles.append(
            (f"{first.capitalize()} foretells {rest}", number(study.mean("own")), f"correlation over experts{beside}")
        )
    if study.values("overlap_next"):
        tiles.append(
            (
                "Experts shared with the token before",
                percent(study.mean("overlap_next")),
                f"by popularity alone {percent(study.mean('overlap_chance'))}",
            )
        )
    return tiles


Rows = list[tuple[str, int, list[tuple[str, float, str]]]]


def _similarity(found: Similarity) -> Rows:
    """(domain, requests, cells of text, depth and tooltip); the least alike pair is clear, the most alike full."""
    lowest, highest = min(map(min, found.similarity)), max(map(max, found.similarity))
    names = [printable(name) for name in found.domains]

    def cell(a: int, b: int) -> tuple[str, float, str]:
        value, other = found.similarity[a][b], "its other half" if a == b else names[b]
        tip = f"{names[a]} and {other}: cosine {value:.3f}, total variation {found.distance[a][b]:.3f}"
        return f"{value:.2f}", (value - lowest) / max(highest - lowest, 1e-9), tip

    domains = range(len(names))
    return [(names[a], found.requests[a], [cell(a, b) for b in domains]) for a in domains]


def _confusion(telling: Telling) -> Rows:
    rows = []
    names = [printable(name) for name in telling.domains]
    for name, row in zip(names, telling.confusion, strict=True):
        total = sum(row)
        cells = [
            (f"{count}" if count else "", count / total, f"{count} of {total} requests of {name} are taken for {told}")
            for told, count in zip(names, row, strict=True)
        ]
        rows.append((name, total, cells))
    return rows


def _homes(study: Study, homes: HomeFindings) -> list[tuple[str, float]]:
    """(what the home of a request holds, share of the assignments that it serves)."""
    first, rest = words.parts(study)
    held = f"the {plural(homes.held, 'expert')} of a layer that"
    rows = [
        ("whatever a node chosen at random holds", homes.chance),
        (f"{held} all other requests use most", homes.all),
        (f"{held} others of its {study.by} use most", homes.domain),
        (f"{held} {first} of the request used most", homes.first),
        (f"{held} {rest} itself will use most, known in hindsight", homes.best),
    ]
    return [(what, share) for what, share in rows if share is not None]
