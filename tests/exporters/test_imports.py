"""Files that engines load are read back, and every defect that an engine would take in silence is refused in words.

Files are written here as the engines define them, without the exporters.
"""

from __future__ import annotations

import copy
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from placement.core.model import Model
from placement.core.placement import Placement
from placement.documents.placement import load_placement
from placement.errors import InputError, MapError, OptionError
from placement.exporters import EXPORTERS, get_exporter, get_importer
from placement.exporters.base import ExportOptions, FileMap, Importer
from placement.exporters.deepseek_eplb import eplb_tensors
from placement.exporters.imports import imported
from placement.testing.exporters import by_rank, exported, small_placement

GOLDEN = [[0, 1, 2, 3, 4, 5, 0, 1], [5, 4, 3, 2, 1, 0, 5, 4]]
READABLE = [name for name in EXPORTERS if isinstance(get_exporter(name), Importer)]
Rows = list[list[Any]]


def ascend(rows: Rows) -> bytes:
    layers = []
    for index, row in enumerate(rows):
        held = [row[rank * 2 : rank * 2 + 2] for rank in range((len(row) + 1) // 2)]
        listed = [{"device_id": rank, "device_expert": experts} for rank, experts in enumerate(held)]
        layers.append({"layer_id": index, "device_count": len(held), "device_list": listed})
    return json.dumps({"moe_layer_count": len(rows), "layer_list": layers}).encode()


def tensorrt(rows: Rows) -> bytes:
    assignments = dict(enumerate(rows))
    return yaml.safe_dump(
        {"num_slots": len(rows[0]) if rows else 0, "initial_global_assignments": assignments}
    ).encode()


def eplb(rows: Rows) -> bytes:
    """The tables are those of the golden map wherever the rows are not."""
    log2phy = np.full((2, 6, 2), -1)
    for layer, row in enumerate(GOLDEN):
        for slot, expert in enumerate(row):
            log2phy[layer, expert, int(log2phy[layer, expert, 0] >= 0)] = slot
    logcnt = (log2phy >= 0).sum(axis=2)
    return save({"phy2log": np.array(rows), "log2phy": log2phy, "logcnt": logcnt})


def hygon(rows: Rows) -> bytes:
    slots = len(rows[0]) if rows else 0
    counts = {"num_moe_layers": len(rows), "num_physical_experts": slots, "num_redundant_experts": slots - 6}
    entry = {"num_logical_experts": 6, **counts, "physical_to_logical_map": rows}
    return json.dumps({"version": 2, "model_maps": {"Moe": entry}}).encode()


WRITERS: dict[str, Callable[[Rows], bytes]] = {
    "sglang": lambda rows: json.dumps({"physical_to_logical_map": rows}).encode(),
    "vllm": lambda rows: json.dumps(rows).encode(),
    "vllm-ascend": ascend,
    "vllm-hygon": hygon,
    "tensorrt-llm": tensorrt,
    "deepseek-eplb": eplb,
}


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz(arrays: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def read(name: str, content: bytes, **options: Any) -> Placement:
    importer = get_importer(name)
    told: dict[str, Any] = {"name": "golden", "top_k": 2, "num_nodes": 2, "gpus_per_node": 2, "num_experts": 6}
    return imported(importer.read(content, importer.suffixes[0]), **(told | options))


def changed(layer: int, slot: int, value: Any) -> Rows:
    rows: Rows = [list(row) for row in GOLDEN]
    rows[layer][slot] = value
    return rows


@pytest.mark.parametrize("name", WRITERS)
def test_the_golden_map_is_read(name: str) -> None:
    """The fixture that is used against the engines' own parsers."""
    placement = read(name, WRITERS[name](GOLDEN))
    assert placement.phy2log_LP.tolist() == GOLDEN
    assert (placement.num_nodes, placement.gpus_per_node, placement.slots_per_gpu) == (2, 2, 2)
    assert (placement.model.layer_ids, placement.model.num_experts) == ((0, 1), 6)


def test_the_golden_pattern_is_read() -> None:
    """omni-infer says which rank holds what, not in which order."""
    holds_GLE = np.zeros((4, 2, 6), dtype=np.int32)
    for layer, row in enumerate(GOLDEN):
        holds_GLE[np.arange(8) // 2, layer, row] = 1
    content = npy(holds_GLE)
    assert np.array_equal(by_rank(read("omni-infer", content)), by_rank(small_placement()))
    assert get_exporter("omni-infer").export(small_placement()).content == content


TWICE = [[0, 1, 2, 3, 4, 5, 0, 0], [5, 4, 3, 2, 1, 0, 5, 4]]


@pytest.mark.parametrize("name", WRITERS)
def test_an_expert_twice_on_a_gpu_is_read(name: str) -> None:
    """EPLB makes such maps and engines run them; where one breaks on them, the export refuses and says how to mend."""
    content = save(eplb_tensors(np.array(TWICE), 6)) if name == "deepseek-eplb" else WRITERS[name](TWICE)
    placement = read(name, content)
    assert placement.phy2log_LP.tolist() == TWICE
    assert placement.wasted_LP().sum() == 1
    for other in EXPORTERS:
        exporter = get_exporter(other)
        if other in ("vllm-ascend", "omni-infer"):
            with pytest.raises(MapError, match=r"layer 0: GPU 3 holds expert 0 more than once.*--from"):
                exporter.export(placement)
        elif isinstance(exporter, Importer):
            again = read(other, exporter.export(placement).content)
            assert np.array_equal(again.phy2log_LP, placement.phy2log_LP)


DEFECTS: dict[str, tuple[Rows, str]] = {
    "expert without a slot": (changed(0, 5, 4), "experts 5 have no slot|not those of phy2log"),
    "id beyond the last": (changed(1, 0, 6), r"id 6; ids from 0 to 5 are allowed"),
    "negative id": (changed(0, 3, -1), r"id -1; ids from 0 to 5 are allowed"),
    "id that is no whole number": (changed(0, 3, 3.5), "whole numbers"),
    "id that is a text": (changed(0, 3, "3"), "whole numbers"),
    "id that is true": (changed(0, 1, True), "whole numbers"),
    "huge id": (changed(0, 3, 2**40), "whole numbers|ids beyond"),
    "ragged": (
        [GOLDEN[0], GOLDEN[1][:-2]],
        r"differ in slots \(8 in layer 0; 6 in layer 1\)|all need as many|layer 1 has 6 slots",
    ),
    "too few slots": ([row[:6] for row in GOLDEN], "6 slots of layer 0|3 GPUs, not for|not those of phy2log"),
    "no layers": ([], "rows|layer_list"),
}


NOT_IN_A_TENSOR = ("ragged", "id that is a text", "id that is true", "no layers")


@pytest.mark.parametrize(
    ("name", "defect"),
    [
        (name, defect)
        for name in WRITERS
        for defect in DEFECTS
        if name != "deepseek-eplb" or defect not in NOT_IN_A_TENSOR
    ],
)
def test_defects_are_refused(name: str, defect: str) -> None:
    """Each in one line that says what is wrong; most engines would start with such a map."""
    rows, told = DEFECTS[defect]
    with pytest.raises(InputError, match=told) as refused:
        read(name, WRITERS[name](rows))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("sglang", {"physical_to_logical_map": GOLDEN, "made_by": "us"}, "made_by is not allowed"),
        ("sglang", {"logical_count": GOLDEN}, "has no map"),
        ("sglang", {"physical_to_logical_map": {"0": GOLDEN[0]}}, "list of rows"),
        ("sglang", {"physical_to_logical_map": GOLDEN[0]}, "list of rows"),
        ("vllm", {"map": GOLDEN}, "list of rows"),
        ("vllm-ascend", {"moe_layer_count": 3, "layer_list": [{}]}, "moe_layer_count is 3"),
        ("vllm-ascend", {"moe_layer_count": 0, "layer_list": []}, "moe_layer_count is 0"),
        (
            "tensorrt-llm",
            {"num_slots": 8, "initial_global_assignments": {0: GOLDEN[0]}, "ep_size": 4},
            "ep_size is not",
        ),
        ("tensorrt-llm", {"num_slots": 9, "initial_global_assignments": {0: GOLDEN[0]}}, "num_slots is 9"),
        ("tensorrt-llm", {"num_slots": 8, "initial_global_assignments": {"a": GOLDEN[0]}}, "numbers of layers"),
        ("tensorrt-llm", {"num_slots": 8, "initial_global_assignments": GOLDEN}, "numbers of layers"),
    ],
)
def test_wrong_structure_is_refused(name: str, content: Any, told: str) -> None:
    """Keys that an engine stops at, reads past or needs."""
    text = yaml.safe_dump(content) if name == "tensorrt-llm" else json.dumps(content)
    with pytest.raises(MapError, match=told):
        read(name, text.encode())


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (("layer_list", 1, "layer_id"), 0, "layer 1 of the list has layer_id 0"),
        (("layer_list", 1, "device_count"), 8, "device_count 8"),
        (("layer_list", 0, "device_list", 2, "device_id"), 3, r"device_id are \[0, 1, 3, 3\]"),
    ],
)
def test_vllm_ascend_numbers_that_disagree_with_positions(path: tuple[Any, ...], value: int, told: str) -> None:
    """The engine ignores the numbers: a file in another order would be another map than it says."""
    document = json.loads(ascend(GOLDEN))
    place = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(MapError, match=told):
        read("vllm-ascend", json.dumps(document).encode())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda holds: holds * 2, "0 to 2; 0 and 1 are allowed"),
        (lambda holds: holds[:, 0], "3 axes"),
        (lambda holds: holds.astype(float), "whole numbers"),
        (lambda holds: np.concatenate([holds[:3], holds[3:] * 0]), "rank 3 holds 0 experts of layer 0"),
    ],
    ids=["not 0 and 1", "two axes", "floats", "unequal ranks"],
)
def test_patterns_of_omni_infer_that_are_none(change: Callable[[Any], Any], told: str) -> None:
    holds = np.load(io.BytesIO(get_exporter("omni-infer").export(small_placement()).content))
    with pytest.raises(MapError, match=told):
        read("omni-infer", npy(change(holds)))


# layer 0 has 2 redundant experts, layers 1 and 2 have none: GPUs have 2 slots, then 1 less
UNEVEN = [[0, 1, 2, 3, 0, 2], [3, 2, 1, 0], [0, 1, 2, 3]]


def uneven_files() -> dict[str, bytes]:
    """MTP layers with fewer experts a device (vllm-ascend#8710); redundant experts in one layer only (omni-infer)."""
    held_LGS = [np.array(row).reshape(2, -1).tolist() for row in UNEVEN]
    layers = [
        {
            "layer_id": index,
            "device_count": 2,
            "device_list": [{"device_id": rank, "device_expert": held} for rank, held in enumerate(held_GS)],
        }
        for index, held_GS in enumerate(held_LGS)
    ]
    holds_GLE = np.zeros((2, 3, 4), dtype=np.int32)
    for layer, held_GS in enumerate(held_LGS):
        for rank, held in enumerate(held_GS):
            holds_GLE[rank, layer, held] = 1
    document = {"moe_layer_count": 3, "layer_list": layers}
    return {"vllm-ascend": json.dumps(document, separators=(",", ":")).encode() + b"\n", "omni-infer": npy(holds_GLE)}


@pytest.mark.parametrize("name", ["vllm-ascend", "omni-infer"])
def test_layers_may_differ_in_slots(name: str, tmp_path: Path) -> None:
    """Such a file is read, and written as it was; as a placement file too; other engines' files cannot say it."""
    content = uneven_files()[name]
    importer = get_importer(name)
    placement = imported(importer.read(content, importer.suffixes[0]), name="m", top_k=2, num_nodes=1)
    assert placement.slots_L.tolist() == [3, 2, 2]
    held = [[set(one) - {-1} for one in row] for row in placement.phy2log_LP.reshape(3, 2, 3).tolist()]
    assert held == [[set(one) for one in np.array(row).reshape(2, -1).tolist()] for row in UNEVEN]
    assert placement.copies_LE().tolist() == [[2, 1, 2, 1], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert not placement.wasted_LP().any()
    export = get_exporter(name).export(placement)
    assert export.content == content
    assert any("redundant experts: 2 in layer 0, 0 in layers 1 to 2" in hint for hint in export.hints)
    (tmp_path / "p.json").write_bytes(get_exporter("native").export(placement).content)
    assert np.array_equal(load_placement(tmp_path / "p.json")[0].phy2log_LP, placement.phy2log_LP)
    for other in set(EXPORTERS) - {"vllm-ascend", "omni-infer", "native"}:
        with pytest.raises(
            MapError, match=r"slots of a GPU differ from layer to layer \(3 in layer 0; 2 in layers 1 to 2"
        ):
            exported(get_exporter(other), placement)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ([0, 1, -1, 2, 3, 0], "slot 2 holds id -1"),  # rank 1 has a third slot
        ([0, -1, 1, 2, 3, -1], "slot 1 holds id -1"),  # not the last slot of rank 0
        ([0, 1, 2, 3, 0, -2], "slot 5 holds id -2"),
        ([-1] * 6, "experts 0, 1, 2, 3 have no slot"),
    ],
)
def test_only_the_last_slots_of_all_ranks_may_be_left_out(row: list[int], told: str) -> None:
    """An id below 0 elsewhere is a fault, in placement files too."""
    model = Model(name="m", layer_ids=(0,), num_experts=4, top_k=2)
    with pytest.raises(MapError, match=told):
        Placement(model=model, num_nodes=1, gpus_per_node=2, slots_per_gpu=3, phy2log_LP=np.array([row]))


@pytest.mark.parametrize("name", ["sglang", "vllm", "tensorrt-llm"])
def test_ids_below_0_are_no_missing_slots(name: str) -> None:
    """Engines take -1 for the last expert: a file whose ranks all end in -1 is refused, not read as fewer slots."""
    rows = [[0, 1, 5, 2, 3, 0, 4, 5, 1, 2, 3, 4], [0, 1, -1, 2, 3, -1, 4, 5, -1, 0, 2, -1]]
    with pytest.raises(MapError, match="layer 1: slot 2 holds id -1; ids from 0 to 5"):
        read(name, WRITERS[name](rows))


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value within a document, the document's own first."""
    yield above
    if isinstance(value, dict | list):
        for step in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[step], (*above, step))


def replaced(document: Any, path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> Any:
    """A copy of the document in which `change(container, step)` was made at the path."""
    whole = [copy.deepcopy(document)]
    place: Any = whole
    for step in (0, *path[:-1]):
        place = place[step]
    change(place if path else whole, path[-1] if path else 0)
    return whole[0] if whole else []


def set_to(value: Any) -> Callable[[Any, Any], None]:
    return lambda place, step: place.__setitem__(step, value)


def doubled(place: Any, step: Any) -> None:
    if isinstance(place, list):
        place.insert(step, place[step])


WRONG_VALUES = (True, False, None, 1.0, 0.5, "1", [], {}, [[]], [0], 2**40, -1)


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("name", [name for name in WRITERS if name != "deepseek-eplb"])
def test_every_place_of_a_file_is_checked(name: str, num_layers: int) -> None:
    """Whatever one value of a file becomes, it is refused in a line of words: wrong types (of which true and 1.0 equal
    numbers), ragged layers, ranks of different slots, nothing at all. Only a whole layer less or more makes a map.
    """
    text = WRITERS[name](GOLDEN[:num_layers])
    document = yaml.safe_load(text)
    taken = []
    for path in places(document):
        for change in (*map(set_to, WRONG_VALUES), lambda place, step: place.__delitem__(step), doubled):
            changed = replaced(document, path, change)
            same = json.dumps(changed, default=str) == json.dumps(document, default=str)
            content = yaml.safe_dump(changed) if name == "tensorrt-llm" else json.dumps(changed)
            try:
                placement = read(name, content.encode())
            except InputError as error:
                assert "\n" not in str(error), path
                continue
            if not same:
                taken.append(placement.phy2log_LP.tolist())
    for rows in taken:
        assert rows and all(row in GOLDEN for row in rows) and len(rows) != num_layers


@pytest.mark.parametrize("name", ["omni-infer", "deepseek-eplb"])
def test_arrays_of_any_other_form_are_refused(name: str) -> None:
    """Axes, types and rows that the format does not have, in each array of it, in each of its endings."""
    importer, exporter = get_importer(name), get_exporter(name)
    changes: tuple[Callable[[Any], Any], ...] = (
        *(lambda array, axis=axis: np.take(array, [], axis=axis) for axis in range(2)),
        lambda array: np.delete(array, 0, axis=0),
        lambda array: np.delete(array, 0, axis=-1),
        lambda array: array[0],
        lambda array: array[None],
        lambda array: array.astype(bool),
        lambda array: array.astype(np.float32),
        lambda array: array.astype("U3"),
        lambda array: array.astype(np.complex64),
        lambda array: array.astype(np.uint64) + 2**40,
    )
    for change in changes:
        if name == "omni-infer":
            tables = {"": np.load(io.BytesIO(exporter.export(small_placement()).content))}
        else:
            tables = dict(eplb_tensors(small_placement().phy2log_LP.astype(np.int64), 6))
        for key in tables:
            changed = {**tables, key: change(tables[key])}
            contents = {".npy": npy(changed[""])} if name == "omni-infer" else {".npz": npz(changed)}
            if name == "deepseek-eplb" and changed[key].dtype.kind not in "Uc":
                contents[".safetensors"] = save({one: np.ascontiguousarray(array) for one, array in changed.items()})
            for suffix, content in contents.items():
                with pytest.raises(InputError) as refused:
                    imported(importer.read(content, suffix), name="m", top_k=2, num_nodes=2, gpus_per_node=2)
                assert "\n" not in str(refused.value)


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_the_map_in_force_is_in_a_dump_of_the_recorder(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --enable-eplb no other file has the map that SGLang serves with; torch is not needed to read the dump."""
    torch = pytest.importorskip("torch")
    rows = torch.tensor(GOLDEN, dtype=getattr(torch, dtype))
    records = [{"forward_pass_id": 3, "rank": 0, "gatherer_key": "primary", "global_physical_count": rows * 7}]
    forms = {
        "per_pass": {"records": records, "last_physical_to_logical_map": rows},
        "no records yet": {"records": [], "last_physical_to_logical_map": rows},
        "--init-expert-location": {"physical_to_logical_map": rows},
        "made of a transposed tensor": {"physical_to_logical_map": rows.T.contiguous().T},
        "lists": {"physical_to_logical_map": GOLDEN},
    }
    contents = {}
    for what, document in forms.items():
        buffer = io.BytesIO()
        torch.save(document, buffer)
        contents[what] = buffer.getvalue()
    monkeypatch.setitem(sys.modules, "torch", None)
    for what, content in contents.items():
        file = get_importer("sglang").read(content, ".pt")
        assert file.hidden, what
        assert [row.tolist() for row in file.rows] == GOLDEN, what


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ({"rank": 0, "logical_count": np.ones((1, 2, 6))}, "has no map; give a file with physical_to_logical_map"),
        ({"records": [], "last_physical_to_logical_map": np.ones((2, 8))}, "last_physical_to_logical_map is float64"),
        ({"records": [], "last_physical_to_logical_map": None}, "list of rows"),
        ({"physical_to_logical_map": np.array(GOLDEN), "note": "mine"}, "note is not allowed"),
        ({"physical_to_logical_map": [GOLDEN[0], GOLDEN[1][:7]]}, r"differ in slots \(8 in layer 0; 7 in layer 1\)"),
        ([np.array(GOLDEN)], "holds a list; a dict of tensors"),
    ],
)
def test_torch_files_without_a_map_are_refused(document: Any, told: str) -> None:
    """In one line, whatever else they hold."""
    torch = pytest.importorskip("torch")

    def tensors(one: Any) -> Any:
        if isinstance(one, dict):
            return {key: tensors(value) for key, value in one.items()}
        return torch.from_numpy(one) if isinstance(one, np.ndarray) else one

    buffer = io.BytesIO()
    torch.save(tensors(document) if isinstance(document, dict) else [tensors(one) for one in document], buffer)
    with pytest.raises(MapError, match=told) as refused:
        get_importer("sglang").read(buffer.getvalue(), ".pt")
    assert "\n" not in str(refused.value)


def test_a_malicious_torch_file_is_refused(tmp_path: Path) -> None:
    """A zip of torch's kind whose pickle would make a file."""
    torch = pytest.importorskip("torch")
    from placement.testing.exporters import Bomb

    buffer = io.BytesIO()
    torch.save({"physical_to_logical_map": Bomb(tmp_path / "made")}, buffer)
    with pytest.raises(MapError, match="tensors alone"):
        get_importer("sglang").read(buffer.getvalue(), ".pt")
    assert not (tmp_path / "made").exists()


class TestLayers:
    FILE = FileMap(rows=[np.array(row) for row in (GOLDEN[0], GOLDEN[0], GOLDEN[1])], hidden=True)

    def told(self, file: FileMap, **options: Any) -> Placement:
        return imported(file, name="m", top_k=2, num_nodes=2, gpus_per_node=2, **options)

    def test_rows_of_dense_layers_are_left_out(self) -> None:
        """Of a file with a row for every hidden layer only the MoE layers count, and their number is kept."""
        placement = self.told(self.FILE, layer_ids=(1, 2))
        assert placement.phy2log_LP.tolist() == GOLDEN
        assert (placement.model.layer_ids, placement.model.num_hidden_layers) == ((1, 2), 3)

    def test_without_their_numbers_all_rows_count(self) -> None:
        assert self.told(self.FILE).model.layer_ids == (0, 1, 2)

    def test_rows_of_moe_layers_get_numbers(self) -> None:
        file = FileMap(rows=[np.array(row) for row in GOLDEN])
        placement = self.told(file, layer_ids=(3, 4), num_hidden_layers=5)
        assert (placement.model.layer_ids, placement.model.num_hidden_layers) == ((3, 4), 5)

    def test_one_row_for_all_layers(self) -> None:
        """As vLLM's pull request allows."""
        file = get_importer("vllm").read(json.dumps(GOLDEN[0]).encode(), ".json")
        assert self.told(file, layer_ids=(3, 4)).phy2log_LP.tolist() == [GOLDEN[0]] * 2
        with pytest.raises(OptionError, match="--moe-layers"):
            self.told(file)

    @pytest.mark.parametrize(
        ("options", "error", "told"),
        [
            ({"layer_ids": (1, 3)}, MapError, "no row for layer 3"),
            ({"num_hidden_layers": 4}, MapError, "3 rows; one for each of 4 hidden layers"),
            ({"gpus_per_node": None}, OptionError, "give --gpus-per-node"),
            ({"gpus_per_node": 3}, MapError, "cannot be shared evenly by 6 GPUs"),
            ({"gpus_per_node": 0}, OptionError, "must be at least 1"),
            ({"num_nodes": 0}, OptionError, "must be at least 1"),
            ({"num_experts": 7}, MapError, "experts 6 have no slot"),
            ({"top_k": 0}, MapError, "top_k=0"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, options: dict[str, Any], error: type[Exception], told: str) -> None:
        with pytest.raises(error, match=told):
            imported(self.FILE, **({"name": "m", "top_k": 2, "num_nodes": 2, "gpus_per_node": 2} | options))

    def test_what_the_file_says_is_not_overruled(self) -> None:
        """vLLM Ascend's file says how many devices there are, EPLB's tensors how many experts."""
        file = get_importer("vllm-ascend").read(ascend(GOLDEN), ".json")
        with pytest.raises(OptionError, match="for 4 GPUs, not for 2 x 1"):
            imported(file, name="m", top_k=2, num_nodes=2, gpus_per_node=1)
        assert imported(file, name="m", top_k=2, num_nodes=2).gpus_per_node == 2
        with pytest.raises(OptionError, match="not what the file says, 6"):
            read("deepseek-eplb", eplb(GOLDEN), num_experts=7)


@st.composite
def placements(draw: st.DrawFn) -> Placement:
    """Any shape, dense layers between and after; maps are trivial ones with experts and ranks renamed."""
    nodes, gpus, slots = draw(st.sampled_from([(1, 2, 3), (2, 1, 1), (2, 2, 2), (3, 2, 4), (2, 3, 5)]))
    num_slots = nodes * gpus * slots
    num_experts = draw(st.integers(slots, num_slots))
    layer_ids = tuple(sorted(draw(st.sets(st.integers(0, 9), min_size=1, max_size=4))))
    rows = []
    for _ in layer_ids:
        renamed_E = np.array(draw(st.permutations(range(num_experts))))
        rank_G = np.array(draw(st.permutations(range(nodes * gpus))))
        rows.append(renamed_E[(np.arange(num_slots) % num_experts).reshape(-1, slots)[rank_G].ravel()])
    hidden = draw(st.integers(layer_ids[-1] + 1, 12))
    model = Model(name="m", layer_ids=layer_ids, num_experts=num_experts, top_k=1, num_hidden_layers=hidden)
    return Placement(model=model, num_nodes=nodes, gpus_per_node=gpus, slots_per_gpu=slots, phy2log_LP=np.array(rows))


@settings(max_examples=30)
@given(placement=placements())
def test_any_map_comes_back(placement: Placement) -> None:
    """Through every format that holds a map: the same model and map, slot for slot, but for the order within a rank
    where the format does not tell it."""
    for name in READABLE:
        exporter, importer = get_exporter(name), get_importer(name)
        for suffix in exporter.suffixes:
            loaded = imported(
                importer.read(exporter.export(placement, ExportOptions(suffix=suffix)).content, suffix),
                name="m",
                top_k=1,
                num_nodes=placement.num_nodes,
                gpus_per_node=placement.gpus_per_node,
                num_experts=placement.model.num_experts,
                layer_ids=placement.model.layer_ids,
                num_hidden_layers=placement.model.num_hidden_layers,
            )
            assert loaded.model == placement.model, suffix
            if name == "omni-infer":
                assert np.array_equal(by_rank(loaded), by_rank(placement))
            else:
                assert np.array_equal(loaded.phy2log_LP, placement.phy2log_LP), suffix


@pytest.mark.parametrize(("experts", "gpus", "least"), [(6, 3, 0), (6, 5, 4), (5, 2, 3)])
def test_slots_that_gpus_cannot_share(experts: int, gpus: int, least: int) -> None:
    """The message names the least number of redundant experts that the GPUs can share."""
    file = FileMap(rows=[np.array([*range(experts), 0])], num_experts=experts)
    with pytest.raises(MapError, match=f"for {experts} experts, {least} redundant ones are the least that can be"):
        imported(file, name="x", top_k=1, num_nodes=2, gpus_per_node=gpus)


@pytest.mark.parametrize("name", READABLE)
def test_export_and_import_on_the_command_line(name: str, tmp_path: Path, run_cli: Callable[..., Any]) -> None:
    """The same map comes back; flags are beside the file and on the screen, with the file's path."""
    native, back = tmp_path / "p.json", tmp_path / "back.json"
    native.write_bytes(get_exporter("native").export(small_placement(layer_ids=(1, 3))).content)
    for suffix in get_exporter(name).suffixes:
        file = tmp_path / f"map{suffix}"
        result = run_cli("export", native, "--to", name, "-o", file, "--num-hidden-layers", 4)
        assert result.code == 0, result.stderr
        hints = Path(f"{file}.flags.txt").read_text().splitlines()
        assert hints and all(hint in result.stdout for hint in hints)
        assert str(file) in hints[0] or name in ("vllm", "vllm-plugin", "deepseek-eplb")
        result = run_cli(
            *("import", file, "--from", name, "--nodes", 2, "--gpus-per-node", 2, "--top-k", 2),
            *("--moe-layers", "1,3", "--name", "small", "-o", back),
        )
        assert result.code == 0, result.stderr
        assert "2 MoE layers (1, 3) of 6 experts, 2 redundant, on 2 nodes x 2 GPUs" in result.stdout
        loaded, _ = load_placement(back)
        assert np.array_equal(by_rank(loaded), by_rank(small_placement()))
        assert loaded.model.name == "small"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("export", "P", "--to", "sglang", "-o", "x.bin"), "--to sglang writes .json or .pt"),
        (("export", "P", "--to", "sglang", "-o", "x.json", "--load", "P"), "--load is not for --to sglang"),
        (("export", "P", "--to", "lmdeploy", "-o", "x.json"), "give these with --load TRACES"),
        (("export", "P", "--to", "tensorrt-llm", "-o", "x.yaml", "--mtp-layers", "1"), "give --num-hidden-layers"),
        (("export", "P", "--to", "sglang", "-o", "x.json", "--moe-layers", "3-9"), "names 7 layers; the map has 2"),
        (("import", "P", "--from", "native", "--nodes", "2", "--top-k", "2"), "choose one of sglang, vllm"),
        (("import", "P", "--from", "sglang", "--nodes", "2", "--top-k", "2"), "physical_to_logical_map is missing"),
        (("import", "x.yaml", "--from", "sglang", "--nodes", "2", "--top-k", "2"), "x.yaml ends otherwise"),
        (("import", "no.json", "--from", "sglang", "--nodes", "2", "--top-k", "2"), "cannot read no.json"),
    ],
)
def test_what_the_command_line_refuses(
    words: tuple[str, ...], told: str, tmp_path: Path, run_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 2, one line, and no file."""
    monkeypatch.chdir(tmp_path)
    Path("p.json").write_bytes(get_exporter("native").export(small_placement()).content)
    result = run_cli(*("p.json" if word == "P" else word for word in words))
    assert result.code == 2
    assert told in " ".join(result.stderr.split())
    assert [path.name for path in tmp_path.iterdir()] == ["p.json"]


def test_a_map_for_another_choice_of_copies_is_pointed_out(
    tmp_path: Path, run_cli: Callable[..., Any], write_trace: Any
) -> None:
    """Sends and balance that were promised hold for one way to choose copies; without copies there is no choice."""
    trace = write_trace(tmp_path / "t", num_layers=2, num_experts=8).folder
    for extra, choice, told in ((8, "sglang-static", False), (8, "min-nodes", True), (0, "min-nodes", False)):
        solved = ("--nodes", 2, "--gpus-per-node", 2, "--redundant-experts", extra, "--solver", "linear")
        result = run_cli("solve", trace, *solved, "--replica-choice", choice, "-o", tmp_path / "p.json")
        assert result.code == 0, result.stderr
        result = run_cli("export", tmp_path / "p.json", "--to", "sglang", "-o", tmp_path / "s.json")
        assert ("solved for --replica-choice min-nodes" in result.stdout) is told
        assert ("min-nodes" in (tmp_path / "s.json.flags.txt").read_text()) is told


def test_loads_come_from_a_trace_or_counts(tmp_path: Path, run_cli: Callable[..., Any], write_trace: Any) -> None:
    """LMDeploy is given what was counted, whichever way; of another model nothing is taken."""
    trace = write_trace(tmp_path / "t", num_layers=2, num_experts=6, top_k=2, layer_ids=[1, 3])
    native, file = tmp_path / "p.json", tmp_path / "s.json"
    native.write_bytes(get_exporter("native").export(small_placement(layer_ids=(1, 3))).content)
    counted_LE = np.stack([np.bincount(ids.ravel(), minlength=6) for ids in trace.ids_LTK])
    np.savez(tmp_path / "counts.npz", counts=counted_LE, layer_ids=np.array([1, 3]))
    for load in (tmp_path / "t", tmp_path / "counts.npz"):
        result = run_cli("export", native, "--to", "lmdeploy", "-o", file, "--load", load)
        assert result.code == 0, result.stderr
        rows = np.array(json.loads(file.read_text()))
        assert np.array_equal(rows[[1, 3]], counted_LE)
    write_trace(tmp_path / "other", num_layers=2, num_experts=8)
    result = run_cli("export", native, "--to", "lmdeploy", "-o", file, "--load", tmp_path / "other")
    assert result.code == 2
    assert "of another model" in result.stderr


def test_exported_needs_no_torch_but_for_its_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torch .pt files are refused with the way to mend it, and all others are written."""
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in ("sglang", "deepseek-eplb"):
        assert exported(get_exporter(name), small_placement()).content
        with pytest.raises(OptionError, match=r"expert-placement\[runtime\]"):
            get_exporter(name).export(small_placement(), ExportOptions(suffix=".pt"))
