"""The figures of advice, as SVG."""

from __future__ import annotations

from placement.analysis.advise.capacity_factor import IN_ORDER, MIXED, WHOLE, CapacityFactors
from placement.analysis.advise.decay import Decay
from placement.analysis.advise.redundancy import Redundancy
from placement.report.advice.advice_text import VIEWS
from placement.report.drawing.lines import Legend, Line, layer_line, legend, lines_by_layer, lines_over
from placement.report.drawing.numbers import percent

MAPS: Legend = [("solved", "s2", "diamond"), ("eplb", "s1", "square")]
STEPS = {IN_ORDER: ("s2", "diamond"), MIXED: ("s3", "triangle"), WHOLE: ("s0", "circle")}


def by_redundancy(found: Redundancy) -> list[tuple[str, str, Legend]]:
    """(title, chart, legend) of step, sends, imbalance and memory against redundant experts; what is known of them."""
    rows = found.rows
    xs = [float(row.redundant) for row in rows]
    charts = []
    for title, label, lowest, measure in (
        ("Modelled step", "ms, all MoE layers", 0.0, "step_us"),
        ("Sends", "sends per token to other nodes", 0.0, "sends"),
        ("Rank imbalance", "max / mean", 1.0, "imbalance"),
    ):
        scale = 1e-3 if measure == "step_us" else 1.0
        lines = []
        for name, series, shape in MAPS:
            values = [getattr(row.maps[name], measure) for row in rows]
            if None not in values:
                lines.append(Line(name, series, shape, [(x, y * scale) for x, y in zip(xs, values, strict=True)]))
        if lines:
            svg = lines_over(lines, x_label="redundant experts", y_label=label, lowest=lowest, title=title)
            charts.append((title, svg, MAPS))
    memory = Line("given up", "s2", "diamond", [(row.redundant, row.given_up_bytes / 1e9) for row in rows])
    title, label = "KV cache given up", "GB per GPU, all layers"
    return [*charts, (title, lines_over([memory], x_label="redundant experts", y_label=label, title=title), [])]


def dropped(found: CapacityFactors) -> tuple[str, Legend]:
    """Share dropped against the largest load of an expert that a factor allows, all layers."""
    lines = []
    for name, mark in STEPS.items():
        if name in found.overall:
            shares = found.overall[name].dropped
            last = next((n for n, share in enumerate(shares) if share < 5e-3), len(shares) - 1)
            points = zip(found.factors[: last + 1], [100 * share for share in shares[: last + 1]], strict=True)
            lines.append(Line(VIEWS[name], *mark, list(points)))
    x_label, y_label = "largest expert load allowed, over the mean", "assignments dropped, %"
    return lines_over(lines, x_label=x_label, y_label=y_label, title="Dropped"), legend(lines)


def peaks(found: CapacityFactors) -> tuple[str, Legend]:
    """Busiest expert of every layer over the mean."""
    layer_ids = [layer.layer_id for layer in found.layers]
    lines = [
        layer_line(VIEWS[name], *mark, layer_ids, [layer.by[name].peak for layer in found.layers])
        for name, mark in STEPS.items()
        if name in found.overall
    ]
    title = "Busiest expert over the mean by layer"
    return lines_by_layer(layer_ids, lines, "max / mean over experts", 1.0, title), legend(lines)


def over_windows(found: Decay) -> tuple[str, Legend] | None:
    """Gain kept by the map of the first window and by the one for all; None where there is none to keep."""
    windows = range(len(found.names))
    lines = [
        Line(title, *mark, [(w + 1.0, 100 * share) for w, share in enumerate(kept) if share is not None])
        for title, mark, kept in (
            ("solved for window 1", ("s2", "diamond"), [found.kept(0, w) for w in windows]),
            ("solved for all", ("s0", "circle"), [found.all_kept(w) for w in windows]),
        )
    ]
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    return lines_over(lines, x_label="window of the trace", y_label="gain kept, %", title="Gain kept"), legend(lines)


def kept_cells(found: Decay) -> list[tuple[str, list[tuple[str, str, str, str]]]]:
    """(fitted on, cells of text, kind, opacity and tooltip).

    The deeper a cell, the more is kept, or, where the kind is `loses`, the more is lost against linear; the last row is
    all.
    """
    parts = range(len(found.names))
    rows = [(name, [found.kept(v, w) for w in parts]) for v, name in enumerate(found.names)]
    rows.append(("all of them", [found.all_kept(w) for w in parts]))
    return [
        (
            name,
            [
                (
                    "\N{EN DASH}" if share is None else f"{100 * share:.0f}%".replace("-", "\N{MINUS SIGN}"),
                    "loses" if share is not None and share < 0 else "",
                    f"{0.6 * min(abs(share or 0.0), 1.0):.3g}",
                    f"solved for {name}, measured on {found.names[w]}: {percent(share)} of the gain kept",
                )
                for w, share in enumerate(shares)
            ],
        )
        for name, shares in rows
    ]
