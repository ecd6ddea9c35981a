"""A checkpoint cut by a map has the right bytes in every slot, and comes back as it was."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import EXPERTS, LAYERS, tensors_of, write_checkpoint, write_file
from safetensors import safe_open

from placement import Model, Placement, save_placement
from placement.core.migration import map_digest
from placement.documents.placement import PlacementFile
from placement.errors import InputError, MapError, OutputError
from placement.runtime.checkpoint import apply_map, read_manifest, restore_checkpoint, verify_applied
from placement.support.parallel import make_executor
from placement.support.progress import Progress

KINDS = ("olmoe", "mixtral", "deepseek-fp8", "gpt-oss", "mxfp4")


def make_map(*, layer_ids: tuple[int, ...] = LAYERS, num_experts: int = EXPERTS, seed: int = 0) -> Placement:
    """Two ranks of four slots: two experts have two copies."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in layer_ids:
        order = rng.permutation(num_experts)
        rows.append(np.concatenate([order, order[:2]]))
    model = Model(name="tiny", layer_ids=layer_ids, num_experts=num_experts, top_k=2)
    return Placement(
        model=model, num_nodes=2, gpus_per_node=1, slots_per_gpu=(num_experts + 2) // 2, phy2log_LP=np.stack(rows)
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def slots_of(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Every tensor of a file as the safetensors format has it: type, shape, bytes."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__")
    return {
        name: (entry["dtype"], entry["shape"], data[8 + size :][slice(*entry["data_offsets"])])
        for name, entry in header.items()
    }


def expert_bytes(layout: str, tensors: dict[str, Any], name: str, expert: int) -> bytes:
    """What the rank file's tensor `name` holds of an expert, by the checkpoint."""
    if layout in ("gpt-oss", "mxfp4"):
        data: bytes = tensors[name][2]
        size = len(data) // EXPERTS
        return data[expert * size : (expert + 1) * size]
    single: bytes = tensors[name.replace(".experts.", f".experts.{expert}.")][2]
    return single


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


class Stop(Exception):
    """An interruption."""


def interrupted(source: Path, out: Path, files: int) -> None:
    def stop(event: Progress) -> None:
        if event.done == files:
            raise Stop

    with pytest.raises(Stop):
        apply_map(source, make_map(), out, listener=stop)


@pytest.mark.parametrize("files", [0, 1, 2])
def test_an_interrupted_run_goes_on(files: int, tmp_path: Path) -> None:
    """Finished files are kept, the rest is written, what a killed process left half written is removed."""
    source, out = write_checkpoint(tmp_path / "in", "olmoe"), tmp_path / "out"
    interrupted(source, out, files)
    (out / ".rank-00001.safetensors.abc.part").write_bytes(b"half")
    with pytest.raises(InputError, match="not complete"):
        restore_checkpoint(out, tmp_path / "early")
    again = apply_map(source, make_map(), out)
    assert (again.written, again.kept) == (3 - files, files)
    apply_map(source, make_map(), tmp_path / "straight")
    assert contents(out) == contents(tmp_path / "straight")


def test_a_finished_file_that_was_damaged_is_written_again(tmp_path: Path) -> None:
    """One bit in one slot; the check names the slot, the next run mends that file alone."""
    source, out = write_checkpoint(tmp_path / "in", "olmoe"), tmp_path / "out"
    apply_map(source, make_map(), out)
    whole = contents(out)
    damaged = bytearray(whole["rank-00001.safetensors"])
    damaged[-1] ^= 1
    (out / "rank-00001.safetensors").write_bytes(damaged)
    with pytest.raises(InputError, match=r"rank-00001.safetensors is damaged \(layer 2, slot 3\)"):
        verify_applied(out)
    again = apply_map(source, make_map(), out)
    assert (again.written, again.kept) == (1, 2)
    assert contents(out) == whole
    verify_applied(out)


def test_a_killed_run_leaves_no_half_file(tmp_path: Path, run_python: Callable[..., Any]) -> None:
    """SIGKILL in the middle of a rank's file: under its name there is nothing, and the next run goes on."""
    source, out = write_checkpoint(tmp_path / "in", "olmoe"), tmp_path / "out"
    save_placement(tmp_path / "map.json", PlacementFile.of(make_map()).document())
    killed = run_python(
        """
import os, signal, sys
from placement.runtime.checkpoint import apply_map, safetensors_file
from placement.documents.placement import PlacementFile, load_placement
real, count = safetensors_file.SafetensorsFile.chunks, 0
def chunks(self, begin, end):
    global count
    count += 1
    if count == 20:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, begin, end)
safetensors_file.SafetensorsFile.chunks = chunks
apply_map(sys.argv[1], load_placement(sys.argv[2])[0], sys.argv[3])
""",
        source,
        tmp_path / "map.json",
        out,
    )
    assert killed.code == -9
    assert not list(out.glob("rank-*"))
    assert list(out.glob(".rank-*.part"))
    again = apply_map(source, make_map(), out)
    assert (again.written, again.kept) == (2, 1)
    assert not list(out.glob(".*"))


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    """Another map, another checkpoint, or files that are not ours."""
    source, out = write_checkpoint(tmp_path / "in", "olmoe"), tmp_path / "out"
    apply_map(source, make_map(), out)
    with pytest.raises(OutputError, match="files of another map"):
        apply_map(source, make_map(seed=1), out)
    other = write_checkpoint(tmp_path / "other", "olmoe", seed=1)
    with pytest.raises(OutputError, match="files of another checkpoint"):
        apply_map(other, make_map(), out)
    with pytest.raises(OutputError, match="is not empty"):
        apply_map(source, make_map(), other)
    with pytest.raises(OutputError, match="is not empty"):
        restore_checkpoint(out, other)


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


def test_memory_stays_small(tmp_path: Path, run_python: Callable[..., Any]) -> None:
    """A checkpoint of 96 MB with experts of 8 MB is cut and restored within 24 MB more than an idle process has."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "in"
    folder.mkdir()
    shapes = {"gate_up_proj": (EXPERTS, 1024, 4096), "down_proj": (EXPERTS, 2048, 1024)}
    noise = rng.bytes(2 * EXPERTS * 1024 * 4096)
    tensors = {
        f"model.layers.1.mlp.experts.{name}": ("BF16", shape, noise[: 2 * int(np.prod(shape))])
        for name, shape in shapes.items()
    }
    write_file(folder / "model.safetensors", tensors)
    save_placement(tmp_path / "map.json", PlacementFile.of(make_map(layer_ids=(1,))).document())
    done = run_python(
        """
import resource, sys
from placement.runtime.checkpoint import apply_map, restore_checkpoint
from placement.documents.placement import PlacementFile, load_placement
placement = load_placement(sys.argv[2])[0]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
apply_map(sys.argv[1], placement, sys.argv[3])
restore_checkpoint(sys.argv[3], sys.argv[4])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
""",
        folder,
        tmp_path / "map.json",
        tmp_path / "out",
        tmp_path / "back",
    )
    assert done.code == 0, done.stderr
    assert int(done.stdout) < 24 * 1024
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_the_command(tmp_path: Path, run_cli: Callable[..., Any]) -> None:
    """Both ways, and the two mistakes of options."""
    source, out, back = write_checkpoint(tmp_path / "in", "mixtral"), tmp_path / "out", tmp_path / "back"
    save_placement(tmp_path / "map.json", PlacementFile.of(make_map()).document())
    done = run_cli("apply", source, "--map", tmp_path / "map.json", "-o", out, "--quiet")
    assert done.code == 0, done.stderr
    assert "wrote 3 files" in done.stdout
    again = run_cli("apply", source, "--map", tmp_path / "map.json", "-o", out, "--json", "--quiet")
    assert json.loads(again.stdout)["map"] == map_digest(make_map())
    assert run_cli("apply", out, "--inverse", "-o", back, "--quiet").code == 0
    assert contents(back) == contents(source)
    for options in ((), ("--inverse", "--map", tmp_path / "map.json")):
        wrong = run_cli("apply", source, "-o", tmp_path / "new", *options)
        assert wrong.code == 2
        assert "give --map placement.json" in wrong.stderr


def test_torch_is_not_needed(tmp_path: Path, run_python: Callable[..., Any]) -> None:
    """Cutting is for machines without it."""
    source = write_checkpoint(tmp_path / "in", "gpt-oss")
    save_placement(tmp_path / "map.json", PlacementFile.of(make_map()).document())
    done = run_python(
        "import sys; sys.modules['torch'] = None\nfrom placement.cli import main; main()",
        "apply",
        source,
        "--map",
        tmp_path / "map.json",
        "-o",
        tmp_path / "out",
    )
    assert done.code == 0, done.stderr
    assert read_manifest(tmp_path / "out").complete
