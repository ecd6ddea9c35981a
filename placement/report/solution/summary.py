"""The part of a solution that reports show first, and its one-paragraph summary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from placement.cost.evaluation import Evaluation
from placement.cost.transport import sends_are_fixed
from placement.errors import printable
from placement.pipeline.part_figures import PartFigures
from placement.pipeline.solution import Solution
from placement.report.drawing.numbers import change, number, percent
from placement.report.solution.evidence_text import evidence_text

REFERENCE = "eplb"
UNEVEN = 1.1  # the worst part's cost over the mean, above which it is told
LEAST_BROUGHT = 0.005  # of the imbalance, less of which is nothing


def shown_part(solution: Solution) -> tuple[str, dict[str, Evaluation]]:
    """Held-out figures where there are any, else those of training; with their name in words."""
    if solution.held_out:
        return "held-out", solution.held_out
    return "training", solution.train


def baseline_of(solution: Solution) -> str:
    """The map that the result is set beside: eplb, or linear where the result is eplb."""
    return "linear" if solution.result_name == REFERENCE else REFERENCE


def parts(solution: Solution) -> list[tuple[str, dict[str, Evaluation]]]:
    """All parts, the one to believe first."""
    held_out = [("held-out", solution.held_out)] if solution.held_out else []
    return [*held_out, ("training", solution.train)]


def tiles(result: Mapping[str, Any], other: Mapping[str, Any], name: str) -> list[tuple[str, str, str]]:
    """(what, value, beside what) of the result, of its summary and that of the map `name` beside it."""

    def tile(what: str, value: float | None, reference: float | None, unit: str = "") -> tuple[str, str, str]:
        if value is None:
            return what, "unknown", "the input holds counts only"
        return what, f"{number(value)}{unit}", f"{name} {number(reference)}{unit}, {change(value, reference)}"

    return [
        tile("Sends per token to other nodes", result["sends_per_token"], other["sends_per_token"]),
        tile("Rank imbalance", result["rank_imbalance"]["mean"], other["rank_imbalance"]["mean"]),
        tile("Modelled step time", result["step_time_us"], other["step_time_us"], " µs"),
    ]


def sends_known(solution: Solution) -> bool:
    """False where the input holds counts only."""
    return bool(np.isfinite(solution.train[REFERENCE].sends_L).all())


def objective(solution: Solution) -> str:
    """What the solver minimized, in words."""
    if not solution.options.sends_count:
        return "Expected rank imbalance over resampled requests, on the training requests; sends do not count."
    visited = float(solution.train[REFERENCE].assignments_L.mean())
    _, price = solution.options.prices(solution.cluster, visited)
    return (
        f"sends + {number(price)} × expected rank imbalance, the expectation taken over resampled requests, on the "
        f"training requests."
    )


def headline(solution: Solution) -> str:
    """Sends and imbalance of the result beside eplb, what is proven, what the result rests on, what the best split of
    load over copies would make of the imbalance, the worst part of a robust solve, and what is left of wasted slots of
    the map in use."""
    rests = evidence_text(solution, baseline_of(solution))
    more = f"{rests}{_best_split(solution)}{_worst_part(solution)}{_wasted(solution)}"
    return f"{_sends(solution)}; {proof(solution)}.{more}"


def _best_split(solution: Solution) -> str:
    splits = solution.best_split()
    if splits is None:
        return ""
    imbalance = number(float(splits["held_out" if solution.held_out else "train"].mean()))
    return f" With the best split of load over copies the rank imbalance would be {imbalance}."


def _worst_part(solution: Solution) -> str:
    figures = solution.parts
    if figures is None:
        return ""
    if solution.robust is None:
        return _uneven_parts(solution, figures)
    part, answers = figures.shown()
    names = (solution.result_name, solution.options.solver)
    worst, other = (max(figures.cost(answer[name]) for answer in answers) for name in names)
    return (
        f" The worst {figures.noun} costs {number(worst)} on {part} requests, with plain {names[1]} {number(other)} "
        f"({change(worst, other)}).{_least_worst(figures)}"
    )


def _least_worst(figures: PartFigures) -> str:
    if figures.bound is None:
        return ""
    return f" No map's worst {figures.noun} costs less than {number(figures.bound)} on the training objective."


def _uneven_parts(solution: Solution, figures: PartFigures) -> str:
    """Where the worst part costs well more than the mean: how much, and what a map for every part would bring."""
    part, answers = figures.shown()
    answers_W = [answer[solution.result_name] for answer in answers]
    cost_W = np.array([figures.cost(answer) for answer in answers_W])
    w, mean = int(cost_W.argmax()), float(figures.mean(cost_W))
    if not cost_W[w] > UNEVEN * mean:
        return ""
    imbalance = max(float(answer.rank_imbalance_L().mean()) for answer in answers_W)
    balanced = solution.worst_if_balanced()
    brings = (
        f"could be {number(balanced)} instead of {number(imbalance)}: see placement robust"
        if balanced < imbalance - LEAST_BROUGHT
        else f"would not fall, at {number(imbalance)}"
    )
    return (
        f" The worst {figures.noun}, {printable(figures.names[w])}, costs {number(float(cost_W[w]))} on {part} "
        f"requests, {percent(float(cost_W[w]) / mean - 1)} over the mean of {number(mean)}. With a map that is "
        f"balanced for every {figures.noun}, the highest rank imbalance {brings}."
    )


def _wasted(solution: Solution) -> str:
    wasted = 0 if solution.current is None else int(solution.current.wasted_LP().sum())
    left = int(solution.placement.wasted_LP().sum())
    return f" The map in use wastes {wasted} slots, the answer {left}." if wasted else ""


def _sends(solution: Solution) -> str:
    part, answers = shown_part(solution)
    result, reference = answers[solution.result_name], answers[REFERENCE]
    sends, other = float(result.sends_L.mean()), float(reference.sends_L.mean())
    imbalance = number(float(result.rank_imbalance_L().mean()))
    where = f"on {part} requests"
    if not sends_known(solution):
        beside = number(float(reference.rank_imbalance_L().mean()))
        return f"Rank imbalance {imbalance} {where} ({REFERENCE} {beside}); sends are unknown: there are counts only"
    if solution.cluster.num_nodes > 1 and sends_are_fixed(
        solution.cluster, solution.options.transport, solution.placement.model.num_experts
    ):
        beside = "" if result is reference else f" ({REFERENCE} {number(float(reference.rank_imbalance_L().mean()))})"
        return (
            f"Every placement sends the same here (transport {solution.options.transport}) and changes nothing but "
            f"balance. Rank imbalance {imbalance}{beside} {where}"
        )
    if solution.result_name == REFERENCE:
        return f"{number(sends)} inter-node sends per token and layer {where}, at rank imbalance {imbalance}"
    at = f"at rank imbalance {imbalance} ({REFERENCE} {number(float(reference.rank_imbalance_L().mean()))})"
    if solution.cluster.num_nodes == 1:
        return f"No inter-node sends, there is one node; {at} {where}"
    if other == 0 or abs(sends / other - 1) < 5e-4:
        return f"As many inter-node sends as {REFERENCE} {where} ({number(sends)} per token and layer), {at}"
    way = "fewer" if sends < other else "more"
    return (
        f"{percent(abs(sends / other - 1))} {way} inter-node sends than {REFERENCE} {where} "
        f"({number(sends)} against {number(other)} per token and layer), {at}"
    )


def proof(solution: Solution) -> str:
    """What the bounds say about the training objective."""
    gaps = [layer.gap for layer in solution.layers if layer.gap is not None]
    if not gaps:
        return "no bound was computed"
    of_layers = (
        "" if len(gaps) == len(solution.layers) else f" on the {len(gaps)} of {len(solution.layers)} layers bounded"
    )
    if max(gaps) == 0:
        return f"proven optimal{of_layers} (training objective)"
    mean = percent(float(np.mean(gaps)))
    return f"proven within {mean} of the optimum{of_layers} (mean gap over layers, training objective)"
