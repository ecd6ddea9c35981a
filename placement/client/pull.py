"""A version of a name, fetched, checked and made the files that an engine loads: safe to run at every start."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from placement.client.names import Names, Reference, Version
from placement.client.pulled import CURRENT, FLAGS, GROUPING, MAP, PLACEMENT, PulledFile, current, replace
from placement.documents.placement import load_placement
from placement.errors import InputError, MapError, OutputError, PlacementError
from placement.exporters.base import ExportOptions
from placement.exporters.engine_layers import described
from placement.exporters.engines import exporter_for
from placement.support.atomic_files import write_atomic
from placement.support.http_service import AwayError


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """What a pull left in `DIR/current`.

    Attributes:
        told: Which version, and its files.
        new: The files were written now; else they were there.
        move: The last move of the alias; None: unknown, or a version was asked for by its number.
        kept_because: Why the copy that was there is used, whatever the service has; None: it is the same.
    """

    told: PulledFile
    new: bool
    move: int | None
    kept_because: str | None


def pull(
    names: Names,
    where: Reference,
    engine: str,
    folder: Path,
    *,
    num_hidden_layers: int | None = None,
    num_mtp_layers: int = 0,
    fresh: bool = False,
) -> Pulled:
    """Have the files of a version in `folder/current`, as an engine loads them.

    A copy that is there and whole is used where the service does not answer, fails, or sends a file of another digest,
    and where the disk is full; not where the service refuses the request, or the version is not for this engine.

    Args:
        names: Of the service.
        where: The version, by alias or number.
        engine: A name of `--for`.
        folder: Is made if absent.
        num_hidden_layers: Decoder layers of the model, if the map does not say.
        num_mtp_layers: MTP layers that the engine will use.
        fresh: Use no copy.

    Returns:
        What the folder has now.

    Raises:
        InputError: The service refuses, or there is no whole copy where one is needed.
        MapError: The version is for another engine, or the engine cannot load it.
        OutputError: The files cannot be written, and there is no whole copy.
    """
    exporter_for(engine)  # refuses what is none, before the service is asked
    options: dict[str, int | str | None] = {"num_hidden_layers": num_hidden_layers, "num_mtp_layers": num_mtp_layers}
    held = current(folder)
    usable = held if held is not None and _serves(held, where, engine, options) else None
    try:
        version = names.look(where)
        if usable is not None and (usable.version, usable.sha256) == (version.number, version.sha256):
            return Pulled(told=usable, new=False, move=version.move, kept_because=None)
        files = _fetched(names, version)
        told = _write(files, version, where.word, engine, options, folder)
    except (AwayError, OutputError, BrokenError) as error:
        problem: PlacementError = error
    except InputError:
        raise
    except PlacementError as error:  # the service failed
        problem = error
    else:
        return Pulled(told=told, new=True, move=version.move, kept_because=None)
    if usable is None or fresh:
        raise problem
    return Pulled(told=usable, new=False, move=None, kept_because=str(problem))


class BrokenError(InputError):
    """A file arrived with another digest than the service names."""


def _serves(held: PulledFile, where: Reference, engine: str, options: Mapping[str, int | str | None]) -> bool:
    """The copy is of what is asked for now; an alias may have had any version."""
    return (held.name, held.asked, held.engine, held.options) == (where.name, where.word, engine, dict(options))


def _fetched(names: Names, version: Version) -> dict[str, bytes]:
    """The files of a version, with the digests that the service names."""
    files = {PLACEMENT: names.placement(version)}
    wanted = {PLACEMENT: version.sha256}
    if version.grouping_sha256 is not None:
        files[GROUPING], wanted[GROUPING] = names.grouping(version), version.grouping_sha256
    for name, content in files.items():
        found = hashlib.sha256(content).hexdigest()
        if found != wanted[name]:
            raise BrokenError(
                f"{name} of {version.name}@{version.number} has the digest {found[:12]}, not {wanted[name][:12]}: it "
                "was changed on its way or in the store; pull again, or restore the store of the service"
            )
    return files


def _write(
    files: dict[str, bytes],
    version: Version,
    asked: str,
    engine: str,
    options: dict[str, int | str | None],
    folder: Path,
) -> PulledFile:
    told = PulledFile(
        schema="expert-pulled/1",
        name=version.name,
        asked=asked,
        version=version.number,
        sha256=version.sha256,
        engine=engine,
        options=options,
        files={},
    )
    replace(folder, told, files | _of_engine(files[PLACEMENT], engine, options, folder))
    kept = current(folder)
    if kept is None:
        raise OutputError(f"what was written to {folder} is not what is there; look at its disk")
    return kept


def _of_engine(content: bytes, engine: str, options: Mapping[str, int | str | None], folder: Path) -> dict[str, bytes]:
    """The file that the engine loads, and how to start it. Raises MapError, OptionError."""
    with tempfile.TemporaryDirectory() as scratch:
        write_atomic(Path(scratch) / PLACEMENT, content)
        placement, file = load_placement(Path(scratch) / PLACEMENT)
    made_for = file.engine()
    if made_for not in (None, engine):
        raise MapError(
            f"this version was solved for {made_for}, not for {engine}; give --for {made_for}, or another name"
        )
    hidden, mtp = options["num_hidden_layers"], options["num_mtp_layers"]
    known = described(
        placement,
        num_hidden_layers=None if hidden is None else int(hidden),
        num_mtp_layers=int(mtp or 0),
    )
    exporter = exporter_for(engine)
    name = f"{MAP}{exporter.suffixes[0]}"
    export = exporter.export(known, ExportOptions(suffix=exporter.suffixes[0]))
    path = str(folder.absolute() / CURRENT / name)
    hints = [re.sub(r"\bFILE\b", lambda _: path, hint) for hint in export.hints]
    return {name: export.content, FLAGS: "".join(f"{hint}\n" for hint in hints).encode()}
