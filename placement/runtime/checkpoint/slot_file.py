"""Files of tensors that are copied together from pieces of others, with the hash of what each slot gets."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from placement.core.placement import Placement, check_same_slots
from placement.errors import InputError
from placement.runtime.checkpoint.layouts import ExpertWeights, part_order
from placement.runtime.checkpoint.manifest import COMMON, rank_file_name
from placement.runtime.checkpoint.safetensors_file import SafetensorsFile, open_safetensors
from placement.support.atomic_files import open_atomic
from placement.support.tensor_file import make_header, with_length

ByteSpan = tuple[SafetensorsFile, int, int]
Key = tuple[str, int]
Hashes = dict[str, list[str]]
COMMON_KEY = "common"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A tensor to be written: its bytes are those of `spans`, one after another; span i counts for hash `keys[i]`,
    (group, index)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    item_bytes: int
    spans: tuple[ByteSpan, ...]
    keys: tuple[Key, ...]

    @property
    def num_bytes(self) -> int:
        return sum(end - begin for _, begin, end in self.spans)


def target_files(
    files: Sequence[SafetensorsFile], experts: ExpertWeights, placement: Placement
) -> dict[str, list[Target]]:
    """What goes to each file: all that is no placed expert to the common one, then a file for each rank."""
    check_same_slots(placement, "a checkpoint cut by map")
    layer_ids = placement.model.layer_ids
    held_GLS = placement.engine_LP().reshape(len(layer_ids), placement.num_ranks, -1).swapaxes(0, 1).tolist()
    placed = frozenset[str]().union(*(experts.names[layer] for layer in layer_ids))
    return {
        COMMON: _common_targets(files, placed),
        **{rank_file_name(rank): _rank_targets(experts, held, layer_ids) for rank, held in enumerate(held_GLS)},
    }


def write_targets(path: Path, targets: Sequence[Target], metadata: dict[str, str]) -> tuple[int, Hashes]:
    """Copy all spans, a few megabytes at a time; the file appears whole. Returns its bytes and hashes."""
    header = _header(targets, metadata)
    state = _Hashing(targets)
    with open_atomic(path) as file:
        file.write(with_length(header))
        for target in targets:
            for (source, begin, end), key in zip(target.spans, target.keys, strict=True):
                for chunk in source.chunks(begin, end):
                    file.write(chunk)
                    state.update(key, chunk)
        size = file.tell()
    return size, state.hashes()


def hash_targets(path: Path, targets: Sequence[Target], metadata: dict[str, str]) -> Hashes | None:
    """Hashes of a file that was written before; None if it is not there, cut off or of other tensors."""
    try:
        written = open_safetensors(path)
    except InputError:
        return None
    if written.header.text != _header(targets, metadata):
        return None
    state = _Hashing(targets)
    at = 0
    for target in targets:
        for (_, begin, end), key in zip(target.spans, target.keys, strict=True):
            for chunk in written.chunks(at, at + end - begin):
                state.update(key, chunk)
            at += end - begin
    return state.hashes()


class _Hashing:
    def __init__(self, targets: Iterable[Target]) -> None:
        self._states = {key: hashlib.sha256() for target in targets for key in target.keys}

    def update(self, key: Key, chunk: bytes) -> None:
        self._states[key].update(chunk)

    def hashes(self) -> Hashes:
        found: Hashes = {}
        for (group, _), state in sorted(self._states.items()):
            found.setdefault(group, []).append(state.hexdigest())
        return found


def _header(targets: Sequence[Target], metadata: dict[str, str]) -> bytes:
    entries = ((one.name, one.dtype, one.shape, one.num_bytes) for one in targets)
    return make_header(entries, {"format": "pt", **metadata})


def _ordered(targets: Iterable[Target]) -> list[Target]:
    return sorted(targets, key=lambda target: part_order(target.item_bytes, target.name))


def _rank_targets(experts: ExpertWeights, held_LS: Sequence[Sequence[int]], layer_ids: Sequence[int]) -> list[Target]:
    """The tensors of a rank that holds experts `held_LS[l][s]`; hashes by layer and slot."""
    return _ordered(
        Target(
            name=part.name,
            dtype=part.dtype,
            shape=(len(held), *part.shape),
            item_bytes=part.item_bytes,
            spans=tuple(part.spans[e] for e in held),
            keys=tuple((str(layer), s) for s in range(len(held))),
        )
        for layer, held in zip(layer_ids, held_LS, strict=True)
        for part in experts.layers[layer]
    )


def _common_targets(files: Iterable[SafetensorsFile], without: frozenset[str]) -> list[Target]:
    """All other tensors, one hash for all."""
    return _ordered(
        Target(
            name=tensor.name,
            dtype=tensor.dtype,
            shape=tensor.shape,
            item_bytes=tensor.item_bytes,
            spans=((file, tensor.begin, tensor.end),),
            keys=((COMMON_KEY, 0),),
        )
        for file in files
        for tensor in file.tensors
        if tensor.name not in without
    )
