"""`placement advise`: tables, page, JSON, and refusals in one line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from html_page import Page

from placement.report.drawing.numbers import human_bytes, number, percent

SHAPE = ("--nodes", 2, "--gpus-per-node", 2, "--work-limit", 300)


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory, run_cli: Any) -> Path:
    folder = tmp_path_factory.mktemp("advise") / "t"
    shape = ("--layers", 2, "--experts", 8, "--top-k", 2)
    assert run_cli("traces", "synth", *shape, "--tokens", 9000, "--requests", 60, "-o", folder).code == 0
    return folder


def test_terminal_page_and_json(trace: Path, run_cli: Any, tmp_path: Path) -> None:
    """Every question is answered in the terminal (tables in 80 columns), on the page and in JSON, with one truth."""
    page_file = tmp_path / "advice.html"
    result = run_cli("advise", trace, *SHAPE, "--kv-cache-gb", 1, "-o", page_file)
    assert result.code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    rules = [number for number, line in enumerate(lines) if line.startswith("─")]
    assert len(rules) >= 6 and all(len(lines[at]) <= 80 for at in rules)
    assert re.search(r"^solving maps: (\d+)/\1$", result.stderr, re.MULTILINE)
    document = json.loads(run_cli("advise", trace, *SHAPE, "--kv-cache-gb", 1, "--json", "--workers", 1).stdout)
    assert document["schema"] == "expert-advice/1" and document["absent"] == {}
    words = "".join(Page(page_file.read_text()).words)
    solved = document["worth"]["maps"]["solved"]
    for shown in (
        number(solved["step_us"]),
        human_bytes(solved["bytes_per_token"]),
        *(number(row["maps"]["eplb"]["step_us"]) for row in document["redundancy"]["rows"]),
        *(percent(row["kv_share"]) for row in document["redundancy"]["rows"]),
        *(number(one["maps"]["solved"]["step_us"]) for one in document["transports"]),
        *(number(one["maps"]["own"]["step_us"]) for one in document["phases"]["phases"]),
        *(number(one["by"]["in order"]["peak"]) for one in document["capacity"]["layers"]),
    ):
        assert shown in words and shown in result.stdout
    for part in document["drift"]:
        for share in [kept for line in part["kept"] for kept in line if kept is not None]:
            assert f"{100 * share:.0f}%".replace("-", "\N{MINUS SIGN}") in words


def test_workers_change_nothing(trace: Path, run_cli: Any, tmp_path: Path) -> None:
    """The same bytes of JSON and of the page with one worker and with three."""
    answers = []
    for workers in (1, 3):
        page = tmp_path / f"{workers}.html"
        answer = run_cli("advise", trace, *SHAPE, "--json", "--workers", workers, "-o", page)
        assert answer.code == 0 and answer.stderr == ""
        answers.append((answer.stdout, page.read_bytes()))
    assert answers[0] == answers[1]


@pytest.mark.parametrize("kind", ["trace without labels", "counts"])
def test_page_is_well_formed_and_fetches_nothing(kind: str, run_cli: Any, write_trace: Any, tmp_path: Path) -> None:
    """Also where answers are absent, for which a reason is told, and where a name means harm."""
    if kind == "counts":
        np.savez(tmp_path / "in.npz", counts=np.random.default_rng(0).integers(1, 9, (6, 2, 8)), top_k=2)
        given: Path = tmp_path / "in.npz"
    else:
        given = write_trace(tmp_path / "in", tokens=300, name="<script>alert('&')</script>").folder
    result = run_cli("advise", given, *SHAPE, "-o", tmp_path / "a.html")
    assert result.code == 0, result.stderr
    assert "Not answered" in result.stdout
    text = (tmp_path / "a.html").read_text()
    page = Page(text)
    assert len(page.ids) == len(set(page.ids)) and set(page.labels) <= set(page.ids)
    assert not re.search(r"https?:|url\(|@import|javascript:", text)
    assert "script" not in page.tags and "<script" not in text
    assert page.scoped and page.images_are_described and page.tags.count("h1") == 1
    assert not re.search(r"\bnan\b|\binf\b|None", "".join(page.words))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((), "--nodes N"),
        (("--nodes", "0"), "num_nodes=0"),
        (("--nodes", "99"), "num_nodes=99"),
        ((*SHAPE, "--holdout", "1"), "holdout=1.0"),
        ((*SHAPE, "--transport", "pigeon"), "transport='pigeon'"),
        ((*SHAPE, "--step-tokens", "0"), "step_tokens has 0"),
        ((*SHAPE, "--max-dropped", "1"), "most_dropped=1.0"),
        ((*SHAPE, "--kv-cache-gb", "-1"), "kv_cache=-1"),
        ((*SHAPE, "--top-k", "2"), "--top-k 2"),
        ((*SHAPE, "--workers", "0"), "workers=0"),
        ((*SHAPE, "-o", "nowhere/a.html"), "nowhere"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_told_in_one_line(
    options: tuple[object, ...], told: str, trace: Path, run_cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run_cli("advise", trace, *options)
    assert (result.code, result.stdout) == (2, "")
    errors = [line for line in result.stderr.splitlines() if not line.startswith(("counting", "compiling", "solving"))]
    assert len(errors) == 1 and told in errors[0], result.stderr
