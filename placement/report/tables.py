"""Tables for the terminal; they fit in 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from placement.cost import Evaluation
from placement.report.numbers import change, human_bytes, number
from placement.report.summary import REFERENCE, headline, parts
from placement.solve import Solution

__all__ = ["comparison_table", "evaluation_table", "headline"]

NAME_WIDTH = 18
UNPRINTABLE = "\N{REPLACEMENT CHARACTER}"


def comparison_table(solution: Solution) -> Table:
    """Baselines and result: held-out figures first, those of training dimmed below them."""
    model, cluster = solution.placement.model, solution.cluster
    table = _table(REFERENCE)
    table.title = Text(
        f"{printable(model.name)}: {model.num_layers} layers of {model.num_experts} experts, top-{model.top_k}, on "
        f"{cluster.num_nodes} \N{MULTIPLICATION SIGN} {cluster.gpus_per_node} GPUs",
        style="bold",
    )
    table.title_justify = "left"
    for part, answers in parts(solution):
        dim = "dim" if part == "training" and solution.held_out else ""
        tokens = next(iter(answers.values())).num_tokens
        table.add_row(Text(part, style=f"italic {dim}"), Text(f"{tokens:,} tokens", style=f"italic {dim}"), style=dim)
        reference = answers[REFERENCE]
        for name, evaluation in answers.items():
            bold = " bold" if name == solution.result_name else ""
            table.add_row(_name(name, indent=1), *_cells(evaluation, reference), style=(dim + bold).strip())
        table.add_section()
    return table


def evaluation_table(names: Sequence[str], evaluations: Sequence[Evaluation]) -> Table:
    """One row a map; changes are against the map named eplb, else against the first."""
    reference = names.index(REFERENCE) if REFERENCE in names else 0
    table = _table(REFERENCE if REFERENCE in names else "first")
    for name, evaluation in zip(names, evaluations, strict=True):
        table.add_row(_name(name), *_cells(evaluation, evaluations[reference]))
    return table


def _table(reference: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False)
    table.add_column("\nmap", no_wrap=True, overflow="ellipsis", max_width=NAME_WIDTH)
    for header in (
        "inter-node\nsends/token",
        f"against\n{reference}",
        "inter-node\nbytes/token",
        "rank imb.\nmean (max)",
        "node imb.\nmean",
        "step\ntime µs",
    ):
        table.add_column(header, justify="right", no_wrap=True)
    return table


def _cells(evaluation: Evaluation, reference: Evaluation) -> list[str]:
    summary = evaluation.summary()
    sends = summary["node_sends_per_token"]
    rank = summary["rank_imbalance"]
    return [
        number(sends),
        NONE_SELF if evaluation is reference else change(sends, reference.summary()["node_sends_per_token"]),
        human_bytes(summary["bytes_per_token"]["node"]),
        f"{number(rank['mean'])} ({number(rank['max'])})",
        number(summary["node_imbalance"]["mean"]),
        number(summary["step_time_us"]),
    ]


NONE_SELF = ""


def _name(name: str, indent: int = 0) -> Text:
    return Text(" " * indent + printable(name))


def printable(text: str) -> str:
    """Names come from files: no escape sequence of theirs reaches the terminal."""
    return "".join(letter if letter.isprintable() else UNPRINTABLE for letter in text)
