"""Tables for the terminal; they fit in 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from placement.cost.evaluation import Evaluation
from placement.errors import printable
from placement.pipeline.solution import Solution
from placement.report.drawing.numbers import change, human_bytes, mean_max, number, plural
from placement.report.drawing.table import table_of
from placement.report.solution.summary import REFERENCE, headline, parts, sends_known
from placement.report.solution.traffic_charts import busiest_link_L

__all__ = ["comparison_table", "evaluation_table", "headline"]

NAME_WIDTH = 14
TIMES = "\N{MULTIPLICATION SIGN}"


def comparison_table(solution: Solution) -> Table:
    """Baselines and result: held-out figures first, those of training dimmed below them."""
    model, cluster = solution.placement.model, solution.cluster
    table = _table(REFERENCE)
    table.title = Text(
        f"{printable(model.name)}: {plural(model.num_layers, 'layer')} of {plural(model.num_experts, 'expert')}, "
        f"top-{model.top_k}, on {cluster.num_nodes} {TIMES} {plural(cluster.gpus_per_node, 'GPU')}",
        style="bold",
    )
    tokens = []
    for part, answers in parts(solution):
        dim = "dim " if part == "training" and solution.held_out else ""
        table.add_row(Text(part, style="italic"), style=dim.strip())
        for name, evaluation in answers.items():
            style = f"{dim}{'bold' if name == solution.result_name else ''}".strip()
            table.add_row(_name(name, indent=1), *_cells(evaluation, answers[REFERENCE]), style=style)
        table.add_section()
        tokens.append(f"{part} {plural(answers[REFERENCE].num_tokens, 'token')}{_sampling(answers[REFERENCE])}")
    table.caption = _caption(", ".join(tokens), sends_known(solution))
    return table


def evaluation_table(names: Sequence[str], evaluations: Sequence[Evaluation]) -> Table:
    """One row a map; changes are against the map named eplb, else against the first."""
    reference = names.index(REFERENCE) if REFERENCE in names else 0
    table = _table(REFERENCE if REFERENCE in names else "first")
    for name, evaluation in zip(names, evaluations, strict=True):
        table.add_row(_name(name), *_cells(evaluation, evaluations[reference]))
    if evaluations:
        table.caption = _caption(plural(evaluations[0].num_tokens, "token"))
    return table


def _table(reference: str) -> Table:
    heads = ("bytes\n/token", "rank imb.\nmean (max)", "node\nimb.", "link\nimb.", "step\nµs")
    return table_of("\nmap", "sends\n/token", f"against\n{reference}", *heads)


def _caption(tokens: str, known: bool = True) -> Text:
    sends = "sends and bytes are those between nodes" if known else "sends are unknown: the input holds counts only"
    return Text(f"{tokens}; means over layers; {sends}", style="dim")


def _sampling(evaluation: Evaluation) -> str:
    """Where sends are those of a sample: its size, and how far those of all tokens may be."""
    if evaluation.sampled_tokens in (None, evaluation.num_tokens):
        return ""
    error = "" if evaluation.sends_error is None else f", standard error {evaluation.sends_error:.2g}"
    return f" (sends of {evaluation.sampled_tokens:,} of them{error})"


def _cells(evaluation: Evaluation, reference: Evaluation) -> list[str]:
    summary = evaluation.summary()
    sends = summary["sends_per_token"]
    return [
        number(sends),
        "" if evaluation is reference else change(sends, reference.summary()["sends_per_token"]),
        human_bytes(evaluation.bytes_per_token()),
        mean_max(summary["rank_imbalance"]),
        number(summary["node_imbalance"]["mean"]),
        number(float(busiest_link_L(evaluation).mean())),
        number(summary["step_time_us"]),
    ]


def _name(name: str, indent: int = 0) -> Text:
    """The end of a long name is what tells one file from another."""
    shown = printable(name)
    return Text(" " * indent + (shown if len(shown) <= NAME_WIDTH else f"…{shown[1 - NAME_WIDTH :]}"))
