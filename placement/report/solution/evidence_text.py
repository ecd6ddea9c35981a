"""What a result rests on, in a sentence or two."""

from __future__ import annotations

from placement.pipeline.evidence import Evidence
from placement.pipeline.learning_curve import FEWEST_REQUESTS, Range
from placement.pipeline.solution import Solution
from placement.report.drawing.numbers import plural

LITTLE_SENDS = 0.01  # in parts of the sends
LITTLE_IMBALANCE = 0.02
ERRORS = 2  # standard errors beyond which a difference is no chance


def evidence_text(solution: Solution, reference: str) -> str:
    """How many requests the map rests on, what twice as many would bring, and where held-out imbalance is chance.

    Args:
        solution: What `solve` answered.
        reference: The map that the result is set beside.
    """
    evidence = solution.evidence
    return "" if evidence is None else f"{_requests(solution, evidence)}{_chance(solution, evidence, reference)}"


def _requests(solution: Solution, evidence: Evidence) -> str:
    if evidence.requests is None:
        return " The counts name no requests: how far the map holds for other requests is unknown."
    more = "" if evidence.all_profiled else "at least "
    rests = f" The map rests on {more}{plural(evidence.requests, 'request')}"
    twice = evidence.twice
    if twice is None:
        few = evidence.requests < FEWEST_REQUESTS
        return f"{rests}: too few to tell what more would bring." if few else f"{rests}."
    sends = float(solution.train[solution.result_name].sends_L.mean())
    gains = []
    if twice.sends is not None and twice.sends[1] > LITTLE_SENDS * sends:
        gains.append(f"{_range(twice.sends)} fewer sends")
    if twice.imbalance[1] > LITTLE_IMBALANCE:
        gains.append(f"{_range(twice.imbalance)} less rank imbalance")
    return f"{rests}; twice as many would {'bring ' + ' and '.join(gains) if gains else 'change little'}."


def _range(gain: Range) -> str:
    """Two decimals: a curve tells no more."""
    least, most = (f"{value:.2f}" for value in gain)
    return f"about {most}" if least == most else f"up to {most}" if float(least) == 0 else f"{least} to {most}"


def _chance(solution: Solution, evidence: Evidence, reference: str) -> str:
    if evidence.held_out_requests == 1:
        return " One held-out request says little about rank imbalance."
    error, of_difference = evidence.imbalance_error, evidence.difference_error
    if evidence.held_out_requests is None or error is None or of_difference is None:
        return ""
    if ERRORS * error < LITTLE_IMBALANCE:
        return ""
    mine, other = (
        float(solution.held_out[name].rank_imbalance_L().mean()) for name in (solution.result_name, reference)
    )
    requests = evidence.held_out_requests
    said = f" On {requests} held-out requests the rank imbalance is known to ±{ERRORS * error:.2f}"
    by_chance = abs(mine - other) < ERRORS * of_difference
    return f"{said}, and its difference from {reference} may be chance." if by_chance else f"{said}."
