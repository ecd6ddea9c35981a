"""The page, as a browser without script sees it: forms, links and tables of a real server."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tests_service import Server, tar_of

HTML = {"Accept": "text/html"}
CLUSTER = {"num_nodes": "2", "gpus_per_node": "2", "redundant_experts": "0"}


class Elements(HTMLParser):
    """Names and attributes of all elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def values(self) -> dict[str, str]:
        """What the fields of the page hold."""
        found = {str(a["name"]): str(a.get("value") or "") for tag, a in self.found if tag == "input" and "name" in a}
        return {name: value for name, value in found.items() if name not in ("id", "group", "file", "top_k")}


def solved(client: httpx.Client, trace: str, form: dict[str, str]) -> str:
    """Where the placement of a form is shown."""
    sent = client.post(f"/traces/{trace}/solve", data=form)
    assert sent.status_code == 303, sent.text
    end = time.monotonic() + 180
    while (shown := client.get(sent.headers["location"])).status_code == 200:
        assert "<progress" in shown.text
        assert time.monotonic() < end
        time.sleep(0.1)
    assert shown.status_code == 303, shown.text
    return str(shown.headers["location"])


@pytest.fixture(scope="module")
def first(client: httpx.Client, trace_id: str) -> str:
    return solved(client, trace_id, CLUSTER)


@pytest.fixture(scope="module")
def second(client: httpx.Client, trace_id: str) -> str:
    return solved(client, trace_id, CLUSTER | {"balance_weight": "0.1", "seed": "0", "group": "1"})


def test_from_the_page_to_a_placement(client: httpx.Client, trace: Path) -> None:
    """Upload, solve what the form proposes, wait, read the table, open the report, download for an engine, start it."""
    assert {"file"} <= {name["name"] for tag, name in Elements(client.get("/").text).found if tag == "input"} - {None}
    sent = client.post("/traces", files={"file": ("t.tgz", tar_of(trace))})
    assert sent.status_code == 303, sent.text
    where = sent.headers["location"]
    proposed = Elements(client.get(where).text).values()
    ranks = int(proposed["num_nodes"]) * int(proposed["gpus_per_node"])
    assert (8 + int(proposed["redundant_experts"])) % ranks == 0, "the trace has 8 experts"
    placement = solved(client, where.rpartition("/")[2], proposed)
    result = client.get(placement, params={"engine": "sglang"})
    table = result.text.partition('id="comparison"')[2].partition("</table>")[0]
    assert re.findall(r'<th scope="row">(\w+)</th>', table) == ["linear", "eplb", "auto"]
    links = [str(a["href"]) for tag, a in Elements(result.text).found if tag == "a"]
    for link in links:
        assert client.get(link).status_code == 200 if link.startswith("/") else link.startswith(("#", "?")), link
    assert any(link.endswith("/report") for link in links)
    file = client.get(f"/v1{placement}?format=sglang").headers["content-disposition"].partition('"')[2].strip('"')
    command = re.search(r'<pre id="command"[^>]*>(.*?)</pre>', result.text)
    assert command is not None
    assert command[1].startswith(f"--init-expert-location {file} --ep-size {ranks} ")


def test_the_example_is_one_trace(client: httpx.Client) -> None:
    """However often it is asked for: the same bytes, hence the same trace."""
    places = {client.post("/example").headers["location"] for _ in range(2)}
    assert len(places) == 1
    assert "8 MoE layers of 32 experts, top-4" in client.get(places.pop()).text


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"num_nodes": "x"}, "Nodes: &#39;x&#39; is not allowed"),
        ({"num_nodes": ""}, "Nodes is empty"),
        ({"gpus_per_node": "3"}, "use redundant experts 4"),
        ({"holdout": "2"}, "holdout"),
        ({"balance_weight": "nan"}, "Price of imbalance"),
        ({"solver": "<b>"}, "&lt;b&gt;"),
    ],
)
def test_a_mistake_is_explained_where_the_form_is(
    client: httpx.Client, trace_id: str, wrong: dict[str, str], said: str
) -> None:
    """What was wrong, on the form, which keeps what was filled in."""
    answer = client.post(f"/traces/{trace_id}/solve", data=CLUSTER | {"seed": "77"} | wrong)
    assert answer.status_code == 422
    alert = answer.text.partition('role="alert"')[2].partition("</div>")[0]
    assert said in alert, alert
    assert Elements(answer.text).values()["seed"] == "77"


def test_a_file_that_is_no_trace_is_explained(client: httpx.Client) -> None:
    """On the page where it was chosen."""
    answer = client.post("/traces", files={"file": ("t.tgz", b"no archive")})
    assert answer.status_code == 422
    assert 'role="alert"' in answer.text
    assert "cannot be unpacked" in answer.text


@pytest.mark.parametrize("path", ["/placements/nothing", "/jobs/nothing", "/traces/nothing", "/compare?id=a"])
def test_what_is_not_there_is_said_on_a_page(client: httpx.Client, path: str) -> None:
    """People see no JSON."""
    answer = client.get(path)
    assert answer.status_code in (404, 422)
    assert answer.headers["content-type"].startswith("text/html")
    assert 'role="alert"' in answer.text


def test_the_map_on_the_page_is_that_of_the_file(client: httpx.Client, first: str) -> None:
    """Every layer: the ranks hold the experts that the placement file gives them."""
    document = client.get(f"/v1{first}").json()
    slots = document["cluster"]["slots_per_gpu"]
    for position, layer in enumerate(document["model"]["layer_ids"]):
        section = (
            client.get(first, params={"layer": layer}).text.partition('id="experts"')[2].partition("</section>")[0]
        )
        rows = re.findall(r'<th scope="row">(\d+)</th><td>[\d.]+</td><td class="held">(.*?)</td>', section)
        shown = {int(rank): sorted(map(int, re.findall(r'<b class="h\d">(\d+)', cells))) for rank, cells in rows}
        held = np.array(document["physical_to_logical"][position]).reshape(-1, slots)
        assert shown == {rank: sorted(row.tolist()) for rank, row in enumerate(held)}


def test_the_figures_by_layer_have_the_means_of_the_evaluation(client: httpx.Client, first: str) -> None:
    """The tables behind the charts say what the placement file says, to the digits that are shown."""
    text = client.get(first).text
    evaluation = client.get(f"/v1{first}").json()["evaluation"]["held_out"]
    for caption, key in (("sends per token to other nodes", None), ("rank imbalance (max / mean)", "rank_imbalance")):
        table = text.partition(f"<caption>{caption}</caption>")[2].partition("</table>")[0]
        names = re.findall(r"</svg> (\w+)</th>", table)
        rows = [re.findall(r"<td>([\d.]+)</td>", row) for row in table.split("<tr>")[2:]]
        for name, values in zip(names, np.array(rows, dtype=float).T, strict=True):
            summary = evaluation[name]
            mean = summary["sends_per_token"] if key is None else summary[key]["mean"]
            assert values.mean() == pytest.approx(mean, abs=0.01)


def test_two_placements_side_by_side(client: httpx.Client, first: str, second: str, trace_id: str) -> None:
    """A comparison has both, says that homes change what is measured, and leads to the migration between them."""
    ids = [place.rpartition("/")[2] for place in (first, second)]
    text = client.get("/compare", params={"id": ids}).text
    assert all(f'href="/placements/{one}"' in text for one in ids)
    assert "different requests" in text
    table = text.partition("<table")[2].partition("</table>")[0]
    assert table.count('class="part word"') == 2, "each stands in a group of its own"
    assert "<figure" not in text, "there is no chart of figures that do not compare"
    moves = f"/placements/{ids[0]}/moves?to={ids[1]}"
    assert moves in text
    plan = client.get(f"/v1/placements/{ids[0]}/diff", params={"to": ids[1]}).json()
    tiles = re.findall(r'<dd class="value">([\d,]+)</dd>', client.get(moves).text)
    assert int(tiles[0].replace(",", "")) == plan["moves"]
    assert f'value="{ids[1]}"' in client.get(first).text.partition('id="moves"')[2], "it may be chosen for a migration"


def test_a_placement_in_use_is_improved_by_few_moves(client: httpx.Client, first: str, trace_id: str) -> None:
    """The form that its page leads to keeps it, and the answer differs by no more slots than were allowed."""
    asked = next(link for link in re.findall(r'href="([^"]+)"', client.get(first).text) if "current=" in link)
    values = Elements(client.get(asked.replace("&amp;", "&")).text).values()
    assert values["current"] == first.rpartition("/")[2]
    changed = solved(client, trace_id, values | {"max_moves": "2", "balance_weight": "0", "seed": "1"})
    plan = client.get(f"/v1{first}/diff", params={"to": changed.rpartition("/")[2]}).json()
    assert plan["moves"] <= 2


def test_groups_are_shown_where_requests_have_homes(client: httpx.Client, first: str, second: str) -> None:
    """Requests of every node as in the grouping; without homes the page says how to get them."""
    groups = client.get(f"/v1{second}/grouping").json()["groups"]
    section = client.get(second).text.partition('id="groups"')[2].partition("</section>")[0]
    table = section.partition("The group of every node")[2].partition("</table>")[0]
    shown = re.findall(r'<th scope="row">(\d+)</th><td>(\d+)</td>', table)
    assert [(int(node), int(requests)) for node, requests in shown] == [
        (one["node"], one["requests"]) for one in groups
    ]
    assert "change and solve again" in client.get(first).text.partition('id="groups"')[2]


def test_the_front_is_filled_by_one_button(client: httpx.Client, first: str, trace_id: str) -> None:
    """Other prices of imbalance are solved as jobs, whose placements become points beside this one."""
    sent = client.post(f"{first}/front")
    assert sent.status_code == 303
    end = time.monotonic() + 180
    while "under way" in (text := client.get(first).text):
        assert time.monotonic() < end
        time.sleep(0.2)
    front = text.partition('id="front"')[2].partition("</section>")[0]
    rows = re.findall(r"<tr.*?</tr>", front.partition("<tbody>")[2], re.DOTALL)
    assert len(rows) == 2 + 7, "linear, eplb, this placement and six more"
    values = [[float(value) for value in re.findall(r"<td>([\d.]+)</td>", row)[:2]] for row in rows]
    for row, (sends, imbalance) in zip(rows, values, strict=True):
        beaten = any(a < sends - 0.01 and b < imbalance - 0.01 for a, b in values)
        assert not (beaten and '<td class="word">best' in row)


def test_pages_fetch_nothing_from_elsewhere_and_label_every_field(
    client: httpx.Client, trace_id: str, first: str
) -> None:
    """They work without a network, and for screen readers; nothing that the security headers forbid is on them."""
    for path in ("/", "/docs", "/login", f"/traces/{trace_id}", first, "/jobs/nothing"):
        found = Elements(client.get(path).text).found
        fetched = [str(a.get("src") or "") for _, a in found] + [str(a.get("href")) for t, a in found if t == "link"]
        assert not [address for address in fetched if address.startswith(("http", "//"))]
        assert not [a for _, a in found if any(name.startswith("on") or name == "style" for name in a)]
        assert {"html", "main", "nav", "h1"} <= {tag for tag, _ in found}
        labels = {a.get("for") for tag, a in found if tag == "label"}
        for _, field in [one for one in found if one[0] in ("input", "select")]:
            assert field.get("id") in labels or field.get("aria-label") or field.get("type") == "hidden", field


def test_files_of_the_page_are_kept_by_browsers_and_no_others_are_served(client: httpx.Client) -> None:
    """Named by their content, so that an update is seen; charts need none: they are on the page."""
    addresses = re.findall(r'(?:href|src)="(/static/[^"]+)"', client.get("/").text)
    assert len(addresses) >= 3
    for address in addresses:
        answer = client.get(address)
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"]
    for path in (
        "/static/vendor/chart.umd.min.js",
        "/static/../render.py",
        "/static/%2e%2e/render.py",
        "/static/home.html.j2",
    ):
        assert client.get(path).status_code == 404


def test_the_page_asks_for_a_token_where_there_are_some(
    tmp_path: Path, make_server: Callable[..., Server], run_cli: Any
) -> None:
    """A browser is led to /login; the cookie it gets lets it in until it logs out, but no form of another site."""
    token = run_cli("token", "create", "me", "--data", tmp_path / "data").stdout.strip()
    server = make_server(tmp_path / "data")
    with server.client() as browser:
        refused = browser.get("/", headers=HTML)
        assert (refused.status_code, refused.headers["location"]) == (303, "/login")
        wrong = browser.post("/login", data={"token": "plc_wrong"})
        assert wrong.status_code == 401 and "paste it whole" in wrong.text, "what to do, in words of a form"
        entered = browser.post("/login", data={"token": token})
        assert entered.status_code == 303
        cookie = entered.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert browser.get("/", headers=HTML).status_code == 200
        assert browser.post("/jobs/x/cancel", headers={"Origin": "https://evil.example"}).status_code == 403
        home = browser.get("/").text
        assert 'action="/logout"' in home and '<span class="note">me</span>' in home, "whose token it is"
        assert browser.post("/logout", headers={"Origin": "https://evil.example"}).status_code == 403
        gone = browser.post("/logout")
        assert (gone.status_code, gone.headers["location"]) == (303, "/login")
        assert browser.get("/", headers=HTML).headers["location"] == "/login"
    with server.client(token) as script:
        assert 'action="/logout"' not in script.get("/").text, "a program has nothing to log out of"
    server.kill()
