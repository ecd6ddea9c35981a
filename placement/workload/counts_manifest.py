"""`counts.json`, schema `expert-counts/1`: what a folder of counts has counted, and how."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from placement.core.model import Model
from placement.errors import InputError, TraceError
from placement.support.atomic_files import write_atomic

SCHEMA = "expert-counts/1"
MANIFEST = "counts.json"
MOST_PARTS = 999_999


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Source:
    """Rows `start:stop` of a shard that were counted; hashes in hex of their content and of the requests' ids.

    trace  name of the shard's folder, with as many of those above as tell the folders of the trace apart
    """

    trace: str
    shard: str
    start: int
    stop: int
    content: str
    requests: str


class Settings(BaseModel):
    """What counts must have in common to be added."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(ge=-(2**63), lt=2**63)
    holdout: float = Field(ge=0, lt=1)
    sample_tokens: int = Field(ge=1)
    profile_requests: int = Field(ge=1)


def _checked_part(part: tuple[int, int]) -> tuple[int, int]:
    if not 1 <= part[0] <= part[1] <= MOST_PARTS:
        raise ValueError(f"{part[0]}/{part[1]} is none; I/N with I from 1 to N is one, and N is at most {MOST_PARTS:,}")
    return part


class CountsManifest(BaseModel):
    """part: (i, n), the shards of part i of n."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_: str = Field(alias="schema")
    complete: bool
    model: Model
    settings: Settings
    part: Annotated[tuple[int, int], AfterValidator(_checked_part)]
    num_tokens: int
    sources: list[Source]


def make_manifest(
    model: Model, settings: Settings, part: tuple[int, int], sources: list[Source], *, complete: bool
) -> CountsManifest:
    return CountsManifest(
        schema=SCHEMA,
        complete=complete,
        model=model,
        settings=settings,
        part=part,
        num_tokens=sum(source.stop - source.start for source in sources),
        sources=sorted(sources),
    )


def write_counts_manifest(folder: Path, manifest: CountsManifest) -> None:
    document = {
        "schema": SCHEMA,
        "complete": manifest.complete,
        "model": asdict(manifest.model),
        "settings": manifest.settings.model_dump(),
        "part": manifest.part,
        "num_tokens": manifest.num_tokens,
        "sources": [asdict(source) for source in manifest.sources],
    }
    write_atomic(folder / MANIFEST, json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def read_counts_manifest(folder: Path) -> CountsManifest:
    """Raises TraceError."""
    path = folder / MANIFEST
    try:
        document = json.loads(path.read_bytes())
        schema = document.get("schema") if isinstance(document, dict) else None
        if schema != SCHEMA:
            raise TraceError(f"{path} has schema {schema!r}; {SCHEMA!r} is the one that this version reads")
        return CountsManifest.model_validate(document)
    except FileNotFoundError:
        raise TraceError(f"{folder} is no folder of counts: it has no {MANIFEST}") from None
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors()[:5]
        )
        raise TraceError(f"{path}: {faults}") from None
    except InputError as error:
        raise error if isinstance(error, TraceError) else TraceError(f"{path}: {error}") from None
    except OSError as error:
        raise TraceError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{path} is not JSON: {error}; remove the folder and count again") from None


def read_complete(folder: Path) -> CountsManifest:
    """The same of a folder that is complete."""
    manifest = read_counts_manifest(folder)
    if not manifest.complete:
        raise TraceError(f"{folder} is not complete; run the same `placement traces count` again: it goes on")
    return manifest
