"""Splitting a trace into classes of traffic that may have a map each, and these into training and held-out requests."""

from __future__ import annotations

from placement.core.choices import CLASSES
from placement.errors import OptionError
from placement.traces.cut import PREFILL, cut_requests
from placement.traces.parts import FEWEST_TOKENS, parts_of
from placement.traces.split import split_requests
from placement.traces.trace import Trace

DOMAIN, CATEGORY, PHASE = CLASSES
PHASES = (PREFILL, "decode")

Sides = tuple[Trace, ...]  # training, and held out if any requests were


def split_classes(
    trace: Trace, by: str, holdout: float, seed: int
) -> tuple[tuple[str, ...], tuple[str, ...], Sides, list[Sides]]:
    """Names of the classes and of those left out; the sides of all traffic, and of each class.

    domain, category  by that key of the requests, see `parts_of`; requests are held out within each
    phase             the prefill of every request is a class, its decode the other

    `holdout` 0 holds none out. Requests of no class are among those of all traffic. Raises OptionError, TraceError.
    """
    if by not in CLASSES:
        raise OptionError(f"by={by!r} is unknown; choose one of {', '.join(CLASSES)}")
    if by == PHASE:
        sides = split_requests(trace, holdout, seed) if holdout else (trace,)
        cuts = [cut_requests(side, PREFILL) for side in sides]
        phases: list[Sides] = [tuple(cut[number] for cut in cuts) for number in range(len(PHASES))]
        for name, views in zip(PHASES, phases, strict=True):
            tokens = [int(view.tokens_Q().sum()) for view in views]
            if tokens[0] < FEWEST_TOKENS or not tokens[-1]:
                raise OptionError(
                    f"by='phase' needs {FEWEST_TOKENS} or more tokens of {PHASES[0]} and of {PHASES[1]} to fit, and "
                    f"some of both held out; of {name} there are {' and '.join(map(str, tokens))}; record both phases, "
                    f"or use {DOMAIN} or {CATEGORY}"
                )
        return PHASES, (), sides, phases
    parts = parts_of(trace, by, option="by", others=CLASSES)
    sides = split_requests(trace, holdout, seed, parts) if holdout else (trace,)
    classes: list[Sides] = []
    for part in range(len(parts.names)):
        views = tuple(parts.of(side, part) for side in sides)
        # entries with one id are on one side: those of a class may all be on that of training
        classes.append(views if views[-1].tokens_Q().any() else views[:1])
    return parts.names, parts.left_out, sides, classes
