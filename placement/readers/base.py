"""The protocol of a reader: what an engine recorded in, batches of tokens (or counts) out."""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from placement.core.model import MOST_LAYERS
from placement.errors import OptionError, PlacementError, TraceError
from placement.traces.format import RequestEntry
from placement.traces.storage.litter import is_litter

BATCH_TOKENS = 2048  # the most in a batch, where a reader can choose


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """What a recording may leave unsaid; None takes it from the recording.

    Attributes:
        model: Name of the model.
        num_experts: Logical experts of a layer.
        top_k: Experts that a token visits.
        layer_ids: Absolute index of each layer of the recording, the dense ones that it has included.
        keep_unwritten: Take rows and places for traffic that look as if nobody had written to them.
    """

    model: str | None = None
    num_experts: int | None = None
    top_k: int | None = None
    layer_ids: tuple[int, ...] | None = None
    keep_unwritten: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Tokens that an engine recorded together: a forward pass, a call or a request, or a piece of one.

    Attributes:
        where: File of the tokens and the place in the file, for messages.
        ids_LTK: Expert ids in all layers of the recording, dense ones included, int32 [L, T, K], C-contiguous. -1 is no
            expert; a set of nothing but -1 (or, of several, nothing but 0) is a row of a buffer that nobody wrote to.
        requests: The requests that the tokens belong to.
        request_T: Index of each token's request in `requests`, int32 [T].
        position_T: Position of each token in its request, int32 [T].
        phase_T: PREFILL, DECODE or DRAFT, uint8 [T].
        weights_LTK: Router weights, float16 [L, T, K], or None.
        token_T: Ids of the tokens, int32 [T], -1 where one is not known; None: none is.
        prompt_P: Ids of the whole prompt of the only request, int32 [P], with its first batch; None: not known.
    """

    where: str
    ids_LTK: npt.NDArray[np.int32]
    requests: tuple[RequestEntry, ...]
    request_T: npt.NDArray[np.int32]
    position_T: npt.NDArray[np.int32]
    phase_T: npt.NDArray[np.uint8]
    weights_LTK: npt.NDArray[np.float16] | None = None
    token_T: npt.NDArray[np.int32] | None = None
    prompt_P: npt.NDArray[np.int32] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """Tokens of an engine.

    Attributes:
        layer_ids: Absolute index of each of the L layers of a batch.
        num_experts: Logical experts, or None where the engine does not say it.
        num_hidden_layers: Layers of the model, dense ones included, where the engine records them all.
        phy2log_LP: Logical expert of each physical id, int32 [L, P], where ids are physical; else None.
        batches: Reads the whole recording, from the start at every call.
        notes: What the user should know, one line each; complete when batches were read.
        id_fault: Why an id may be out of range in this format, and how to mend it.
    """

    model: str
    layer_ids: tuple[int, ...]
    batches: Callable[[], Iterator[Batch]]
    num_experts: int | None = None
    num_hidden_layers: int | None = None
    phy2log_LP: npt.NDArray[np.int32] | None = None
    notes: list[str] = field(default_factory=list)
    id_fault: str = "record again, or give the right --experts"


@dataclass(frozen=True, slots=True, kw_only=True)
class CountRecording:
    """Visits of every expert, without tokens: int64 [Q, L, E], one row for each request, pass or window.

    `num_hidden_layers` as of a `Recording`.
    """

    model: str
    layer_ids: tuple[int, ...]
    count_QLE: npt.NDArray[np.int64]
    top_k: int | None = None
    num_hidden_layers: int | None = None
    notes: list[str] = field(default_factory=list)


class Reader(Protocol):
    """`name` is what --from takes, `title` what the format is called in sentences."""

    name: str
    title: str

    def sniff(self, path: Path) -> str | None:
        """Why `path`, an existing file or folder, is of this format, in words; None if it is not. Never raises."""

    def read(self, path: Path, options: ReadOptions) -> Recording | CountRecording:
        """Read the recording; its batches are read when they are asked for.

        Raises:
            TraceError: The recording is damaged. (Batches raise as well.)
            OptionError: An option is missing, or contradicts the recording.
        """


@contextmanager
def reading(path: Path | str, mend: str) -> Iterator[None]:
    """Turn what a library raises on a bad file into TraceError of one line that says how to mend it."""
    try:
        yield
    except PlacementError:
        raise
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        EOFError,
        OverflowError,
        RecursionError,
        MemoryError,
        NotImplementedError,
        IndexError,
        AttributeError,
        struct.error,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        what = getattr(error, "strerror", None) or f"{error}" or type(error).__name__
        raise TraceError(f"cannot read {path}: {what.splitlines()[0]}; {mend}") from None


def check_exists(path: Path) -> None:
    """Raise TraceError where nothing is at `path`, or the system refuses to look."""
    mend = "give the file or folder that an engine recorded"
    with reading(path, mend):
        if not path.exists():
            raise TraceError(f"{path} does not exist; {mend}")


def files_of(path: Path, *patterns: str) -> list[Path]:
    """The file itself, or the files of a folder whose names match, in order of their names and of numbers in them.

    Files that hold no traffic, such as `._routes.jsonl` of macOS, are left out.
    """
    if path.is_file():
        return [path]
    found = {file for pattern in patterns for file in path.glob(pattern) if file.is_file() and not is_litter(file.name)}
    return sorted(found, key=lambda file: (len(file.name), file.name))


def model_name(path: Path) -> str:
    """What a model is called whose recording does not say it: as the folder, or as the file without its ending."""
    if path.name in ("", ".."):  # `.` and what leads up have no names of their own
        path = path.resolve()
    return path.name if path.is_dir() else path.stem


def head_of(path: Path, size: int = 1 << 16) -> bytes:
    """The first bytes of a file; none where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError:
        return b""


def parse_ids(text: str) -> tuple[int, ...]:
    """Numbers from 3-60 or 0,2,4-7.

    Raises:
        OptionError: The text is no list of numbers and ranges.
    """
    parts = [re.fullmatch(r"\s*(\d{1,5})\s*(?:-\s*(\d{1,5})\s*)?", part) for part in text.split(",")]
    if None in parts:
        raise OptionError(
            f"--layer-ids {text[:200]!r} is no list of numbers and ranges; write for example 3-60 or 1,3,5-7"
        )
    ends = [(int(part[1]), int(part[2] or part[1])) for part in parts if part]
    if sum(last - first + 1 for first, last in ends) > MOST_LAYERS:
        raise OptionError(f"--layer-ids {text[:60]!r} names more than {MOST_LAYERS} layers; no model has as many")
    return tuple(one for first, last in ends for one in range(first, last + 1))


def whole_number(value: Any, what: str, where: str, *, least: int = 0) -> int:
    """`value` if it is a whole number of at least `least`.

    Raises:
        TraceError: The value is something else; the message says what and where.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**31:
        raise TraceError(f"{where}: {what} is {value!r:.60}; a whole number of at least {least} is needed")
    return value
