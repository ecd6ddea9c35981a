"""A checkpoint cut into one file for each rank, experts in the order of the map's slots."""

from __future__ import annotations

import json
import shutil
import threading
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from placement.core.migration import map_digest
from placement.core.placement import Placement
from placement.documents.placement import PlacementFile
from placement.errors import MapError, OutputError
from placement.runtime.checkpoint.layouts import ExpertWeights, find_experts
from placement.runtime.checkpoint.manifest import (
    COMMON,
    MANIFEST,
    MAP,
    SCHEMA,
    SOURCES,
    CheckpointManifest,
    FileEntry,
    metadata_of,
    read_manifest,
)
from placement.runtime.checkpoint.slot_file import Target, hash_targets, target_files, write_targets
from placement.runtime.checkpoint.source import Checkpoint, open_checkpoint
from placement.support.atomic_files import make_folder, remove_parts, write_atomic
from placement.support.parallel import run_tasks
from placement.support.progress import Listener, Progress, ignore


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What `apply_map` did: `kept` files were there already, `written` are new; `manifest` is that of the folder."""

    manifest: CheckpointManifest
    written: int
    kept: int

    @property
    def rank_bytes(self) -> list[int]:
        """Bytes of each rank's file, in rank order."""
        return [entry.bytes for name, entry in self.manifest.files.items() if name != COMMON]


def apply_map(
    checkpoint: str | Path,
    placement: Placement,
    out: str | Path,
    *,
    executor: Executor | None = None,
    listener: Listener = ignore,
) -> Applied:
    """Write the folder `out`: `rank-*.safetensors`, the other tensors, and a manifest with the hash of every slot.

    Numbers of any type are copied as bytes, a few megabytes at a time for each task of `executor`. Files appear whole;
    where `out` was begun with the same checkpoint and map, files that are finished are checked and kept.

    Args:
        checkpoint: Folder of a Hugging Face checkpoint in safetensors.
        placement: The map to cut by.
        out: Folder to write.
        executor: Writes files side by side; None: one after another.
        listener: Hears of each file that is done.

    Raises:
        InputError: The layout is not known, or a file is damaged.
        MapError: The map is for another model.
        OutputError: The folder cannot be written, or holds something else.
    """
    source, out = open_checkpoint(checkpoint), Path(out)
    experts = find_experts(source.files, source.folder)
    check_map(experts, placement, source.folder)
    manifest = _begin(source, experts, placement, out)
    files = target_files(source.files, experts, placement)
    _check_room(out, files)
    metadata = metadata_of(manifest.map)
    lock, done, kept = threading.Lock(), 0, 0

    def one(name: str) -> None:
        nonlocal done, kept
        old = manifest.files.get(name)
        keep = old is not None and hash_targets(out / name, files[name], metadata) == old.sha256
        if not keep:
            size, hashes = write_targets(out / name, files[name], metadata)
        with lock:
            done, kept = done + 1, kept + keep
            if not keep:
                manifest.files[name] = FileEntry(bytes=size, sha256=hashes)
                manifest.write(out / MANIFEST)
            listener(Progress(stage="apply", done=done, total=len(files)))

    listener(Progress(stage="apply", done=0, total=len(files)))
    run_tasks(one, files, executor)
    manifest.complete = True
    manifest.files = {name: manifest.files[name] for name in files}  # in the order of names, whichever rank wrote first
    manifest.write(out / MANIFEST)
    return Applied(manifest=manifest, written=len(files) - kept, kept=kept)


def check_map(experts: ExpertWeights, placement: Placement, folder: Path) -> None:
    """Raise MapError unless the checkpoint has the map's layers with as many experts each."""
    model = placement.model
    if missing := [layer for layer in model.layer_ids if layer not in experts.layers]:
        raise MapError(
            f"the map places layers {missing[:8]}, where {folder} has no experts; it has them in layers "
            f"{list(experts.layers)[:8]}; give the map of this model"
        )
    for layer in model.layer_ids:
        if experts.num_experts(layer) != model.num_experts:
            raise MapError(
                f"the map is for {model.num_experts} experts a layer and {folder} has {experts.num_experts(layer)} in "
                f"layer {layer}; give the map of this model"
            )


def _begin(source: Checkpoint, experts: ExpertWeights, placement: Placement, out: Path) -> CheckpointManifest:
    """The manifest of an `out` that was begun before, or that of a new one with all of its small files."""
    make_folder(out)
    remove_parts(out)
    wanted = CheckpointManifest(
        schema=SCHEMA,
        complete=False,
        map=map_digest(placement),
        layout=experts.layout,
        layer_ids=list(placement.model.layer_ids),
        layers_left=[layer for layer in experts.layers if layer not in placement.model.layer_ids],
        source=source.fingerprint(),
        others=[name for name in source.others if name not in (MANIFEST, MAP, SOURCES)],
        files={},
    )
    if (out / MANIFEST).exists():
        begun = read_manifest(out)
        for what, old, new in (("map", begun.map, wanted.map), ("checkpoint", begun.source, wanted.source)):
            if old != new:
                raise OutputError(f"{out} holds the files of another {what}; give a new folder, or remove it")
        begun.complete = False
        wanted = begun
    elif any(out.iterdir()):
        raise OutputError(f"{out} is not empty and has no {MANIFEST}; give a new folder")
    wanted.write(out / MANIFEST)  # first, so that whatever follows is known to be ours
    PlacementFile.of(placement).write(out / MAP)
    headers = {file.path.name: file.header.text.decode() for file in source.files}
    write_atomic(out / SOURCES, json.dumps(headers, ensure_ascii=False, indent=1))
    for name in wanted.others:
        write_atomic(out / name, (source.folder / name).read_bytes())
    return wanted


def _check_room(out: Path, files: dict[str, list[Target]]) -> None:
    missing = sum(one.num_bytes for name, targets in files.items() if not (out / name).exists() for one in targets)
    free = shutil.disk_usage(out).free
    if missing > free:
        raise OutputError(
            f"{out} needs {missing:,} more bytes and its disk has {free:,}; give a folder on a larger one"
        )
