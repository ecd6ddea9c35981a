"""The page and the tables of a study: well formed, the figures of the study, nothing fetched, every name escaped."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from html_page import Page

from placement.analysis.info import StudyOptions, TraceInfo, describe
from placement.report.drawing.numbers import number, percent
from placement.report.trace.trace_page import trace_html
from placement.traces.trace import open_trace
from placement.workload.counts_file import read_counts

NASTY = "<script>alert('&')</script>\x00"


def with_domains(folder: Path, write_trace: Any, domains: int, **shape: Any) -> TraceInfo:
    """24 requests, dealt to some domains; one of them has a name that means harm."""
    trace = write_trace(folder, tokens=240, requests=24, **shape)
    names = [NASTY, *(f"domain {d}" for d in range(1, domains))]
    entries = [{"id": f"r{q}"} | ({"domain": names[q % domains]} if domains else {}) for q in range(24)]
    (trace.folder / "trace.json").write_text(json.dumps(trace.manifest | {"requests": entries}))
    return describe(open_trace(trace.folder), study=StudyOptions(num_nodes=2, gpus_per_node=2))


@pytest.mark.parametrize(
    ("domains", "shape"),
    [
        (3, {}),
        (2, {"layer_ids": (7,), "num_layers": 1, "name": NASTY}),
        (1, {}),
        (0, {}),
        (2, {"num_experts": 4, "top_k": 4}),
        (2, {"top_k": 1}),
    ],
    ids=str,
)
def test_page_is_well_formed_and_fetches_nothing(
    domains: int, shape: dict[str, Any], tmp_path: Path, write_trace: Any
) -> None:
    """Also of one layer, of one domain or none, and where a token visits one expert or all of them."""
    text = trace_html(with_domains(tmp_path / "t", write_trace, domains, **shape))
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    assert set(page.labels) <= set(page.ids)
    assert all(address.startswith("#") for address in page.addresses)
    assert not re.search(r"https?:|url\(|@import|javascript:", text)
    assert "script" not in page.tags and "<script" not in text
    assert page.scoped and page.images_are_described
    assert page.tags.count("h1") == 1
    assert not re.search(r"\bnan\b|\binf\b|None", "".join(page.words))


def test_page_shows_the_figures_of_the_study(tmp_path: Path, write_trace: Any) -> None:
    """Means over layers, homes, accuracy, every cell of both tables; the same study gives the same bytes."""
    info = with_domains(tmp_path / "t", write_trace, 3)
    text, study = trace_html(info), info.study
    assert study is not None
    assert text == trace_html(with_domains(tmp_path / "again", write_trace, 3))
    words = "".join(Page(text).words)
    for measure in ("load_skew", "drift", "own", "balance_own", "node_imbalance", "rank_imbalance"):
        assert number(study.mean(measure)) in words
    assert study.homes is not None and study.telling is not None and study.similarity is not None
    for share in (study.homes.all, study.homes.domain, study.homes.first, study.homes.best, study.request_share):
        assert percent(share) in words
    assert percent(study.telling.first.accuracy) in words
    cells = re.findall(r'<td class="cell[^>]*>([^<]*)</td>', text)
    similarity, confusion = cells[:9], cells[9:]
    assert similarity == [f"{value:.2f}" for row in study.similarity.similarity for value in row]
    assert [int(cell or 0) for cell in confusion] == [count for row in study.telling.confusion for count in row]


def test_page_of_counts_without_tokens(tmp_path: Path) -> None:
    """Load is shown; what is unknown has no section and is told of."""
    np.savez(tmp_path / "c.npz", counts=np.random.default_rng(0).integers(1, 9, (6, 2, 8)), top_k=2)
    page = Page(trace_html(describe(read_counts(tmp_path / "c.npz"), study=StudyOptions())))
    assert "load" in page.ids
    assert not {"domains", "telling", "foretelling"} & set(page.ids)
    assert "counts without tokens" in "".join(page.words)
