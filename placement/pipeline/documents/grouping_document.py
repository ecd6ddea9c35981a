"""A grouped solution as plain data: schema `expert-grouping/2`, and the placement file beside it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from placement.core.migration import map_digest
from placement.documents.parts import ModelPart, ProvenancePart
from placement.grouping.grouping_file import GroupingFile
from placement.grouping.requests import domain_counts
from placement.grouping.router_part import RouterPart
from placement.pipeline.grouped_solution import GroupedSolution


def grouping_file(grouped: GroupedSolution) -> GroupingFile:
    """What `--grouping-out` writes."""
    solution, homes, requests = grouped.solution, grouped.homes, grouped.requests
    model, home_Q = solution.placement.model, grouped.home_Q
    scale = 1.0 / max(int(homes.costs.tokens_Q.sum()) * model.num_layers, 1)
    assignment = homes.assignment
    share = homes.costs.tokens_Q.sum() * (1 + grouped.tolerance) / solution.cluster.num_nodes
    options = asdict(solution.options) | {"holdout": solution.holdout}
    part = ModelPart.of(model).model_dump(exclude_unset=True, exclude={"num_hidden_layers"})
    return GroupingFile.model_validate(
        {
            "schema": GroupingFile.SCHEMA,
            "model": part | {"num_groups": model.num_groups},
            "num_nodes": solution.cluster.num_nodes,
            "placement_hash": map_digest(solution.placement),
            "home_from": grouped.home_from,
            "groups": group_rows(grouped),
            "domains": domain_rows(grouped),
            "balance": {
                "tolerance": grouped.tolerance,
                "kept": bool(assignment.load_N.max(initial=0) <= share),
                "train": round(assignment.token_imbalance, 6),
                "held_out": None if homes.held_out_Q is None else round(grouped.held_out_balance(homes.held_out_Q), 6),
                "routed": None if homes.routed_Q is None else round(grouped.held_out_balance(homes.routed_Q), 6),
            },
            "cost": {
                "sends_per_token": round(assignment.cost * scale, 9),
                "bound": round(assignment.bound * scale, 9),
                "gap": round(assignment.gap, 9),
            },
            "gains": [
                {
                    "name": one.name,
                    "homes": "random" if one.homes is None else "grouped",
                    "train": one.train.summary(),
                    "held_out": None if one.held_out is None else one.held_out.summary(),
                    "routed": None if one.routed is None else one.routed.summary(),
                }
                for one in grouped.gains
            ],
            "sources": [asdict(one) for one in homes.sources],
            "session_tokens": None if homes.session_tokens is None else round(homes.session_tokens, 1),
            "without_tokens": [name for name, home in zip(requests.ids, home_Q, strict=True) if home < 0],
            "provenance": ProvenancePart.of(options, solution.cluster, solution.input_hash),
            "router": RouterPart.of(homes.router, keeps=round(homes.router_keeps, 6)),
            "homes": {name: int(home) for name, home in zip(requests.ids, home_Q, strict=True) if home >= 0},
        }
    )


def group_rows(grouped: GroupedSolution) -> list[dict[str, Any]]:
    """Requests, tokens and domains of each node."""
    rows = []
    for node in range(grouped.solution.cluster.num_nodes):
        mine = np.flatnonzero(grouped.home_Q == node)
        rows.append(
            {
                "node": node,
                "requests": len(mine),
                "tokens": int(grouped.tokens_Q[mine].sum()),
                "domains": domain_counts([grouped.requests.domains[q] for q in mine]),
            }
        )
    return rows


def domain_rows(grouped: GroupedSolution) -> list[dict[str, Any]]:
    """Where the training requests of each domain went and what they send, before and after; most tokens first."""
    placed = grouped.gains[-3] if len(grouped.gains) > 5 else grouped.gains[-1]
    before, after = placed.homes, grouped.homes
    if before is None:
        return []
    num_nodes, num_layers = grouped.solution.cluster.num_nodes, grouped.solution.placement.model.num_layers
    tokens_Q, home_Q = after.costs.tokens_Q, after.assignment.home_Q
    names = np.array(grouped.requests.domains)
    rows = []
    for name in sorted(set(grouped.requests.domains)):
        mine = np.flatnonzero((names == name) & (tokens_Q > 0))
        tokens = int(tokens_Q[mine].sum())
        if not tokens:
            continue
        scale = 1.0 / (tokens * num_layers)
        rows.append(
            {
                "domain": name,
                "tokens": tokens,
                "tokens_by_node": np.bincount(home_Q[mine], tokens_Q[mine], num_nodes).astype(int).tolist(),
                "sends_before": round(float(before.costs.cost_QN[mine].mean(axis=1).sum()) * scale, 6),
                "sends_after": round(float(after.costs.cost_QN[mine, home_Q[mine]].sum()) * scale, 6),
            }
        )
    return sorted(rows, key=lambda row: (-row["tokens"], row["domain"]))
