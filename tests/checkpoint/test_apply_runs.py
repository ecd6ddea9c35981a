"""A run that was interrupted goes on, one that is killed leaves no half file, and memory stays small."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from applied import contents, make_map
from checkpoints import EXPERTS, write_checkpoint, write_file

from placement import save_placement
from placement.core.migration import map_digest
from placement.documents.placement import PlacementFile
from placement.errors import InputError, OutputError
from placement.runtime.checkpoint import apply_map, read_manifest, restore_checkpoint, verify_applied
from placement.support.progress import Progress


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
