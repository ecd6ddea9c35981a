"""What `placement traces characterize` shows."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.table import Table
from rich.text import Text

from placement.analysis.study import Study
from placement.errors import printable
from placement.report.drawing.numbers import number, plural
from placement.report.study import study_text as words


def study_tables(study: Study) -> Iterator[Table | Text]:
    """Title, a row for each measure, what was found in sentences, and what is missing."""
    model = study.model
    yield Text(
        f"{printable(model.name)}: {plural(model.num_layers, 'layer')} of {plural(model.num_experts, 'expert')}, "
        f"top-{model.top_k}; {plural(study.num_tokens, 'token')} in {plural(study.num_requests, 'request')}\n",
        style="bold",
    )
    yield _measures(study)
    for title, sentences in (
        ("load", [words.load_words(study)]),
        (f"how the {'categories' if study.by == 'category' else 'domains'} differ", words.domain_words(study)),
        (f"telling the {study.by}", words.telling_words(study)),
        ("foretelling", words.foretelling_words(study)),
        ("what tokens share", words.overlap_words(study)),
        ("what can be gained", words.gain_words(study)),
        ("to know of this trace", [f"{sentence}." for sentence in study.missing]),
    ):
        if sentences:
            yield Text(f"\n{title}", style="bold")
            for sentence in sentences:
                yield Text(printable(sentence))


def _measures(study: Study) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False)
    for header in ("over layers", "mean", "min", "max"):
        table.add_column(header, justify="left" if header == "over layers" else "right", no_wrap=True)
    for measure, label in labels(study).items():
        values = study.values(measure)
        if values:
            table.add_row(label, *map(number, (study.mean(measure), min(values), max(values))))
    return table


def labels(study: Study) -> dict[str, str]:
    first, rest = words.parts(study)
    return {
        "load_skew": "busiest expert over the mean",
        "load_gini": "Gini coefficient of the load",
        "top_share": "share of the busiest tenth of experts",
        "rank_imbalance": "imbalance of ranks, experts in order of ids",
        "drift": f"total variation of a {study.by} from all",
        "drift_chance": f"  of a random {study.by}",
        "own": f"correlation of {first} with {rest}",
        "same_domain": f"  of another request of its {study.by}",
        "other_domain": f"  of a request of another {study.by}",
        "overlap_next": "experts shared with the token before",
        "overlap_request": "  with any token of its request",
        "overlap_domain": f"  with another request of its {study.by}",
        "overlap_chance": "  by popularity alone",
    }
