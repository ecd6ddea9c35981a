"""Files that are no placement, or one with wrong values, are refused in a line; none is misread."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sound_placement import _load_or_refuse, sound_placement, validate

from placement import load_placement
from placement.documents.placement import PlacementFile
from placement.errors import MapError

BAD_FILES = {
    "nothing": b"",
    "not JSON": b"{",
    "not text": b"\xff\xfe\x00\x81",
    "a list": b"[]",
    "a number": b"3",
    "null": b"null",
    "a NaN": b"NaN",
    "deep": b"[" * 100_000,
    "another schema": b'{"schema": "expert-placement/2"}',
    "a trace": b'{"schema": "expert-trace/1"}',
    "only the schema": b'{"schema": "expert-placement/1"}',
    "a schema that is a list": b'{"schema": ["expert-placement/1"]}',
}


@pytest.mark.parametrize("content", BAD_FILES.values(), ids=BAD_FILES)
def test_not_a_placement(content: bytes, tmp_path: Path) -> None:
    """Any other file is refused in one line that names it."""
    path = tmp_path / "p.json"
    path.write_bytes(content)
    with pytest.raises(MapError) as caught:
        load_placement(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(MapError, match="No such file"):
        load_placement(tmp_path / "missing.json")
    with pytest.raises(MapError, match="directory"):
        load_placement(tmp_path)


def test_all_faults_of_the_map(tmp_path: Path) -> None:
    """The reader passes on every fault of the map, with the file's name."""
    document = PlacementFile.of(sound_placement()).document()
    document["physical_to_logical"] = [[0, 0, -1, 3, 4, 9, 1, 5], [5, 4, 3, 2, 1, 1, 5, 4]]
    (tmp_path / "p.json").write_text(json.dumps(document))
    with pytest.raises(MapError) as caught:
        load_placement(tmp_path / "p.json")
    assert len(caught.value.faults) == 4
    assert str(tmp_path / "p.json") in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"physical_to_logical": [[0, 1, 2], [0, 1]]},
        {"physical_to_logical": []},
        {"physical_to_logical": [[], []]},
        {"physical_to_logical": [[10**30] * 8] * 2},
        {"physical_to_logical": [[0.5] * 8] * 2},
        {"physical_to_logical": [["0"] * 8] * 2},
        {"physical_to_logical": [[True] * 8] * 2},
        {"cluster": {"num_nodes": 0, "gpus_per_node": 2, "slots_per_gpu": 2}},
        {"cluster": {"num_nodes": -2, "gpus_per_node": -2, "slots_per_gpu": 2}},
        {"cluster": {"num_nodes": 10**20, "gpus_per_node": 2, "slots_per_gpu": 2}},
        {"cluster": {"num_nodes": 65, "gpus_per_node": 10**9, "slots_per_gpu": 10**9}},
        {"cluster": {"num_nodes": 2, "gpus_per_node": 2, "slots_per_gpu": 2, "color": 1}},
        {"model": {"name": "m", "layer_ids": [0], "num_experts": 6, "top_k": 2}},
        {"model": {"name": "m", "layer_ids": [1, 0], "num_experts": 6, "top_k": 2}},
        {"model": {"name": "m", "layer_ids": [0, 1], "num_experts": 10**30, "top_k": 2}},
        {"model": {"name": "m", "layer_ids": [0, 1], "num_experts": 6, "top_k": 7}},
        {"unknown": 1},
        {"two\nlines": 1},
        {"cluster": {"num_nodes": 2, "gpus_per_node": 2, "slots_per_gpu": 2, "two\nlines": 1}},
        {"layers": 3},
        {"evaluation": {"replica_choice": "min-nodes"}},
    ],
    ids=str,
)
def test_wrong_values(change: dict[str, Any], tmp_path: Path) -> None:
    """Values of a wrong kind or size give one MapError line, never another exception."""
    (tmp_path / "p.json").write_text(json.dumps(PlacementFile.of(sound_placement()).document() | change))
    with pytest.raises(MapError) as caught:
        load_placement(tmp_path / "p.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("physical_to_logical", 0, 0), "0"),
        (("physical_to_logical", 0, 1), True),
        (("cluster", "num_nodes"), "2"),
        (("model", "layer_ids", 1), "7"),
        (("model", "name"), None),
    ],
    ids=str,
)
def test_kinds_are_not_guessed(place: tuple[Any, ...], value: Any, tmp_path: Path) -> None:
    """A number in quotes or a truth value is refused, though it could be read as the number that belongs there."""
    document = PlacementFile.of(sound_placement()).document()
    *parents, last = place
    spot = document
    for parent in parents:
        spot = spot[parent]
    spot[last] = value
    (tmp_path / "p.json").write_text(json.dumps(document))
    with pytest.raises(MapError, match=str(place[0])):
        load_placement(tmp_path / "p.json")
    with pytest.raises(jsonschema.ValidationError):
        validate(document)


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 1, 2**31, 2**63, 10**30])
    | st.floats()
    | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    places = [path] if path else []
    if isinstance(value, dict):
        for key, inner in value.items():
            places += _places(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value[:9]):
            places += _places(inner, (*path, index))
    return places


@settings(max_examples=400)
@given(data=st.data())
def test_mutated_documents(data: st.DataObject, full_document: dict[str, Any]) -> None:
    """A document with parts replaced, dropped or doubled is loaded or refused with MapError in one line."""
    document = copy.deepcopy(full_document)
    for _ in range(data.draw(st.integers(1, 3))):
        place = document
        *parents, last = data.draw(st.sampled_from(_places(document)))
        for parent in parents:
            place = place[parent]
        action = data.draw(st.sampled_from(["replace", "drop", "double"]))
        if action == "replace":
            place[last] = data.draw(ANYTHING)
        elif action == "drop":
            del place[last]
        elif isinstance(place, list):
            place.append(copy.deepcopy(place[last]))
        else:
            place[str(last) + "2"] = place[last]
        if not isinstance(document, dict) or not document:
            break
    _load_or_refuse(json.dumps(document).encode())


@settings(max_examples=200)
@given(data=st.data())
def test_mutated_bytes(data: st.DataObject, full_document: dict[str, Any]) -> None:
    """A file with bytes cut off or changed is loaded or refused with MapError in one line."""
    content = bytearray(PlacementFile.encode(full_document))
    content = content[: data.draw(st.integers(0, len(content)))]
    for _ in range(data.draw(st.integers(0, 3))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    _load_or_refuse(bytes(content))
