"""Several captures of one model, given together: traces, counted traces and counts of experts.

A capture is what was recorded at one time or of one kind of traffic. Captures weigh alike or as told, whatever their
tokens, so a long one drowns no other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from placement.core.model import Model
from placement.errors import OptionError, TraceError
from placement.traces.parts import FEWEST_REQUESTS, FEWEST_TOKENS
from placement.traces.storage.stored_path import StoredPath
from placement.traces.trace import Span, Trace, open_trace
from placement.workload.counted import CountedTrace
from placement.workload.counts_file import SUFFIXES, ExpertCounts

LARGEST_WEIGHT = 1e9
MOST_CAPTURES = 32
COUNTS_SUFFIX = rf"({'|'.join(map(re.escape, SUFFIXES))})$"

Given = Trace | CountedTrace | ExpertCounts
Place = Path | StoredPath


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """One of several.

    Attributes:
        name: How tables call it.
        given: What was captured.
        weight: How much the capture counts beside the others, in any unit.
    """

    name: str
    given: Trace | CountedTrace | ExpertCounts
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Captures:
    """Two captures or more of one model, which `solve` takes as it takes a trace.

    Raises:
        OptionError: There are too few, two have one name, or a weight is not above 0.
        TraceError: They are of different models.
    """

    captures: tuple[Capture, ...]

    def __post_init__(self) -> None:
        names = [capture.name for capture in self.captures]
        if len(names) < 2 or len(set(names)) < len(names):
            raise OptionError(f"captures {', '.join(names) or '()'} must be two or more of different names")
        for capture in self.captures:
            if not 0 < capture.weight <= LARGEST_WEIGHT:
                raise OptionError(
                    f"weight={capture.weight:g} of {capture.name} must be above 0, and {LARGEST_WEIGHT:g} at most"
                )
            if not self.model.same_routing(capture.given.model):
                raise TraceError(
                    f"{capture.name} is of another model than {names[0]}: of {capture.given.model.routing_said}, not "
                    f"{self.model.routing_said}; give captures of one model"
                )

    @property
    def model(self) -> Model:
        """That of the first."""
        return self.captures[0].given.model

    @property
    def weight_W(self) -> tuple[float, ...]:
        """Share of each in the traffic; sums to 1."""
        total = sum(capture.weight for capture in self.captures)
        return tuple(capture.weight / total for capture in self.captures)


def together(opened: Sequence[tuple[Place, Given, float | None]]) -> tuple[Given | Captures, str | None]:
    """One capture as it is, or several: each folder of traces and each file or folder of counts is one.

    Folders of traces alone that are too many, or too small to be judged by themselves, are one trace.

    Args:
        opened: where each lies, what it is, and its weight, which its folders share; None: 1 for each folder.

    Returns:
        What to solve, and what to say of it, if anything.

    Raises:
        OptionError: one is given twice, weights are of no use, or there are too many.
        TraceError: they are of different models.
    """
    told = any(weight is not None for _, _, weight in opened)
    single: list[tuple[Place, Given, float]] = []
    for place, given, weight in opened:
        folders = folders_of(given) if isinstance(given, Trace) else {place: given}
        single += [(one, mine, 1.0 if weight is None else weight / len(folders)) for one, mine in folders.items()]
    places = [place for place, _, _ in single]
    twice = next((place for place in places if places.count(place) > 1), None)
    if twice is not None:
        raise OptionError(f"{twice} is given twice; give each capture once, with =WEIGHT to have it count more")
    if len(single) == 1:
        if told:
            raise OptionError(f"{places[0]} has a weight and nothing beside it; give several captures, or no weight")
        return single[0][1], None
    traces = [one for _, one, _ in single if isinstance(one, Trace)]
    small = [str(place) for place, one, _ in single if isinstance(one, Trace) and _too_small(one)]
    if not told and len(traces) == len(single) and (small or len(single) > MOST_CAPTURES):
        why = f"{small[0]} is too small to weigh alike" if small else f"captures are {MOST_CAPTURES} at most"
        return open_trace([str(place) for place in places]), f"{len(single)} folders are read as one trace: {why}"
    if len(single) > MOST_CAPTURES:
        raise OptionError(f"{len(single)} captures are too many; give {MOST_CAPTURES} at most")
    named = zip(_names(places), single, strict=True)
    return Captures(captures=tuple(Capture(name=name, given=one, weight=w) for name, (_, one, w) in named)), None


def folders_of(trace: Trace) -> dict[Place, Trace]:
    """The trace of each folder that makes up a trace."""
    spans: dict[Place, list[Span]] = {}
    for span in trace.spans:
        spans.setdefault(span.shard.path.parent, []).append(span)
    return {
        folder: replace(
            trace,
            requests=trace.requests[mine[0].offset : mine[0].offset + mine[0].listed],
            spans=tuple(replace(span, offset=0) for span in mine),
        )
        for folder, mine in spans.items()
    }


def _too_small(trace: Trace) -> bool:
    """True for a trace of fewer tokens or requests than a part of the traffic must have."""
    tokens_Q = trace.tokens_Q()
    return int(tokens_Q.sum()) < FEWEST_TOKENS or int((tokens_Q > 0).sum()) < FEWEST_REQUESTS


def _names(places: Sequence[Place]) -> list[str]:
    """Names of captures: of their files or folders, the whole paths where two are alike."""
    short = [re.sub(COUNTS_SUFFIX, "", place.name) for place in places]
    return short if len(set(short)) == len(short) else [str(place) for place in places]
