"""A Hugging Face checkpoint on disk: one safetensors file, or an index and its shards."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from placement.errors import InputError
from placement.runtime.checkpoint.safetensors_file import SafetensorsFile, open_safetensors
from placement.support.atomic_files import plain_name
from placement.support.text_files import parse_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
KEPT_SUFFIXES = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".py", ".md")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """`files` in the order of their names; `others` are the names of its small files: configuration, tokenizer."""

    folder: Path
    files: tuple[SafetensorsFile, ...]
    others: tuple[str, ...]

    def fingerprint(self) -> str:
        """Changes with any header, size or time of change: what was begun is continued with the same files only."""
        state = hashlib.sha256()
        for file in self.files:
            stat = file.path.stat()
            state.update(f"{file.path.name} {stat.st_size} {stat.st_mtime_ns} ".encode())
            state.update(hashlib.sha256(file.header.text).digest())
        return f"sha256:{state.hexdigest()}"


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Read all headers of a folder, or of the folder of a `.safetensors` file. Raises InputError."""
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    if path.is_file():
        names = [path.name]
    elif (folder / INDEX).is_file():
        names = _shards(folder / INDEX)
    elif (folder / SINGLE).is_file():
        names = [SINGLE]
    else:
        raise InputError(f"{path} has neither {SINGLE} nor {INDEX}; give the folder of a Hugging Face checkpoint")
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise InputError(f"{folder} has no {', '.join(absent[:4])}, which its index names; fetch all of its files")
    files = tuple(open_safetensors(folder / name) for name in names)
    known: set[str] = set()
    for file in files:
        twice = known.intersection(tensor.name for tensor in file.tensors)
        if twice:
            raise InputError(f"{file.path} has tensor {min(twice)} of another file again; remove one of the files")
        known.update(tensor.name for tensor in file.tensors)
    others = sorted(one.name for one in folder.iterdir() if one.is_file() and one.suffix in KEPT_SUFFIXES)
    return Checkpoint(folder=folder, files=files, others=tuple(others))


def _shards(index: Path) -> list[str]:
    try:
        names = sorted(set(map(plain_name, parse_json(index.read_bytes())["weight_map"].values())))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index} has no readable weight_map ({error}); fetch it again") from None
    if not names:
        raise InputError(f"{index} names no files; fetch it again")
    return names
