"""What a folder of rank files says of itself: schema `expert-checkpoint/1`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field

from placement.documents.document import Document, DocumentPart
from placement.support.atomic_files import plain_name

SCHEMA: Final = "expert-checkpoint/1"
MANIFEST, MAP, COMMON, SOURCES = "manifest.json", "placement.json", "common.safetensors", "sources.json"


class FileEntry(DocumentPart):
    """A file of tensors: `sha256[layer][s]` is the hash of slot s's weights, its tensors one after another in the order
    of the file; `sha256["common"]` has one hash for all tensors that are no placed experts."""

    bytes: int
    sha256: dict[str, list[str]]


class CheckpointManifest(Document):
    """The file beside a cut checkpoint that says what was cut, by which map, and the hash of every slot."""

    SCHEMA = SCHEMA
    MEND = "give a folder that `placement apply` wrote, or run it again"

    schema_: Literal["expert-checkpoint/1"] = Field(alias="schema")
    complete: bool = Field(description="False while files are missing; the same command goes on")
    map: str = Field(description="map_digest of the placement")
    layout: str = Field(description="How the checkpoint names experts")
    layer_ids: list[int]
    layers_left: list[int] = Field(description="Layers with experts that the map does not place; they are in common")
    source: str = Field(description="Fingerprint of the checkpoint's files")
    others: list[Annotated[str, AfterValidator(plain_name)]] = Field(
        description="Small files of the checkpoint that lie beside this one"
    )
    files: dict[str, FileEntry] = Field(description="By name; those that are written so far")

    def content(self) -> bytes:
        """In ASCII, which keeps names of files that are not text."""
        return f"{json.dumps(self.model_dump(by_alias=True), indent=1)}\n".encode()


def metadata_of(map_digest: str) -> dict[str, str]:
    """What the header of every file says besides its tensors."""
    return {"schema": SCHEMA, "map": map_digest}


def rank_file_name(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


def read_manifest(folder: str | Path) -> CheckpointManifest:
    """The manifest of a folder that `apply_map` wrote.

    Raises:
        InputError: The folder has no manifest, or none that this version reads.
    """
    return CheckpointManifest.read(Path(folder) / MANIFEST)
