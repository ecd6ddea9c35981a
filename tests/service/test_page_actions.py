"""What is changed on the page, without script: recordings sent, placements published, aliases moved, things deleted."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest
from placement_api.jobs.turns import waiting_before
from placement_api.pages.marks import change_mark, two_digits
from placement_api.pages.start import engine_of
from placement_api.service import open_store
from placement_api.settings import Settings
from placement_api.store.tables import QUEUED, RUNNING, JobRow
from tests_service import tar_of, wait_until

from placement.exporters import EXPORTERS
from placement.readers import READERS

GOLDEN = Path(__file__).parents[1] / "golden" / "readers"
QUICK = {"num_nodes": "2", "gpus_per_node": "1", "redundant_experts": "0", "solver": "linear", "bound": "none"}


def solved(client: httpx.Client, trace: str, **form: str) -> str:
    """The page of a placement, without a search."""
    sent = client.post(f"/traces/{trace}/solve", data=QUICK | form)
    assert sent.status_code == 303, sent.text
    wait_until(lambda: client.get(sent.headers["location"]).status_code == 303)
    return str(client.get(sent.headers["location"]).headers["location"])


def words(text: str) -> str:
    """Without tags."""
    return " ".join(re.sub(r"<[^>]+>", " ", text).split())


@pytest.mark.parametrize(
    ("value", "reference", "kind", "said"),
    [(1.2, 1.5, "better", "−20% better"), (3.0, 2.0, "worse", "+50% worse"), (1.0, 1.00001, "same", "as good")],
)
def test_better_and_worse_are_said_and_not_only_coloured(value: float, reference: float, kind: str, said: str) -> None:
    assert change_mark(value, reference) == f'<span class="{kind}">{said}</span>'


def test_changes_have_two_digits_and_unknown_ones_none() -> None:
    shares = {-0.2238: "−22%", 0.0344: "+3.4%", -0.0996: "−10%", 2.127: "+213%", 0.0012: "+0.12%"}
    assert {share: two_digits(share) for share in shares} == shares
    assert [change_mark(None, 1.0), change_mark(1.0, None), change_mark(1.0, 0.0)] == ["–"] * 3


def test_engines_that_recorded_are_known_by_their_readers() -> None:
    """Each proposal is an exporter that there is; formats of no engine propose none."""
    found = {reader: engine_of([None, reader]) for reader in READERS}
    assert found["vllm"] == "vllm-plugin" and found["sglang"] == found["sglang-responses"] == "sglang"
    assert found["parquet"] is None and found["arrays"] is None
    assert {one for one in found.values() if one is not None} <= set(EXPORTERS)
    assert engine_of(["vllm-ascend", "sglang"]) == "vllm-ascend", "what was solved for comes before what recorded"


def test_a_recording_is_taken_and_its_engine_proposed(client: httpx.Client) -> None:
    """As over REST, and what it came from is what the placement's page offers first: file and start command."""
    content = (GOLDEN / "vllm" / "responses" / "responses.jsonl").read_bytes()
    form = {"from": "vllm", "experts": "6", "model": "tiny-vllm", "top_k": ""}
    sent = client.post("/traces", files={"file": ("responses.jsonl", content)}, data=form)
    where = sent.headers["location"] if sent.status_code == 303 else f"/traces/{trace_of(sent.text)}"
    assert "tiny-vllm" in client.get(where).text
    text = client.get(solved(client, where.rpartition("/")[2], holdout="0")).text
    use = text.partition('id="use"')[2].partition("</section>")[0]
    assert text.index('id="use"') < text.index('id="comparison"'), "it is at the top"
    assert "<option selected>vllm-plugin</option>" in use
    assert "which the trace came from" in use and "Download the file" in use


def trace_of(page: str) -> str:
    found = re.search(r'action="/traces/(\w+)/solve"', page)
    assert found is not None, page
    return found[1]


@pytest.mark.parametrize(
    ("form", "said"),
    [({"experts": "many"}, "Experts of a layer: &#39;many&#39;"), ({"from": "tea"}, "tea"), ({"top_k": "0"}, "top-k")],
)
def test_what_is_wrong_about_a_recording_is_named_as_on_the_page(
    client: httpx.Client, form: dict[str, str], said: str
) -> None:
    content = (GOLDEN / "vllm" / "responses" / "responses.jsonl").read_bytes()
    answer = client.post("/traces", files={"file": ("responses.jsonl", content)}, data=form)
    assert answer.status_code == 422
    alert = answer.text.partition('role="alert"')[2].partition("</div>")[0]
    assert said in alert, alert


def test_a_placement_is_published_promoted_and_rolled_back(client: httpx.Client, trace_id: str) -> None:
    """The list, the versions, where the alias points and the history are what `/v1/names` says."""
    name, maps = "page/decode", [solved(client, trace_id, seed=seed) for seed in ("11", "12")]
    for number, placement in enumerate(maps, 1):
        sent = client.post(f"{placement}/publish", data={"name": name, "note": f"week {number}"})
        assert (sent.status_code, sent.headers["location"]) == (303, f"/names/{name}")
    known = client.get(f"/v1/names/{name}").json()
    versions = [one["version"] for one in known["versions"]]
    assert name in client.get("/names").text
    assert f"{name}, version 1" in words(client.get(maps[0]).text)
    for version in (versions[-1], versions[0]):
        move = {"alias": "production", "version": str(version), "note": "a day on staging"}
        assert client.post(f"/names/{name}/promote", data=move).status_code == 303
    text = words(client.get(f"/names/{name}").text)
    assert "a day on staging" in text and f"production promoted to version {versions[-1]}" in text
    assert f"placement pull {name}@production" in text
    if len(versions) > 1:
        back = client.post(f"/names/{name}@production/rollback", data={"expect": str(versions[0])})
        assert back.status_code == 303
        assert client.get(f"/v1/names/{name}@production").json()["version"] == versions[-1]
        late = client.post(f"/names/{name}@production/rollback", data={"expect": str(versions[0])})
        assert late.status_code == 409 and 'role="alert"' in late.text
    assert client.post(f"{maps[0]}/publish", data={"name": "two words"}).status_code == 422


def test_a_placement_a_job_and_a_trace_are_deleted(client: httpx.Client, trace: Path, tmp_path: Path) -> None:
    """Each from its own page, where the button is behind one more click."""
    other = tmp_path / "other"
    other.mkdir()
    for path in trace.iterdir():
        (other / path.name).write_bytes(path.read_bytes().replace(b'"tiny"', b'"else"'))
    sent = client.post("/v1/traces", files={"file": ("other.tgz", tar_of(other))})
    name = sent.json()["id"]
    placement = solved(client, name)
    job = placement.rpartition("/")[2]
    for page, action in ((placement, f"{placement}/delete"), (f"/traces/{name}", f"/traces/{name}/delete")):
        text = client.get(page).text
        assert f'action="{action}"' in text.partition('<details class="delete">')[2].partition("</details>")[0]
        assert client.post(action).status_code == 303
        assert client.get(page).status_code == 404
    assert client.post(f"/jobs/{job}/delete").status_code == 404


def test_the_place_in_the_queue(tmp_path: Path) -> None:
    """As jobs begin: by turn, then as they came; what runs is not counted."""
    database = open_store(Settings(data=tmp_path))
    rows = [("a", QUEUED, 2, 1.0), ("b", QUEUED, 1, 3.0), ("c", QUEUED, 1, 2.0), ("d", RUNNING, 1, 0.0)]
    with database.session() as session:
        for id, state, turn, created in rows:
            session.add(
                JobRow(
                    id=id, kind="solve", state=state, request={}, digest=id, turn=turn, created=created, attempts=0,
                    stage="", done=0, total=0, cancel=False, files={}, summary={},
                )
            )  # fmt: skip
    with database.reading() as session:
        places = {id: waiting_before(session, session.get_one(JobRow, id)) for id in "abc"}
    database.close()
    assert places == {"c": 0, "b": 1, "a": 2}
