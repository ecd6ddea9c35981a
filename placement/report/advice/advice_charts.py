"""The figures of advice, as SVG."""

from __future__ import annotations

from collections.abc import Sequence

from placement.analysis.advise.capacity_factor import IN_ORDER, MIXED, WHOLE, Capacity
from placement.analysis.advise.decay import Drift
from placement.analysis.advise.redundancy import Redundancy
from placement.report.advice.advice_text import VIEWS
from placement.report.drawing.layer_lines import Line, layer_lines
from placement.report.drawing.numbers import number, percent
from placement.report.drawing.svg import Chart, ticks

Legend = list[tuple[str, str, str]]
Points = Sequence[tuple[float, float]]
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
                lines.append((name, series, shape, list(zip(xs, [value * scale for value in values], strict=True))))
        if lines:
            charts.append((title, _chart(title, "redundant experts", label, lowest, lines), MAPS))
    memory = [(x, row.given_up_bytes / 1e9) for x, row in zip(xs, rows, strict=True)]
    title = "KV cache given up"
    line = [("given up", "s2", "diamond", memory)]
    return [*charts, (title, _chart(title, "redundant experts", "GB per GPU, all layers", 0.0, line), [])]


def dropped(found: Capacity) -> tuple[str, Legend]:
    """Share dropped against the largest load of an expert that a factor allows, all layers."""
    lines = []
    for name, mark in STEPS.items():
        if name in found.overall:
            shares = found.overall[name].dropped
            last = next((n for n, share in enumerate(shares) if share < 5e-3), len(shares) - 1)
            points = list(zip(found.factors[: last + 1], [100 * share for share in shares[: last + 1]], strict=True))
            lines.append((VIEWS[name], *mark, points))
    chart = _chart("Dropped", "largest expert load allowed, over the mean", "assignments dropped, %", 0.0, lines)
    return chart, [(name, series, shape) for name, series, shape, _ in lines]


def peaks(found: Capacity) -> tuple[str, Legend]:
    """Busiest expert of every layer over the mean."""
    lines = [
        Line(VIEWS[name], *mark, [layer.by[name].peak for layer in found.layers])
        for name, mark in STEPS.items()
        if name in found.overall
    ]
    layer_ids = [layer.layer_id for layer in found.layers]
    chart = layer_lines(layer_ids, lines, "max / mean over experts", 1.0, "Busiest expert over the mean by layer")
    return chart, [(line.name, line.series, line.shape) for line in lines]


def over_windows(found: Drift) -> tuple[str, Legend] | None:
    """Gain kept by the map of the first window and by the one for all; None where there is none to keep."""
    lines = []
    for title, mark, kept in (
        ("solved for window 1", ("s2", "diamond"), [found.kept(0, w) for w in range(len(found.names))]),
        ("solved for all", ("s0", "circle"), [found.all_kept(w) for w in range(len(found.names))]),
    ):
        points = [(w + 1.0, 100 * share) for w, share in enumerate(kept) if share is not None]
        if points:
            lines.append((title, *mark, points))
    if not lines:
        return None
    chart = _chart("Gain kept", "window of the trace", "gain kept, %", 0.0, lines)
    return chart, [(name, series, shape) for name, series, shape, _ in lines]


def _chart(title: str, x_label: str, y_label: str, lowest: float, lines: Sequence[tuple[str, str, str, Points]]) -> str:
    xs = sorted({x for *_, points in lines for x, _ in points})
    ys = [y for *_, points in lines for _, y in points]
    pad = (xs[-1] - xs[0]) / 20 or 0.5
    whole = all(x == int(x) for x in xs) and len(xs) <= 8
    x_ticks = xs if whole else [x for x in ticks(xs[0], xs[-1]) if x >= xs[0]]
    chart = Chart(
        x_ticks=x_ticks,
        y_ticks=ticks(min(lowest, *ys), max(ys)) if len(ys) > 1 else ticks(min(lowest, ys[0]), ys[0]),
        x_range=(xs[0] - pad, max(xs[-1], x_ticks[-1]) + pad),
        x_label=x_label,
        y_label=y_label,
    )
    for name, series, shape, points in lines:
        chart.line(series, [x for x, _ in points], [y for _, y in points])
        for x, y in points:
            chart.mark(series, shape, x, y, f"{name}, {number(x)}: {number(y)}", radius=3.5)
    said = "; ".join(
        f"{name} {', '.join(f'{number(y)} at {number(x)}' for x, y in points)}" for name, _, _, points in lines
    )
    return chart.svg(f"{title} by {x_label}: {said}.")


def kept_cells(found: Drift) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """(fitted on, cells of text, opacity and tooltip): the deeper, the more is kept; the last row is all."""
    parts = range(len(found.names))
    rows = [(name, [found.kept(v, w) for w in parts]) for v, name in enumerate(found.names)]
    rows.append(("all of them", [found.all_kept(w) for w in parts]))
    return [
        (
            name,
            [
                (
                    "\N{EN DASH}" if share is None else f"{100 * share:.0f}%".replace("-", "\N{MINUS SIGN}"),
                    f"{0.6 * min(max(share or 0.0, 0.0), 1.0):.3g}",
                    f"solved for {name}, measured on {found.names[w]}: {percent(share)} of the gain kept",
                )
                for w, share in enumerate(shares)
            ],
        )
        for name, shares in rows
    ]
