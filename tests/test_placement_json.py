"""The placement file: published schema, lossless round trip, and one clear error for anything that is not one."""

from __future__ import annotations

import copy
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import placement as package
from placement import Cluster, Model, Options, Placement, load_placement, open_trace, save_placement, solve
from placement import solution_document as to_document
from placement.documents.placement import PlacementFile
from placement.errors import InputError, MapError, OutputError

PUBLISHED = Path(package.__file__).parent / "documents" / "schemas" / "expert-placement-1.json"


def sound_placement(num_groups: int | None = None) -> Placement:
    return Placement(
        model=Model(name='tîny "m"\n', layer_ids=(3, 7), num_experts=6, top_k=2, num_groups=num_groups),
        num_nodes=2,
        gpus_per_node=2,
        slots_per_gpu=2,
        phy2log_LP=np.array([[0, 1, 2, 3, 4, 5, 0, 1], [5, 4, 3, 2, 1, 0, 5, 4]]),
    )


@pytest.fixture(scope="module")
def full_document(tmp_path_factory: pytest.TempPathFactory, write_trace: Any) -> dict[str, Any]:
    """A document with every part, as `solve` writes it."""
    trace = open_trace(write_trace(tmp_path_factory.mktemp("trace")).folder)
    cluster = Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=3)
    document = to_document(solve(trace, cluster, Options(work_limit=200), workers=1))
    return json.loads(json.dumps(document))  # tuples become the lists that a reader sees


def validate(document: Any) -> None:
    schema = PlacementFile.json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(document)


@pytest.mark.parametrize("num_groups", [None, 3])
def test_round_trip(tmp_path: Path, num_groups: int | None) -> None:
    """What is saved is what is loaded; saving that again gives the same bytes."""
    placement = sound_placement(num_groups)
    path = tmp_path / "placement.json"
    save_placement(path, PlacementFile.of(placement).document())
    loaded, file = load_placement(path)
    assert loaded.model == placement.model
    assert (loaded.num_nodes, loaded.gpus_per_node, loaded.slots_per_gpu) == (2, 2, 2)
    np.testing.assert_array_equal(loaded.phy2log_LP, placement.phy2log_LP)
    assert (file.evaluation, file.layers, file.provenance) == (None, None, None)
    assert PlacementFile.of(loaded).content() == path.read_bytes()
    assert [entry.name for entry in tmp_path.iterdir()] == ["placement.json"]


def test_full_round_trip(tmp_path: Path, full_document: dict[str, Any]) -> None:
    """The evaluation, the layers and the provenance come back as they were."""
    path = tmp_path / "placement.json"
    save_placement(path, full_document)
    assert json.loads(path.read_bytes()) == full_document
    _, file = load_placement(path)
    again = file.document()
    for part in ("evaluation", "layers", "provenance", "physical_to_logical", "cluster"):
        assert again[part] == full_document[part], part


@settings(max_examples=50)
@given(
    name=st.text(max_size=20),
    layer_ids=st.lists(st.integers(0, 100), min_size=1, max_size=3, unique=True).map(sorted),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    provenance=st.dictionaries(st.text(max_size=5), st.text(max_size=12), max_size=3),
    seed=st.integers(0, 2**32),
)
def test_round_trip_of_anything(
    name: str, layer_ids: list[int], shape: tuple[int, int, int], provenance: dict[str, str], seed: int
) -> None:
    """Whatever the names are (quotes, the writer's own marks, unpaired surrogates excluded), nothing is lost."""
    num_experts = shape[0] * shape[1] * shape[2]
    rng = np.random.default_rng(seed)
    placement = Placement(
        model=Model(name=name, layer_ids=tuple(layer_ids), num_experts=num_experts, top_k=1),
        num_nodes=shape[0],
        gpus_per_node=shape[1],
        slots_per_gpu=shape[2],
        phy2log_LP=np.stack([rng.permutation(num_experts) for _ in layer_ids]),
    )
    document = PlacementFile.of(placement, provenance=provenance).document()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "p.json")
        save_placement(path, document)
        assert json.loads(path.read_bytes()) == document
        loaded, file = load_placement(path)
    assert loaded.model == placement.model
    assert file.provenance is not None
    assert file.provenance.model_dump(exclude_unset=True) == provenance
    np.testing.assert_array_equal(loaded.phy2log_LP, placement.phy2log_LP)


def test_the_writers_own_mark_in_a_name(tmp_path: Path) -> None:
    """Text that looks like the place holder of the rows stays text."""
    document = PlacementFile.of(
        sound_placement(), provenance={"note": ["@rows@"], "other": '[\n  "@rows@"\n ]'}
    ).document()
    save_placement(tmp_path / "p.json", document)
    assert json.loads((tmp_path / "p.json").read_bytes()) == document


def test_documents_are_valid(full_document: dict[str, Any]) -> None:
    """What is written is valid by the JSON Schema, with and without the optional parts."""
    validate(full_document)
    validate(json.loads(PlacementFile.encode(full_document)))
    validate(PlacementFile.of(sound_placement()).document())
    validate(PlacementFile.of(sound_placement(3)).document())


@pytest.mark.parametrize(
    "path",
    [
        "schema",
        "model",
        "cluster",
        "physical_to_logical",
        "model.name",
        "model.layer_ids",
        "model.num_experts",
        "model.top_k",
        "cluster.num_nodes",
        "cluster.gpus_per_node",
        "cluster.slots_per_gpu",
        "evaluation.result",
        "evaluation.train.linear.node_sends_per_token",
        "evaluation.train.linear.rank_imbalance.max",
    ],
)
def test_schema_asks_for_every_part(full_document: dict[str, Any], path: str, tmp_path: Path) -> None:
    """A document that lacks a required key is refused by the JSON Schema and by the reader, which names the key."""
    document = copy.deepcopy(full_document)
    *parents, last = path.split(".")
    place = document
    for parent in parents:
        place = place[parent]
    del place[last]
    with pytest.raises(jsonschema.ValidationError):
        validate(document)
    (tmp_path / "p.json").write_text(json.dumps(document))
    with pytest.raises(MapError, match=last):
        load_placement(tmp_path / "p.json")


def test_published_schema() -> None:
    """The file that users point their editors at is the schema that the code checks by."""
    assert json.loads(PUBLISHED.read_text()) == PlacementFile.json_schema()


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


def _load_or_refuse(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "p.json")
        path.write_bytes(content)
        try:
            loaded, _ = load_placement(path)
        except MapError as error:
            assert "\n" not in str(error)
            assert str(path) in str(error)
        else:
            assert loaded.phy2log_LP.shape == (loaded.model.num_layers, loaded.num_slots)


class TestSaving:
    """A placement file is written whole or not at all."""

    def test_replaces(self, tmp_path: Path) -> None:
        path = tmp_path / "p.json"
        path.write_text("old")
        save_placement(path, PlacementFile.of(sound_placement()).document())
        load_placement(path)
        assert [entry.name for entry in tmp_path.iterdir()] == ["p.json"]

    def test_folder_is_missing(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match="No such file"):
            save_placement(tmp_path / "no" / "p.json", PlacementFile.of(sound_placement()).document())
        assert not list(tmp_path.iterdir())

    def test_output_is_a_folder(self, tmp_path: Path) -> None:
        (tmp_path / "p.json").mkdir()
        with pytest.raises(OutputError):
            save_placement(tmp_path / "p.json", PlacementFile.of(sound_placement()).document())
        assert [entry.name for entry in tmp_path.iterdir()] == ["p.json"]


def test_number_of_hidden_layers_is_kept(tmp_path: Path) -> None:
    """Known or not, it comes back; files that do not say it are as they were before there was such a key."""
    known = replace(sound_placement(), model=replace(sound_placement().model, num_hidden_layers=8))
    save_placement(tmp_path / "p.json", PlacementFile.of(known).document())
    assert load_placement(tmp_path / "p.json")[0].model.num_hidden_layers == 8
    assert "num_hidden_layers" not in PlacementFile.of(sound_placement()).document()["model"]


@pytest.mark.parametrize(("hidden", "main"), [(None, 2), (9, 2), (8, 2), (7, 1), (4, 1)])
def test_mtp_layers_come_after_the_others(hidden: int | None, main: int) -> None:
    """Of MoE layers 3 and 7, those at `num_hidden_layers` or above are for multi-token prediction."""
    assert replace(sound_placement().model, num_hidden_layers=hidden).num_main_layers == main


def test_a_model_without_main_layers_is_refused() -> None:
    with pytest.raises(InputError, match="num_hidden_layers=3 leaves out every MoE layer"):
        replace(sound_placement().model, num_hidden_layers=3)
