"""Every defect of a file that an engine would take in silence is refused in words."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import yaml
from engine_files import GOLDEN, WRITERS, Rows, ascend, changed, npy, npz, read
from safetensors.numpy import save

from placement.errors import InputError, MapError
from placement.exporters import get_exporter, get_importer
from placement.exporters.deepseek_eplb import eplb_tensors
from placement.exporters.imports import imported
from placement.testing.exporters import small_placement

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
