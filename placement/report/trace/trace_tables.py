"""What `placement traces info` shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table
from rich.text import Text

from placement.analysis.info import LayerInfo, Study, TraceInfo
from placement.analysis.info.facts import MEASURES
from placement.errors import printable
from placement.report.drawing.numbers import NONE, number, percent, plural
from placement.report.drawing.table import table_of
from placement.report.trace import trace_text as words

SHOWN_DOMAINS = 12
LABELS = {
    "load_skew": "load skew (max / mean)",
    "load_cv": "load variation (std / mean)",
    "coactivation_lift": "co-activation lift (1 = by chance)",
    "domain_drift": "domain drift (0 to 1)",
    "domain_drift_chance": "  of random domains",
    "overlap": "overlap with the previous token",
    "overlap_chance": "  of unrelated tokens",
}
HEADERS = (
    "load\nskew",
    "load\nvariation",
    "co-act.\nlift",
    "domain\ndrift",
    "drift by\nchance",
    "overlap",
    "overlap\nby chance",
)


def trace_tables(info: TraceInfo, by_layer: bool) -> Iterator[Table | Text]:
    """Title, domains, measures (a row a layer only if asked for), what is missing, and the study in sentences."""
    model, study = info.model, info.study
    yield Text(
        f"{printable(model.name)}: {plural(model.num_layers, 'layer')} ({model.layers_said}) of "
        f"{plural(model.num_experts, 'expert')}, top-{model.top_k}",
        style="bold",
    )
    yield Text(
        f"{plural(info.num_tokens, 'token')} {_phases(info)}in {plural(info.num_requests, 'request')}, "
        f"{'with' if info.weights else 'without'} router weights"
    )
    yield Text(f"{plural(len(info.domains), 'domain')}, {_categories(info)}\n")
    if info.domains:
        yield _domains(info)
    yield _measures(info)
    if by_layer:
        yield _layers(info.layers)
    missing = [*info.missing, *(study.missing if study else ())]
    yield Text("missing:" if missing else "missing: nothing")
    for sentence in missing:
        yield Text(f"  {printable(sentence)}")
    for title, sentences in words.findings(study).items() if study else ():
        yield Text(f"\n{title}", style="bold")
        for sentence in sentences:
            yield Text(printable(sentence))


def _phases(info: TraceInfo) -> str:
    if info.decode_tokens is None:
        return ""
    drafts = f", {plural(info.draft_tokens, 'rejected draft')}" if info.draft_tokens else ""
    return f"({info.prefill_tokens:,} prefill, {info.decode_tokens:,} decode{drafts}) "


def _categories(info: TraceInfo) -> str:
    named = sum(part.category is not None for part in info.categories)
    return "1 category" if named == 1 else f"{named:,} categories"


def _domains(info: TraceInfo) -> Table:
    table = table_of("domain", "requests", "tokens", "share", "categories")
    for part in info.domains[:SHOWN_DOMAINS]:
        inner = sum(other.domain == part.domain and other.category is not None for other in info.categories)
        name = Text(printable(part.domain or NONE), overflow="ellipsis", no_wrap=True)
        table.add_row(name, f"{part.requests:,}", f"{part.tokens:,}", percent(part.share), f"{inner:,}")
    rest = info.domains[SHOWN_DOMAINS:]
    if rest:
        tokens = sum(part.tokens for part in rest)
        share = percent(sum(part.share for part in rest))
        table.add_row(f"{len(rest)} more", f"{sum(part.requests for part in rest):,}", f"{tokens:,}", share, "")
    return table


def _measures(info: TraceInfo) -> Table:
    table = table_of("over layers", "mean", "min", "max")
    for measure in MEASURES:
        table.add_row(LABELS[measure], *_over_layers(info.values(measure), info.mean(measure)))
    if info.study is not None:
        for measure, label in _study_labels(info.study).items():
            if values := info.study.values(measure):
                table.add_row(label, *_over_layers(values, info.study.mean(measure)))
    return table


def _over_layers(values: Sequence[float], mean: float | None) -> Iterator[str]:
    return map(number, (mean, min(values), max(values)) if values else (None, None, None))


def _study_labels(study: Study) -> dict[str, str]:
    first, rest = words.parts(study)
    return {
        "load_gini": "Gini coefficient of the load",
        "top_share": "share of the busiest tenth of experts",
        "rank_imbalance": "imbalance of ranks, experts in order of ids",
        "overlap_request": "overlap with any token of its request",
        "overlap_domain": f"  with another request of its {study.by}",
        "own": f"correlation of {first} with {rest}",
        "same_domain": f"  of another request of its {study.by}",
        "other_domain": f"  of a request of another {study.by}",
    }


def _layers(layers: tuple[LayerInfo, ...]) -> Table:
    table = table_of("\nlayer", *HEADERS)
    for layer in layers:
        table.add_row(str(layer.layer_id), *(number(getattr(layer, measure)) for measure in MEASURES))
    return table
