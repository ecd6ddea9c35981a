"""The page, as a browser without script sees it: forms, links and tables of a real server."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
from tests_service import Server, tar_of

HTML = {"Accept": "text/html"}


class Elements(HTMLParser):
    """Names and attributes of all elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_from_the_page_to_a_placement(client: httpx.Client, trace: Path) -> None:
    """Upload and solve by the form, wait, read the table, open the report, download for an engine and start it."""
    home = client.get("/")
    fields = {name["name"] for tag, name in Elements(home.text).found if tag in ("input", "select")}
    assert {"file", "num_nodes", "gpus_per_node", "redundant_experts"} <= fields
    form = {"num_nodes": "2", "gpus_per_node": "2", "redundant_experts": "0"}
    sent = client.post("/place", data=form, files={"file": ("t.tgz", tar_of(trace))})
    assert sent.status_code == 303, sent.text
    end = time.monotonic() + 180
    while (shown := client.get(sent.headers["location"])).status_code == 200:
        assert "<progress" in shown.text
        assert time.monotonic() < end
        time.sleep(0.1)
    assert shown.status_code == 303
    where = shown.headers["location"]
    result = client.get(where, params={"engine": "sglang"})
    rows = re.findall(r'<th class="word">(\w+)</th><td>([\d.]+)</td>', result.text)
    assert [name for name, _ in rows] == ["linear", "eplb", "auto"]
    links = [str(a["href"]) for tag, a in Elements(result.text).found if tag == "a"]
    for link in links:
        assert client.get(link).status_code == 200, link
    assert any(link.endswith("/report") for link in links)
    assert "--init-expert-location" in result.text


def test_a_mistake_in_the_form_is_explained_on_the_page(client: httpx.Client) -> None:
    """What was wrong, where the form is."""
    form = {"num_nodes": "2", "gpus_per_node": "2", "redundant_experts": "0"}
    answer = client.post("/place", data=form, files={"file": ("t.tgz", b"no archive")})
    assert answer.status_code == 422
    assert 'role="alert"' in answer.text
    assert "cannot be unpacked" in answer.text


def test_pages_fetch_nothing_from_elsewhere_and_label_every_field(client: httpx.Client) -> None:
    """They work without a network, and for screen readers; nothing that the security headers forbid is on them."""
    for path in ("/", "/docs", "/login"):
        answer = client.get(path)
        assert answer.status_code == 200
        text = re.sub(r"<style>.*?</style>", "", answer.text, flags=re.DOTALL)
        found = Elements(text).found
        assert not [a for _, a in found if str(a.get("src") or "").startswith(("http", "//"))]
        assert not [a for _, a in found if any(name.startswith("on") or name == "style" for name in a)]
        assert '<html lang="en">' in text
        assert len(re.findall(r"<(?:input|select) ", text)) == len(re.findall(r"<label", text))


def test_the_page_asks_for_a_token_where_there_are_some(
    tmp_path: Path, make_server: Callable[..., Server], run_cli: Any
) -> None:
    """A browser is led to /login; the cookie it gets lets it in, but no form of another site."""
    token = run_cli("token", "create", "me", "--data", tmp_path / "data").stdout.strip()
    server = make_server(tmp_path / "data")
    with server.client() as browser:
        refused = browser.get("/", headers=HTML)
        assert (refused.status_code, refused.headers["location"]) == (303, "/login")
        assert browser.post("/login", data={"token": "plc_wrong"}).status_code == 401
        entered = browser.post("/login", data={"token": token})
        assert entered.status_code == 303
        cookie = entered.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert browser.get("/", headers=HTML).status_code == 200
        assert browser.post("/jobs/x/cancel", headers={"Origin": "https://evil.example"}).status_code == 403
    server.kill()
