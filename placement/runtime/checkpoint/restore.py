"""The inverse: the checkpoint as it was, from the files of the ranks."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from placement.core.migration import map_digest
from placement.documents.placement import load_placement
from placement.errors import InputError, OutputError
from placement.runtime.checkpoint.apply import check_map
from placement.runtime.checkpoint.layouts import find_experts
from placement.runtime.checkpoint.manifest import MAP, SOURCES, CheckpointManifest, metadata_of, read_manifest
from placement.runtime.checkpoint.safetensors_file import SafetensorsFile, open_safetensors
from placement.runtime.checkpoint.slot_file import Target, hash_targets, target_files
from placement.support.atomic_files import (
    check_folder,
    make_folder,
    open_atomic,
    plain_name,
    remove_parts,
    write_atomic,
)
from placement.support.parallel import run_tasks
from placement.support.progress import Listener, Progress, ignore
from placement.support.tensor_file import parse_header, with_length
from placement.support.text_files import parse_json


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    """A folder of `apply_map`: the headers of the files that it was made of, and what went to which of its own."""

    manifest: CheckpointManifest
    sources: tuple[SafetensorsFile, ...]
    files: dict[str, list[Target]]


def verify_applied(out: str | Path, *, only: str | None = None, executor: Executor | None = None) -> CheckpointManifest:
    """Compare every file of `apply_map`, or one by name, with the hashes of the manifest.

    Raises:
        InputError: A file differs from the manifest; the message names the file.
    """
    return _check(Path(out), executor, only).manifest


def restore_checkpoint(
    out: str | Path, checkpoint: str | Path, *, executor: Executor | None = None, listener: Listener = ignore
) -> list[Path]:
    """Write the checkpoint that the folder `out` was made of, byte for byte; returns its safetensors files.

    All files of `out` are checked first. `checkpoint` must be new or empty.

    Raises:
        InputError: A file of `out` differs from the manifest; the message names the file.
        OutputError: `checkpoint` is neither new nor empty, or cannot be written.
    """
    out, checkpoint = Path(out), Path(checkpoint)
    check_folder(checkpoint)
    if checkpoint.is_dir():
        remove_parts(checkpoint)
        if any(checkpoint.iterdir()):
            raise OutputError(f"{checkpoint} is not empty; give a new folder")
    written = _check(out, executor)
    make_folder(checkpoint)
    pieces = _pieces(out, written)
    listener(Progress(stage="apply", done=0, total=len(written.sources)))

    def one(source: SafetensorsFile) -> Path:
        path = checkpoint / source.path.name
        with open_atomic(path) as file:
            file.write(with_length(source.header.text))
            for _, (copy, begin, end) in sorted(pieces[source.path].items()):
                for chunk in copy.chunks(begin, end):
                    file.write(chunk)
        return path

    paths = run_tasks(one, written.sources, executor)
    for name in written.manifest.others:
        write_atomic(checkpoint / name, (out / name).read_bytes())
    listener(Progress(stage="apply", done=len(paths), total=len(paths)))
    return paths


def _pieces(out: Path, written: _Written) -> dict[Path, dict[int, tuple[SafetensorsFile, int, int]]]:
    """For each file of the checkpoint where its bytes are now: by the first byte of each piece, any one copy."""
    pieces: dict[Path, dict[int, tuple[SafetensorsFile, int, int]]] = {source.path: {} for source in written.sources}
    for name, targets in written.files.items():
        copy, at = open_safetensors(out / name), 0
        for target in targets:
            for source, begin, end in target.spans:
                if begin < end:
                    pieces[source.path][begin] = (copy, at, at + end - begin)
                at += end - begin
    return pieces


def _check(out: Path, executor: Executor | None, only: str | None = None) -> _Written:
    manifest = read_manifest(out)
    if not manifest.complete:
        raise InputError(f"{out} is not complete; run the same `placement apply` again, it goes on where it stopped")
    placement, _ = load_placement(out / MAP)
    if map_digest(placement) != manifest.map:
        raise InputError(f"{out / MAP} is not the map of the manifest ({manifest.map}); run `placement apply` again")
    sources = _sources(out / SOURCES)
    experts = find_experts(sources, out)
    check_map(experts, placement, out)
    files = target_files(sources, experts, placement)
    if only is not None and only not in files:
        raise InputError(f"{out} has no file {only}; it has {', '.join(list(files)[:4])} and so on")

    def check(name: str) -> None:
        hashes, promised = hash_targets(out / name, files[name], metadata_of(manifest.map)), manifest.files.get(name)
        if hashes is None or promised is None:
            raise InputError(
                f"{out / name} is missing, cut off or not what the manifest says; run `placement apply` again"
            )
        for group, wanted in promised.sha256.items():
            for index, (one, other) in enumerate(zip(wanted, hashes.get(group, []), strict=False)):
                if one != other:
                    where = f"layer {group}, slot {index}" if group.isdigit() else group
                    raise InputError(
                        f"{out / name} is damaged ({where}); run `placement apply` again, it mends the file"
                    )

    run_tasks(check, files if only is None else [only], executor)
    return _Written(manifest=manifest, sources=sources, files=files)


def _sources(path: Path) -> tuple[SafetensorsFile, ...]:
    """The headers of the checkpoint's files; their paths are names alone."""
    try:
        headers = {Path(plain_name(name)): text.encode() for name, text in parse_json(path.read_bytes()).items()}
        return tuple(SafetensorsFile(path=name, header=parse_header(header)) for name, header in headers.items())
    except (OSError, ValueError, AttributeError, TypeError):
        raise InputError(f"cannot read {path}; run `placement apply` again") from None
