"""The steps of a job that its page shows, in the order in which they come."""

from __future__ import annotations

from dataclasses import dataclass

from placement_api.store.tables import JobRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """stage is that of `Progress`; a step that comes seldom is shown when it is there."""

    stage: str
    words: str
    unit: str
    seldom: bool = False


QUEUED = Step(stage="queued", words="Waiting", unit="")
COUNT = Step(stage="count", words="Counting tokens", unit="tokens")
COMPILE = Step(stage="compile", words="Compiling", unit="pieces", seldom=True)
SOLVE = Step(stage="solve", words="Solving layers", unit="layers")
ROBUST = Step(stage="robust", words="Bettering the worst part", unit="rounds")
GROUP = Step(stage="group", words="Grouping requests", unit="rounds")
EVALUATE = Step(stage="evaluate", words="Measuring maps", unit="passes")
ADVISE = Step(stage="advise", words="Trying settings", unit="maps")
STEPS = {
    "evaluate": (QUEUED, EVALUATE),
    "advise": (QUEUED, COUNT, ADVISE),
    "study": (QUEUED, COUNT),
    "front": (QUEUED, COUNT, SOLVE, EVALUATE),
}


def steps_of(row: JobRow) -> tuple[Step, ...]:
    """What the page of this job shows."""
    if row.kind in STEPS:
        return STEPS[row.kind]
    asked = ((GROUP, row.request.get("group")), (ROBUST, row.request.get("robust")))
    own = [step for step, value in asked if value is not None]
    return QUEUED, COUNT, COMPILE, SOLVE, *own, EVALUATE
