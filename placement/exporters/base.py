"""The protocols: an exporter makes the bytes that one engine loads, an importer reads such bytes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from placement.core.placement import Placement


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """What an exporter may need besides the placement.

    Attributes:
        suffix: Ending of the file to be written, which tells formats apart; empty: the exporter's first.
        load_LE: Assignments of every expert, [L, E], for engines that place by load; None: unknown.
        model_class: Class by which an engine knows the model; empty: the model's name.
    """

    suffix: str = ""
    load_LE: npt.NDArray[np.number] | None = None
    model_class: str = ""


DEFAULTS = ExportOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """The file's content, and what to tell the engine beside it, one line each.

    Hints name the flags to start with, the number of redundant experts, how the engine chooses among copies in the
    words of `--replica-choice`, and what it leaves out. The word FILE in them stands for the file's path.
    """

    content: bytes
    hints: tuple[str, ...] = field(default=())


class Exporter(Protocol):
    """Makes the file that one engine loads."""

    name: str
    suffixes: tuple[str, ...]  # what the engine's file may be called, the usual one first
    takes_load: bool  # whether `ExportOptions.load_LE` is of use
    replica_choices: tuple[
        str, ...
    ]  # how the engine chooses among copies, as in `--replica-choice`, its usual way first; empty: not its own
    transport: str  # what the engine sends where nodes are several, as in `--transport`

    def export(self, placement: Placement, options: ExportOptions = DEFAULTS) -> Export:
        """The file of a placement.

        Raises:
            MapError: The engine would silently do something else than the map says.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class FileMap:
    """What an engine's file says of a map; the rest must be told by whoever imports it.

    Attributes:
        rows: Logical expert of every slot, int64 [P] for each layer; unchecked but for being whole numbers. Rows may
            differ in length.
        hidden: Rows are all decoder layers, dense ones included; else MoE layers only.
        layer_ids: Absolute number of each row, if the file has them.
        num_ranks: Ranks, if the file tells them apart.
        num_experts: Experts of a layer, if the file says so.
        every_layer: The only row is meant for every layer.
    """

    rows: Sequence[npt.NDArray[np.int64]]
    hidden: bool = False
    layer_ids: tuple[int, ...] | None = None
    num_ranks: int | None = None
    num_experts: int | None = None
    every_layer: bool = False


@runtime_checkable
class Importer(Protocol):
    """An exporter whose files hold the whole map."""

    name: str
    suffixes: tuple[str, ...]

    def read(self, content: bytes, suffix: str) -> FileMap:
        """What a file with that ending says. Never unpickles.

        Raises:
            MapError: The content is no such file, or its map is not sound.
        """
