"""What engines recorded may be uploaded as it is: it becomes what `placement traces convert` makes of it."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from placement_api.problems import Problem
from placement_api.reading import ReadAs, read
from placement_api.settings import Limits
from tests_service import Server, problem_of, tar_of

from placement.client import Client
from placement.readers import READERS
from placement.readers.base import ReadOptions
from placement.readers.convert import convert_below

GOLDEN = Path(__file__).parents[1] / "golden" / "readers"
CASES = [path.with_suffix("") for name in READERS for path in sorted((GOLDEN / name).glob("*.json"))]
NAMES = {"num_experts": "experts"}


def named(case: Path) -> str:
    return "/".join(case.parts[-2:])


def options_of(case: Path) -> ReadOptions:
    given = json.loads(case.with_suffix(".json").read_text())["options"]
    return ReadOptions(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})


def fields_of(options: ReadOptions) -> dict[str, str]:
    """Options as a form says them."""
    told = {NAMES.get(one.name, one.name): getattr(options, one.name) for one in fields(options)}
    return {
        name: ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        for name, value in told.items()
        if value is not None
    }


def contents(path: Path) -> dict[str, bytes]:
    """Of a trace or a file of counts, whose containers hold the time at which they were made."""
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {name: arrays[name].tobytes() for name in arrays.files}
    return {one.name: one.read_bytes() for one in path.iterdir()}


def test_the_client_sends_no_litter(
    client: httpx.Client, server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of the folder that an engine wrote to: a README and hidden files stay here, and the log says so."""
    case = GOLDEN / "routing-log" / "layer-major"
    folder = tmp_path / case.name
    shutil.copytree(case, folder)
    for name in ("README.md", "._routes.jsonl"):
        (folder / name).write_bytes(b"\0")
    with caplog.at_level("INFO", logger="placement"):
        same = {
            Client(server.url).upload(one, reader="routing-log", options=options_of(case)) for one in (case, folder)
        }
    assert len(same) == 1
    assert "left out 2 files that hold no traffic: ._routes.jsonl, README.md" in caplog.text


@pytest.mark.parametrize("case", CASES, ids=named)
def test_a_recording_becomes_what_the_command_line_makes_of_it(
    client: httpx.Client, server: Server, tmp_path: Path, case: Path
) -> None:
    """As an archive of its folder, and from the client as a path; both are one trace, and say which format it was."""
    if case.parent.name == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed: extra [parquet]")
    options = options_of(case)
    done = convert_below(case, tmp_path, reader=case.parent.name, options=options)
    sent = fields_of(options) | {"from": case.parent.name}
    answer = client.post("/v1/traces", files={"file": (f"{case.name}.tar.gz", tar_of(case))}, data=sent)
    assert answer.status_code == 201, answer.text
    told = answer.json()
    assert told["converted"] == {"reader": done.reader, "reason": done.reason, "notes": list(done.notes)}
    assert (told["num_layers"], told["num_experts"], told["top_k"]) == (
        done.model.num_layers,
        done.model.num_experts,
        done.model.top_k,
    )
    kept = server.data / "traces" / told["id"]
    assert contents(kept / "counts.npz" if done.output.suffix else kept) == contents(done.output)
    if done.output.suffix == "":  # a file of counts holds a time: another every second
        assert Client(server.url).upload(case, reader=case.parent.name, options=options) == told["id"]


def test_a_file_is_known_by_its_content(client: httpx.Client) -> None:
    """A lone file, without a word on its format; counts stay counts."""
    log = (GOLDEN / "routing-log" / "layer-major" / "routes.jsonl").read_bytes()
    told = client.post("/v1/traces", files={"file": ("../my log.jsonl", log)}).json()
    assert told["converted"]["reader"] == "routing-log"
    array = (GOLDEN / "vllm" / "arrays" / "a.npy").read_bytes()
    told = client.post("/v1/traces", files={"file": ("a.npy", array)}).json()
    assert (told["kind"], told["converted"]["reader"]) == ("trace", "vllm")
    counts = io.BytesIO()
    np.save(counts, np.full((4, 2, 8), 3, dtype=np.uint16))
    told = client.post("/v1/traces", files={"file": ("a.npy", counts.getvalue())}, data={"top_k": 1}).json()
    assert (told["kind"], told["converted"]) == ("counts", None)


def test_what_no_reader_takes_is_refused_in_their_words(client: httpx.Client, server: Server, trace: Path) -> None:
    """422, nothing kept, and no path of the server in what is said."""
    chat = (GOLDEN / "sglang-responses" / "chat" / "responses.json").read_bytes()
    for name, content, data, said in (
        ("x.jsonl", b'{"a": 1}\n', {}, "x.jsonl is of no known format"),
        ("x.jsonl", b'{"type": "route", "topk_ids": [[0', {}, "x.jsonl"),
        ("x.parquet", b"PAR1" + bytes(100), {}, "cannot read x.parquet: "),
        ("x.gguf", b"GGUF_exps.weight.counts" + bytes(50), {}, "x.gguf"),
        ("chat.json", chat, {}, "say which with top_k"),
        ("chat.json", chat, {"top_k": "two"}, "top_k"),
        ("chat.json", chat, {"from": "tea"}, "'tea' is unknown"),
        ("chat.json", chat, {"layers": "3"}, "layers"),
        ("chat.json", chat, {"layer_ids": "a-b"}, "a-b"),
        ("t.tgz", tar_of(trace), {"model": "m"}, "says all of itself"),
    ):
        answer = problem_of(client.post("/v1/traces", files={"file": (name, content)}, data=data), 422)
        assert said in answer["detail"] + answer["mend"]
        assert str(server.data) not in answer["detail"] + answer["mend"]
    assert not list((server.data / "traces").glob(".incoming-*"))


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"reading_bytes": 1 << 20}, "memory"),
        ({"reading_s": 0.01}, "not read in"),
        ({"unpacked_bytes": 10}, "more than 10 bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_reading_is_bounded(tmp_path: Path, limits: dict[str, Any], said: str) -> None:
    """In memory, time and what it writes, whatever a file makes a reader do."""
    np.savez(tmp_path / "x.npz", expert_ids=np.random.default_rng(0).integers(0, 99, (40_000, 8, 1)))
    (tmp_path / "work").mkdir()
    with pytest.raises(Problem) as caught:
        read(tmp_path / "x.npz", tmp_path / "work", ReadAs(), Limits(**limits))
    assert said in caught.value.body.detail
