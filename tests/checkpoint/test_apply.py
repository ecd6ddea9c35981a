"""Every slot of a rank's file has its expert, byte for byte, and what does not fit is refused."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
from applied import KINDS, contents, expert_bytes, make_map, slots_of
from checkpoints import LAYERS, tensors_of, write_checkpoint, write_file
from safetensors import safe_open

from placement.core.migration import map_digest
from placement.errors import InputError, MapError
from placement.runtime.checkpoint import apply_map, restore_checkpoint
from placement.support.parallel import make_executor


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("layout", KINDS)
def test_every_slot_has_its_expert_and_the_inverse_is_the_checkpoint(layout: str, shards: int, tmp_path: Path) -> None:
    """Slot order, replicas, types, hashes and the common tensors; then all files of the checkpoint byte for byte."""
    source, placement = write_checkpoint(tmp_path / "in", layout, shards=shards), make_map()
    tensors = tensors_of(layout, np.random.default_rng(0))
    applied = apply_map(source, placement, tmp_path / "out")
    assert applied.manifest.complete
    assert applied.manifest.map == map_digest(placement)
    experts = {name for name in tensors if ".experts." in name}
    common = slots_of(tmp_path / "out" / "common.safetensors")
    assert {name: (d, tuple(s), b) for name, (d, s, b) in common.items()} == {
        name: tensor for name, tensor in tensors.items() if name not in experts
    }
    for rank in range(2):
        file = tmp_path / "out" / f"rank-{rank:05d}.safetensors"
        found = slots_of(file)
        assert {re.sub(r"experts\.\d+", "experts", name) for name in experts} == set(found)
        for layer, row in zip(LAYERS, placement.phy2log_LP.tolist(), strict=True):
            for slot, expert in enumerate(row[rank * 4 : rank * 4 + 4]):
                mine = [name for name in found if f"layers.{layer}." in name]
                pieces = [expert_bytes(layout, tensors, name, expert) for name in mine]
                for name, piece in zip(mine, pieces, strict=True):
                    data = found[name][2]
                    assert data[slot * len(piece) : (slot + 1) * len(piece)] == piece
                hashed = applied.manifest.files[file.name].sha256[str(layer)][slot]
                assert hashed == hashlib.sha256(b"".join(pieces)).hexdigest()
        with safe_open(file, framework="numpy") as opened:  # the safetensors library reads it too
            assert set(opened.keys()) == set(found)
    restore_checkpoint(tmp_path / "out", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(source)


def test_the_answer_does_not_depend_on_the_workers(tmp_path: Path) -> None:
    """The same bytes in every file, the manifest too."""
    source = write_checkpoint(tmp_path / "in", "olmoe", shards=3)
    apply_map(source, make_map(), tmp_path / "one")
    with make_executor(4) as executor:
        apply_map(source, make_map(), tmp_path / "four", executor=executor)
        restore_checkpoint(tmp_path / "four", tmp_path / "back", executor=executor)
    assert contents(tmp_path / "one") == contents(tmp_path / "four")
    assert contents(tmp_path / "back") == contents(source)


def test_layouts_that_are_not_known_are_named(tmp_path: Path) -> None:
    """With what was found and what is known; never a guess."""
    rng = np.random.default_rng(0)
    for number, names in enumerate((["model.layers.0.mlp.experts.0.fc1.weight"], ["model.layers.0.mlp.fc.weight"], [])):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_file(folder / "model.safetensors", {name: raw_like(rng) for name in names})
        with pytest.raises(
            InputError, match=r"no known layout: it has .*; known are per-expert .*OLMoE.*w123.*GPT-OSS"
        ):
            apply_map(folder, make_map(), tmp_path / "out")
    # one tensor of another kind among those of a known layout
    folder = write_checkpoint(tmp_path / "mixed", "olmoe")
    tensors = tensors_of("olmoe", rng) | {"model.layers.1.mlp.experts.router_bias": raw_like(rng)}
    write_file(folder / "model.safetensors", tensors)
    with pytest.raises(InputError, match=r"it has model.layers.\*.mlp.experts.router_bias"):
        apply_map(folder, make_map(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def raw_like(rng: np.random.Generator) -> tuple[str, tuple[int, ...], bytes]:
    return "BF16", (2, 2), rng.bytes(8)


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        ("model.layers.1.mlp.experts.3.up_proj.weight", "up_proj.weight is missing for experts .3."),
        ("model.layers.1.mlp.experts.5.", "tensors of layer|the map is for 6 experts"),
        ("up_proj", "layer 1 has no up_proj|layer 2 has no up_proj"),
    ],
)
def test_an_expert_that_is_not_whole(drop: str, message: str, tmp_path: Path) -> None:
    """A shard that was not fetched must not become a file with a hole."""
    folder = write_checkpoint(tmp_path / "in", "olmoe")
    tensors = tensors_of("olmoe", np.random.default_rng(0))
    write_file(folder / "model.safetensors", {name: one for name, one in tensors.items() if drop not in name})
    with pytest.raises(InputError, match=message):
        apply_map(folder, make_map(), tmp_path / "out")


def test_maps_and_checkpoints_that_do_not_fit(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "in", "olmoe")
    with pytest.raises(MapError, match=r"the map places layers \[0\]"):
        apply_map(source, make_map(layer_ids=(0, 1)), tmp_path / "out")
    with pytest.raises(MapError, match=r"for 8 experts a layer and .* has 6 in layer 1"):
        apply_map(source, make_map(num_experts=8), tmp_path / "out")


def test_a_layer_that_the_map_does_not_place_stays_common(tmp_path: Path) -> None:
    """As DeepSeek-V3's layer for predicting more tokens, which is no layer of the map."""
    source = write_checkpoint(tmp_path / "in", "olmoe")
    applied = apply_map(source, make_map(layer_ids=(1,)), tmp_path / "out")
    assert applied.manifest.layers_left == [2]
    assert "model.layers.2.mlp.experts.0.up_proj.weight" in slots_of(tmp_path / "out" / "common.safetensors")
    restore_checkpoint(tmp_path / "out", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(source)


@pytest.mark.parametrize("damage", ["cut", "long", "header", "pointer"])
def test_damaged_files(damage: str, tmp_path: Path) -> None:
    """What a broken download leaves is an error before anything is written."""
    source = write_checkpoint(tmp_path / "in", "olmoe")
    file = source / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(
        {
            "cut": data[:-1],
            "long": data + b"0",
            "header": data[:8] + b"[" + data[9:],
            "pointer": b"version https://git-lfs.github.com/spec/v1\n",
        }[damage]
    )
    with pytest.raises(InputError, match="fetch it again"):
        apply_map(source, make_map(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
