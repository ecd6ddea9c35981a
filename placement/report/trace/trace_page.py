"""One self-contained HTML page about a study: no script, nothing fetched, the same bytes every time."""

from __future__ import annotations

from typing import Any

from placement import __version__
from placement.analysis.info import Study, TraceInfo
from placement.analysis.info.findings import Homes
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
    ranks = study.num_nodes * study.gpus_per_node
    first, rest = words.parts(study)
    by = study.by
    load = [("load_skew", "experts"), *([("rank_imbalance", f"{ranks} ranks")] if ranks > study.num_nodes else [])]
    return {
        "study": study,
        "name": printable(study.model.name),
        "domains_word": "categories" if by == "category" else "domains",
        "headline": words.headline(study),
        "tiles": _tiles(study),
        "missing": [printable(sentence) for sentence in (*info.missing, *study.missing)],
        "load_words": words.load_words(study),
        "load": figures.lines(
            study, [*load, ("node_imbalance", f"{study.num_nodes} nodes")], "max / mean", 1.0, (0, 2, 3)
        ),
        "spread": figures.lines(
            study, [("load_gini", "Gini coefficient"), ("top_share", "share of the busiest tenth")], "0 to 1"
        ),
        "domain_words": words.domain_words(study),
        "similarity": _similarity(study),
        "drift": figures.lines(
            study,
            [("drift", f"{by} against all"), ("drift_chance", f"random {by} against all")],
            "total variation",
            marks=(0, 3),
        ),
        "telling_words": words.telling_words(study),
        "confusion": _confusion(study),
        "accuracy": figures.accuracy_by_tokens(study.telling) if study.telling else None,
        "foretelling_words": words.foretelling_words(study),
        "foretelling": figures.lines(
            study,
            [
                ("own", "the same request"),
                ("same_domain", f"another of its {by}"),
                ("other_domain", f"another of another {by}"),
            ],
            "correlation over experts",
            marks=(0, 1, 3),
        ),
        "first": first,
        "rest": rest,
        "overlap_words": words.overlap_words(study),
        "overlap": figures.lines(
            study,
            [
                ("overlap_next", "the token before it"),
                ("overlap_request", "any token of its request"),
                ("overlap_domain", f"another request of its {by}"),
                ("overlap_chance", "by popularity alone"),
            ],
            "share of a token's experts",
            marks=(2, 0, 1, 3),
        ),
        "gain_words": words.gain_words(study),
        "homes": _homes(study, study.homes) if study.homes else None,
        "columns": LAYER_COLUMNS,
        "layers": [
            (layer.layer_id, [number(getattr(layer, measure)) for measure in LAYER_COLUMNS]) for layer in study.layers
        ],
        "facts": [
            ("expert-placement", __version__),
            ("model", printable(study.model.name)),
            ("tokens, requests", f"{study.num_tokens:,}, {study.num_requests:,}"),
            ("domains", f"{len(info.domains):,}"),
            ("requests in the sample", f"{study.sampled_requests:,}"),
            ("told apart by", by),
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


def _similarity(study: Study) -> list[tuple[str, int, list[tuple[str, str, str]]]] | None:
    """(domain, requests, cells of text, opacity and tooltip); the least alike pair is clear, the most alike full."""
    found = study.similarity
    if found is None:
        return None
    lowest = min(map(min, found.similarity))
    highest = max(map(max, found.similarity))
    return [
        (
            printable(name),
            found.requests[a],
            [
                (
                    f"{value:.2f}",
                    _opacity((value - lowest) / max(highest - lowest, 1e-9)),
                    f"{printable(name)} and {'its other half' if a == b else printable(found.domains[b])}: cosine "
                    f"{value:.3f}, total variation {found.distance[a][b]:.3f}",
                )
                for b, value in enumerate(found.similarity[a])
            ],
        )
        for a, name in enumerate(found.domains)
    ]


def _confusion(study: Study) -> list[tuple[str, int, list[tuple[str, str, str]]]] | None:
    telling = study.telling
    if telling is None:
        return None
    rows = []
    for name, row in zip(telling.domains, telling.confusion, strict=True):
        total = sum(row)
        cells = [
            (
                f"{count}" if count else "",
                _opacity(count / total),
                f"{count} of {total} requests of {printable(name)} are taken for {printable(told)}",
            )
            for told, count in zip(telling.domains, row, strict=True)
        ]
        rows.append((printable(name), total, cells))
    return rows


def _opacity(share: float) -> str:
    return f"{0.6 * share:.3g}"


def _homes(study: Study, homes: Homes) -> list[tuple[str, float]]:
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
