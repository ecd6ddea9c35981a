"""One self-contained HTML page about a solution: no script, nothing fetched, the same bytes every time."""

from __future__ import annotations

from typing import Any

from placement.errors import printable
from placement.pipeline.by_class_solution import ByClass
from placement.pipeline.grouped_solution import GroupedSolution
from placement.pipeline.solution import Solution, solution_document
from placement.report.classes.classes_report import class_table
from placement.report.drawing.page import render
from placement.report.solution import solution_charts as figures
from placement.report.solution.expert_maps import CLASS_LABELS, layer_maps
from placement.report.solution.grouping_section import grouping_page
from placement.report.solution.part_tables import part_table
from placement.report.solution.summary import (
    REFERENCE,
    baseline_of,
    headline,
    objective,
    parts,
    proof,
    sends_known,
    shown_part,
    tiles,
)
from placement.report.solution.traffic_charts import busiest_link_L, traffic_maps

TEMPLATE = "solution/solution.html.j2"


def report_html(solution: Solution, *, grouped: GroupedSolution | None = None, by_class: ByClass | None = None) -> str:
    """The report as text; write it with `placement.support.atomic_files.write_atomic`.

    grouped, by_class: what `solution` was taken from, if it was solved with homes or beside maps by class
    """
    sections = {
        "grouping": None if grouped is None else grouping_page(grouped),
        "classes_of_traffic": None if by_class is None else class_table(by_class),
    }
    return render(TEMPLATE, _context(solution) | sections)


def _context(solution: Solution) -> dict[str, Any]:
    part, answers = shown_part(solution)
    other = baseline_of(solution)
    layer_ids, whose = solution.placement.model.layer_ids, f", {part} requests"
    sends = {name: answer.sends_L for name, answer in answers.items()}
    imbalance = {name: answer.rank_imbalance_L() for name, answer in answers.items()}
    loads = {name: figures.rank_load_LG(answer) for name, answer in answers.items()}
    reach, heatmaps = figures.heatmaps(loads, layer_ids, solution.cluster, whose)
    link = {name: busiest_link_L(answer) for name, answer in answers.items()}
    before, after = (answers[name].layers() for name in (other, solution.result_name))
    provenance = solution_document(solution)["provenance"]
    return {
        "model": solution.placement.model,
        "model_name": printable(solution.placement.model.name),
        "cluster": solution.cluster,
        "solution": solution,
        "part": part,
        "headline": headline(solution),
        "proof": proof(solution),
        "tiles": tiles(answers[solution.result_name].summary(), answers[other].summary(), other),
        "comparison": [
            (name, {map_name: (answer.summary(), answer.bytes_per_token()) for map_name, answer in answers.items()})
            for name, answers in parts(solution)
        ],
        "legend": [(name, figures.series_of(name), figures.shape_of(name)) for name in answers],
        "sends_known": sends_known(solution),
        "tradeoff": figures.tradeoff(solution) if sends_known(solution) else None,
        "sends_by_layer": figures.by_layer(layer_ids, sends, figures.SENDS, whose) if sends_known(solution) else None,
        "by_part": part_table(solution),
        "objective": objective(solution),
        "imbalance_by_layer": figures.by_layer(layer_ids, imbalance, figures.IMBALANCE, whose),
        "traffic": traffic_maps(answers, whose),
        "link_by_layer": figures.by_layer(layer_ids, link, figures.LINK, whose) if sends_known(solution) else None,
        "heatmaps": heatmaps,
        "reach": reach,
        "layers": list(zip(solution.layers, before, after, strict=False)),  # a given map was not solved: no layers
        "maps": layer_maps(solution),
        "classes": CLASS_LABELS,
        "provenance": _provenance(solution, provenance),
        "reference": REFERENCE,
        "baseline": other,
        "nodes_are_parted": figures.nodes_are_parted(solution.cluster.num_nodes, solution.cluster.gpus_per_node),
    }


def _provenance(solution: Solution, provenance: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    model = solution.placement.model
    about = [
        ("expert-placement", str(provenance["version"])),
        ("seed", str(provenance["seed"])),
        ("input hash", str(provenance["input_hash"])),
        ("model", printable(model.name)),
        ("layers", f"{model.num_layers} ({model.layers_said})"),
        ("experts, top-k", f"{model.num_experts}, {model.top_k}"),
        ("slots, redundant", f"{solution.placement.num_slots}, {solution.placement.num_redundant}"),
    ]
    return [
        ("Origin", about),
        ("Options", [(name, _plain(value)) for name, value in provenance["options"].items() if name != "seed"]),
        ("Cluster", [(name, _plain(value)) for name, value in provenance["cluster"].items()]),
    ]


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, dict):
        return "; ".join(f"{name} {_plain(one)}" for name, one in value.items() if one != []) or "all alike"
    if isinstance(value, (tuple, list)) and value and isinstance(value[0], list):
        return f"{len(value)} × {len(value[0])} numbers"
    if isinstance(value, (tuple, list)):
        return ", ".join(map(_plain, value)) or "all alike"
    return f"{value:,}" if isinstance(value, (int, float)) else str(value)
