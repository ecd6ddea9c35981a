"""One self-contained HTML page about maps that were measured on a trace: no script, the same bytes every time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from placement import __version__
from placement.analysis.advise.steps import Steps
from placement.core.model import Model
from placement.cost.evaluation import Evaluation
from placement.cost.steps.replay import StepCost
from placement.errors import printable
from placement.report.drawing.lines import layer_line, lines_by_layer
from placement.report.drawing.page import render
from placement.report.solution.solution_charts import IMBALANCE, LINK, SENDS
from placement.report.solution.traffic_charts import busiest_link_L, traffic_maps
from placement.report.steps.step_charts import step_charts, steps_legend

TEMPLATE = "evaluation/evaluation.html.j2"
SHAPES = ("diamond", "square", "triangle", "circle")
LOOKS = [(f"s{series}", SHAPES[place % 4]) for place, series in enumerate((2, 1, 3, 0, 4, 6, 7))]


def evaluation_html(
    model: Model,
    names: Sequence[str],
    evaluations: Sequence[Evaluation],
    *,
    rule: str,
    steps: Sequence[Sequence[StepCost]] | None = None,
) -> str:
    """The page as text; write it with `placement.support.atomic_files.write_atomic`.

    Args:
        names: Of the maps, each a row; the first is what the others are set beside.
        evaluations: One for each name, on the same tokens.
        rule: By which the maps were measured, in words.
        steps: What `evaluate_steps` answered for each map; None: steps were not asked for.
    """
    shown = _distinct(names)
    answers = dict(zip(shown, evaluations, strict=True))
    looks = {name: LOOKS[number % len(LOOKS)] for number, name in enumerate(shown)}
    sizes = [] if steps is None else Steps(costs=dict(zip(shown, map(tuple, steps), strict=True))).sizes
    known = all(np.isfinite(one.sends_L).all() for one in evaluations)
    values = {SENDS: {name: one.sends_L for name, one in answers.items()}} if known else {}
    values |= {IMBALANCE: {name: one.rank_imbalance_L() for name, one in answers.items()}}
    values |= {LINK: {name: busiest_link_L(one) for name, one in answers.items()}} if known else {}
    return render(
        TEMPLATE,
        {
            "model": model,
            "model_name": printable(model.name),
            "rows": {name: (one.summary(), one.bytes_per_token()) for name, one in answers.items()},
            "tokens": evaluations[0].num_tokens,
            "rule": rule,
            "legend": [(name, *look) for name, look in looks.items()],
            "layers": [(label, _by_layer(model, of, label, looks)) for label, of in values.items()],
            "traffic": traffic_maps(answers, "") if len({one.cluster.num_nodes for one in evaluations}) == 1 else None,
            "steps": step_charts(sizes, looks),
            "steps_asked": steps is not None,
            "floor_of": None if len({one.cluster for one in evaluations}) == 1 else shown[0],
            "steps_legend": steps_legend(looks),
            "version": __version__,
        },
    )


def _by_layer(
    model: Model, values: Mapping[str, npt.NDArray[np.float64]], label: str, looks: Mapping[str, tuple[str, str]]
) -> str:
    lines = [layer_line(name, *looks[name], model.layer_ids, of_L.tolist()) for name, of_L in values.items()]
    return lines_by_layer(model.layer_ids, lines, label, 0.0 if label == SENDS else 1.0, f"{label} by layer")


def _distinct(names: Sequence[str]) -> list[str]:
    """The names, printable, with a number behind one that was there before."""
    plain = [printable(name) for name in names]
    before = [plain[:number].count(name) for number, name in enumerate(plain)]
    return [f"{name} ({times + 1})" if times else name for name, times in zip(plain, before, strict=True)]
