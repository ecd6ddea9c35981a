"""The page in a real browser: headless Chromium on a real server, by mouse, by keyboard, without script."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe_api = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")

from tests_service import Server, answered, tar_of  # noqa: E402

GOLDEN = Path(__file__).parents[1] / "golden" / "readers"
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=f"there is no Chromium: none of {', '.join(NAMES)}")
PATIENCE_MS = 120_000
NAME = "browser/decode"
COUNT_CLICKS = """addEventListener("click", (event) => {
  if (event.isTrusted) sessionStorage.clicks = Number(sessionStorage.clicks ?? 0) + 1;
}, true);"""
KEEP_STATES = """addEventListener("DOMContentLoaded", () => {
  const state = document.getElementById("state");
  const keep = () => { sessionStorage.states = `${sessionStorage.states ?? ""}|${state.textContent}`; };
  if (state) new MutationObserver(keep).observe(state, { childList: true });
});"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        as_root = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=as_root)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Any, server: Server) -> Iterator[Callable[..., Any]]:
    """A page of a new visitor; at the end no script has failed and nothing was asked of anyone else."""
    contexts: list[Any] = []
    wrong: list[str] = []

    def new(path: str = "/", *scripts: str, width: int = 1280, **options: Any) -> Any:
        context = chromium.new_context(base_url=server.url, viewport={"width": width, "height": 900}, **options)
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        for script in scripts:
            context.add_init_script(script)
        page = context.new_page()
        page.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda sent: wrong.append(sent.url) if not sent.url.startswith(allowed) else None)
        page.goto(path)
        return page

    allowed = (server.url, "data:", "blob:")
    yield new
    for context in contexts:
        context.close()
    assert not wrong


@pytest.fixture(scope="module")
def placement(chromium: Any, server: Server) -> str:
    """The address of the example's placement, as `test_five_clicks` makes it."""
    page = chromium.new_page(base_url=server.url)
    page.set_default_timeout(PATIENCE_MS)
    page.goto("/")
    page.get_by_role("button", name="Try the example").click()
    page.get_by_role("button", name="Solve", exact=True).click()
    page.wait_for_url("**/placements/*")
    address = str(page.url)
    page.close()
    return address.removeprefix(server.url)


@pytest.fixture(scope="module")
def other(placement: str, client: httpx.Client) -> str:
    """The id of another placement of the same trace on the same cluster."""
    rows = client.get("/v1/placements").json()
    row = next(one["summary"] for one in rows if placement.endswith(one["id"]))
    trace = next(one["id"] for one in client.get("/v1/traces").json() if one["name"] == row["model"])
    cluster = {"num_nodes": row["num_nodes"], "gpus_per_node": row["gpus_per_node"]}
    body = {"traces": [trace], "cluster": cluster, "options": {"solver": "linear", "bound": "none"}}
    answer = answered(client, "/v1/placements", body)
    assert answer.status_code == 200, answer.text
    made = answer.headers["content-location"].rpartition("/")[2]
    client.post(f"/v1/names/{NAME}", json={"placement": made}).raise_for_status()
    client.put(f"/v1/names/{NAME}@production", json={"version": 1}).raise_for_status()
    return made


def test_five_clicks_from_the_service_to_a_placement(visit: Callable[..., Any]) -> None:
    """A new user opens the address and presses what offers itself; the progress is seen while it is solved."""
    page = visit("/", COUNT_CLICKS, KEEP_STATES)
    page.get_by_role("button", name="Try the example").click()
    page.get_by_label("Seed", exact=True).evaluate(
        "field => { field.value = '4' }"
    )  # a job of its own, whatever ran before
    page.get_by_role("button", name="Solve", exact=True).click()
    page.wait_for_url("**/placements/*")
    expect_figures(page)
    assert int(page.evaluate("sessionStorage.clicks")) <= 5
    states = page.evaluate("sessionStorage.states")
    assert re.search(r"(Counting tokens|Solving layers|Measuring maps): [\d,]+ of [\d,]+", states), states


def expect_figures(page: Any) -> None:
    """What a placement's page shows first, and its charts: lines of three maps in each, in colours of their own."""
    assert page.get_by_role("heading", level=1).inner_text() == "Example: synthetic MoE"
    assert re.search(r"\d", page.locator(".tiles .value").first.inner_text())
    charts = page.locator("figure > svg:has(.line)")
    assert charts.count() == 3
    inks = "svg => [...svg.querySelectorAll('.line')].map(line => getComputedStyle(line).stroke)"
    assert [len(set(charts.nth(number).evaluate(inks))) for number in range(3)] == [3, 3, 1]


def test_by_keyboard_alone(visit: Callable[..., Any]) -> None:
    """Tab and Enter lead from the first page to a placement, and what has the focus is always seen."""
    page = visit("/")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    press(page, "Try the example")
    page.wait_for_url("**/traces/*")
    press(page, "Solve")
    page.wait_for_url("**/placements/*")
    press(page, "Show how to start it")
    page.locator("#started h3").wait_for()
    press(page, "Open the report")
    page.wait_for_url("**/report")


def press(page: Any, name: str) -> None:
    """Tab until the element with this text has the focus, then Enter."""
    seen = "e => { const s = getComputedStyle(e); return s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) > 0 }"
    for _ in range(150):
        page.keyboard.press("Tab")
        focus = page.evaluate_handle("document.activeElement")
        if focus.evaluate("e => e.tagName") in ("A", "BUTTON", "SUMMARY", "SELECT"):
            assert focus.evaluate(seen), focus.evaluate("e => e.outerHTML")
        if focus.evaluate("e => e.textContent.trim()") == name:
            page.keyboard.press("Enter")
            return
    raise AssertionError(f"{name} cannot be reached")


def test_without_script(visit: Callable[..., Any], trace: Path, tmp_path: Path) -> None:
    """Forms alone: upload, solve, the progress renewed by the page itself, charts and the layers' maps, the command."""
    file = tmp_path / "tiny.tgz"
    file.write_bytes(tar_of(trace))
    page = visit("/", java_script_enabled=False)
    page.get_by_label("File", exact=True).set_input_files(file)
    page.get_by_role("button", name="Upload").click()
    page.wait_for_url("**/traces/*")
    page.get_by_role("button", name="Solve", exact=True).click()
    page.wait_for_url("**/placements/*")
    assert page.locator("figure > svg:has(.line)").count() == 3
    page.get_by_label("Layer", exact=True).select_option(index=1)
    page.get_by_role("button", name="Show", exact=True).click()
    assert page.locator("#experts h2").inner_text().startswith("Experts by rank, layer ")
    assert "layer=" in page.url
    page.get_by_label("Engine", exact=True).select_option("vllm")
    page.get_by_role("button", name="Show how to start it").click()
    assert "--enable-eplb" in page.locator("#command").inner_text()


def test_a_job_is_cancelled(visit: Callable[..., Any]) -> None:
    """The button stops it, and the page offers to change the form, which keeps what was asked."""
    page = visit("/")
    page.get_by_role("button", name="Try the example").click()
    page.get_by_text("More options").click()
    page.get_by_label("Proof", exact=True).select_option("tight")
    page.get_by_label("Redundant experts", exact=True).fill("16")
    page.get_by_role("button", name="Solve", exact=True).click()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("heading", name="The job was cancelled").wait_for()
    page.get_by_role("link", name="Change and try again").click()
    assert page.get_by_label("Redundant experts", exact=True).input_value() == "16"
    assert page.get_by_label("Proof", exact=True).input_value() == "tight"


def test_a_layer_an_engine_and_the_command_without_leaving_the_page(visit: Callable[..., Any], placement: str) -> None:
    """With script the map of a layer and the start command appear where they belong; the command is copied."""
    page = visit(placement, permissions=["clipboard-read", "clipboard-write"])
    page.evaluate("window.same = true")
    page.get_by_label("Layer", exact=True).select_option("5")
    page.get_by_role("heading", name="Experts by rank, layer 5").wait_for()
    assert page.evaluate("document.activeElement.id") == "layer"
    layer = page.locator("figure .column").nth(7)
    assert re.fullmatch(r"layer 7: linear [\d.]+, eplb [\d.]+, auto [\d.]+", layer.locator("title").text_content())
    layer.click()
    page.get_by_role("heading", name="Experts by rank, layer 7").wait_for()
    page.get_by_label("Engine", exact=True).select_option("sglang")
    page.get_by_role("button", name="Show how to start it").click()
    page.get_by_role("button", name="Copy").click()
    page.get_by_text("Copied.").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == page.locator("#command").inner_text()
    assert copied.startswith("--init-expert-location placement-")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download the file").click()
    assert download.value.suggested_filename in copied
    assert page.evaluate("window.same"), "the page was left"


def test_a_mark_leads_to_its_placement(visit: Callable[..., Any], placement: str, other: str) -> None:
    """The points of sends against imbalance are placements: a click on one opens its page."""
    page = visit(f"/compare?id={placement.rpartition('/')[2]}&id={other}")
    page.locator(f"figure [data-link='/placements/{other}']").click()
    page.wait_for_url(f"**/placements/{other}")


def test_a_trace_is_sent_with_progress_and_a_folder_as_an_archive(visit: Callable[..., Any], trace: Path) -> None:
    """A dropped folder becomes a tar in the browser that the service reads as a trace; what is none is refused.

    A README in the folder is left out, and the trace's page says so.
    """
    page = visit("/")
    files = [[path.name, list(path.read_bytes())] for path in sorted(trace.iterdir())]
    page.evaluate(
        """(files) => {
          const made = files.map(([name, bytes]) => [name, new File([new Uint8Array(bytes)], name)]);
          made.push(["README.md", new File(["about it"], "README.md")]);
          send(tarOf(made), "trace.tar");
        }""",
        files,
    )
    page.wait_for_url("**/traces/*")
    assert "2 MoE layers of 8 experts" in page.locator(".setting").first.inner_text()
    page.get_by_text("left out 1 file that holds no traffic: README.md").wait_for()
    page.goto("/")
    page.evaluate("send(new Blob(['x']), 'notes.txt')")
    assert "no archive" in page.get_by_role("alert").inner_text()


def test_a_recording_is_dropped_with_what_it_does_not_say(visit: Callable[..., Any]) -> None:
    """The file is sent with the fields that are filled in, and the trace is that of the recording."""
    page = visit("/")
    page.get_by_text("What the file does not say").click()
    page.get_by_label("Recorded by").select_option("vllm")
    page.get_by_label("Name of the model").fill("dropped-model")
    recording = GOLDEN / "vllm" / "responses" / "responses.jsonl"
    page.get_by_label("File", exact=True).set_input_files(recording)
    page.get_by_role("button", name="Upload").click()
    page.wait_for_url("**/traces/*")
    assert page.get_by_role("heading", level=1).inner_text() == "dropped-model"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessible_in_light_and_dark(
    visit: Callable[..., Any], placement: str, other: str, trace_id: str, scheme: str
) -> None:
    """axe finds no fault on any page, and the colours are those that the user prefers."""
    page = visit("/", color_scheme=scheme)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground)[:3])) > 384) == (scheme == "light")
    for path in pages_of(placement, other, trace_id):
        page.goto(path)
        found = axe_api.Axe().run(page).response["violations"]
        assert not found, [(one["id"], [node["html"][:200] for node in one["nodes"][:3]]) for one in found]


def pages_of(placement: str, other: str, trace: str) -> list[str]:
    """Every page that stays."""
    compared = f"/compare?id={placement.rpartition('/')[2]}&id={other}"
    shown = [f"{placement}?engine=sglang", f"{placement}/moves?to={other}", compared]
    return ["/", f"/traces/{trace}", *shown, "/names", f"/names/{NAME}", "/docs", "/login"]


def test_nothing_is_wider_than_a_telephone(
    visit: Callable[..., Any], placement: str, other: str, trace_id: str
) -> None:
    """At 390 pixels only tables scroll sideways, in their own frames."""
    page = visit("/", width=390)
    for path in pages_of(placement, other, trace_id):
        page.goto(path)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path
