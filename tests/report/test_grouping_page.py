"""The page of a grouping shows what its file says; the published schema is the one that files are checked by."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from html_page import Page

import placement as package
from placement import Cluster, Options, open_trace
from placement.grouping.grouping_file import GroupingFile, load_grouping
from placement.pipeline.documents.grouping_document import grouping_file
from placement.pipeline.grouped_solution import GroupedSolution
from placement.pipeline.with_homes import solve_grouped
from placement.report.drawing.numbers import change, number
from placement.report.solution.solution_page import report_html

PUBLISHED = Path(package.__file__).parent / "documents" / "schemas" / "expert-grouping-2.json"
CLUSTER = Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=3)

MakeGrouped = Callable[..., GroupedSolution]


@pytest.fixture(scope="module")
def make_grouped(tmp_path_factory: pytest.TempPathFactory, write_trace: Any) -> MakeGrouped:
    """24 requests of three domains, one with a name that is no HTML; `domains=False` drops them."""

    def make(domains: bool = True, **more: Any) -> GroupedSolution:
        folder = write_trace(tmp_path_factory.mktemp("trace"), tokens=1200, requests=24, spread=2.0).folder
        manifest = json.loads((folder / "trace.json").read_text())
        if domains:
            for q, request in enumerate(manifest["requests"]):
                request["domain"] = ("<b>&", "law", "x" * 60)[q % 3]
        (folder / "trace.json").write_text(json.dumps(manifest))
        return solve_grouped(open_trace(folder), CLUSTER, Options(work_limit=300, bound="none"), workers=1, **more)

    return make


@pytest.fixture(scope="module")
def grouped(make_grouped: MakeGrouped) -> GroupedSolution:
    return make_grouped()


def section(page: str) -> str:
    return page.partition('id="grouping"')[2].partition("</section>")[0]


def rows_of(html: str) -> list[list[str]]:
    """The cells of every row, as text."""
    return [
        [re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)]
        for row in re.findall(r"<tr.*?</tr>", html, re.DOTALL)
    ]


def test_the_page_shows_what_the_file_says(grouped: GroupedSolution) -> None:
    """Ways, domains and groups, each figure where it belongs."""
    document = grouping_file(grouped).document()
    rows = rows_of(section(report_html(grouped.solution, grouped=grouped)))
    for way in document["gains"]:
        row = next(row for row in rows if row[:2] == [way["name"].removesuffix(" + homes"), way["homes"]])
        sends = [way[side] and number(way[side]["sends_per_token"]) for side in ("held_out", "routed", "train")]
        assert [row[2], row[6] or None, row[9]] == sends
        assert [row[4], row[10]] == [number(way[s]["rank_imbalance"]["mean"]) for s in ("held_out", "train")]
    last = next(row for row in rows if row[:2] == ["joint", "grouped"])
    balance = document["balance"]
    assert [last[5], last[8], last[11]] == [number(balance[side]) for side in ("held_out", "routed", "train")]
    for domain in document["domains"]:
        name = domain["domain"].replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        row = next(row for row in rows if row[0] == name)
        assert row[1:4] == [f"{domain['tokens']:,}", number(domain["sends_before"]), number(domain["sends_after"])]
        shares = [f"{tokens / domain['tokens']:.0%}" if tokens else "" for tokens in domain["tokens_by_node"]]
        assert row[5:] == shares
    for group in document["groups"]:
        row = next(
            row for row in rows if row[:3] == [str(group["node"]), str(group["requests"]), f"{group['tokens']:,}"]
        )
        assert all(f"({count})" in row[4] for count in group["domains"].values())


@pytest.mark.parametrize("more", [{}, {"holdout": 0}, {"domains": False, "home_from": "0.5"}], ids=str)
def test_the_page_is_well_formed(make_grouped: MakeGrouped, more: dict[str, Any]) -> None:
    """With and without held-out requests and domains; names are escaped, nothing is left undefined."""
    solved = make_grouped(**more)
    text = report_html(solved.solution, grouped=solved)
    page = Page(text)
    assert len(page.ids) == len(set(page.ids)) and set(page.labels) <= set(page.ids) and page.scoped
    assert "<b>&" not in section(text)
    assert not re.search(r"\bnan\b|\binf\b|None", "".join(page.words).replace("“None”", ""))
    assert ("Held out, routed one by one" in text) == (more.get("holdout") != 0)
    assert ("unknown" in section(text)) == (not more.get("domains", True))
    assert 'id="grouping"' not in report_html(solved.solution)


def test_a_given_map_has_no_joint_one(make_grouped: MakeGrouped, grouped: GroupedSolution) -> None:
    """What placement alone brings is then what the given map does; it has no layers that were solved."""
    given = make_grouped(placement=grouped.solution.placement)
    words = section(report_html(given.solution, grouped=given))
    linear, alone, both = (given.gain(name).held_out for name in ("linear", "map", "map + homes"))
    assert linear is not None and alone is not None and both is not None
    assert '<th scope="row">joint</th>' not in words
    for one in (alone, both):
        assert change(one.sends_L.mean(), linear.sends_L.mean()).lstrip("+−%-").rstrip("%") in words


def test_published_schema(tmp_path: Path, grouped: GroupedSolution) -> None:
    """The file that users point their editors at is the schema that the code checks by; what is written keeps it."""
    schema = GroupingFile.json_schema()
    assert json.loads(PUBLISHED.read_text()) == schema
    jsonschema.Draft202012Validator.check_schema(schema)
    grouping_file(grouped).write(tmp_path / "grouping.json")
    document = json.loads((tmp_path / "grouping.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(document)
    assert load_grouping(tmp_path / "grouping.json").num_nodes == 2
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema).validate(document | {"homes": {"r0": "first"}})
