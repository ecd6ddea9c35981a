"""Writes dumps of SGLang's recorder: by token, by pass, as a statistic, and of a server with drafts."""

from __future__ import annotations

from typing import Any

import numpy as np
from recorded_routing import (
    DUMMIES,
    EXPERTS,
    FIRST_ID,
    IDS,
    LAYERS,
    PASSES,
    REQUESTS,
    SLOTS,
    TOP_K,
    expect,
    expect_counts,
    folder,
    pass_counts,
    slots_of,
    tokens_of,
)


def sglang() -> None:
    import torch

    which = np.random.default_rng(3)
    slot_map = torch.tensor(SLOTS)
    records, passes = [], []
    dummy = np.full((3, DUMMIES, 8), -1, dtype=np.int32)
    dummy[1:, :, :2] = [2, 3]
    rows: list[tuple[int, list[int], list[int], np.ndarray, list[int]]] = []
    rows.append((1, list(range(DUMMIES)), [DUMMIES], dummy, [7] * DUMMIES))
    for mode, parts in PASSES:
        ids = np.concatenate([IDS[name][first : first + size] for name, first, size in parts])
        physical = np.full((3, len(ids), 8), -1, dtype=np.int32)
        for number, layer in enumerate(LAYERS):
            physical[layer, :, :TOP_K] = slots_of(ids[:, number], layer, which)
        positions = [first + one for _, first, size in parts for one in range(size)]
        tokens = [FIRST_ID[name] + first + one for name, first, size in parts for one in range(size)]
        rows.append((mode, positions, [size for _, _, size in parts], physical, tokens))
    rows.append((4, [], [], np.full((3, 0, 8), -1, dtype=np.int32), []))
    for number, (mode, positions, lengths, physical, tokens) in enumerate(rows):
        count = np.zeros((3, 8), dtype=np.int32)
        for layer in LAYERS:
            used = physical[layer][physical[layer] >= 0]
            np.add.at(count[layer], used, 1)
        common = {"forward_pass_id": number, "rank": 0, "gatherer_key": "primary"}
        records.append(
            common
            | {
                "input_ids": tokens,
                "positions": positions,
                "extend_seq_lens": None if mode == 2 else lengths,
                "forward_mode": mode,
                "topk_ids_of_layer": torch.tensor(physical),
                "misc_objects": [],
                "global_physical_count": torch.tensor(count),
            }
        )
        passes.append(common | {"global_physical_count": torch.tensor(count)})
    path = folder("sglang/per-token")
    torch.save(
        {"records": records, "last_physical_to_logical_map": slot_map},
        path / "expert_distribution_recorder_1764000000.5_0.pt",
    )
    # the warm-up pass was request 0
    requests = {str(number): tokens_of(name, ids=True) for number, name in enumerate(REQUESTS, start=1)}
    expect("sglang/per-token", requests, "per-token", left_out={"warm-up tokens": DUMMIES})

    path = folder("sglang/per-pass")
    for rank in range(2):  # two ranks with data parallel attention: halves of the counts
        mine = [one | {"rank": rank, "global_physical_count": one["global_physical_count"]} for one in passes[1:-1]]
        for one in mine:
            half = one["global_physical_count"] // 2
            one["global_physical_count"] = half if rank else one["global_physical_count"] - half
        torch.save(
            {"records": mine, "last_physical_to_logical_map": slot_map},
            path / f"expert_distribution_recorder_1764000000.5_{rank}.pt",
        )
    expect_counts("sglang/per-pass", pass_counts(), "per-pass", {"top_k": TOP_K})

    path = folder("sglang/stat")
    ring = np.zeros((8, 3, EXPERTS), dtype=np.int32)
    ring[: len(PASSES), 1:] = pass_counts()
    torch.save(
        {"rank": 0, "logical_count": torch.tensor(ring), "average_utilization_rate_over_window": None},
        path / "expert_distribution_recorder_1764000000.5.pt",
    )
    expect_counts("sglang/stat", pass_counts(), "stat", {"top_k": TOP_K}, left_out={"unused rows": 3})


def speculative() -> None:
    """SGLang with one draft a request: a and b are verified, c joins without an answer, the draft model is recorded."""
    import torch

    other = np.random.default_rng(11)
    extra = {  # drafts: (request, position) -> their sets
        place: np.argsort(other.random((len(LAYERS), EXPERTS)), axis=1)[:, :TOP_K]
        for place in (("b", 5), ("a", 8), ("b", 6))
    }
    # (mode, rows of the pass as (request, position, set of a draft or of the token))
    passes: list[tuple[int, list[tuple[str, int, np.ndarray | None]], list[int] | None]] = []

    def rows(name: str, first: int, size: int) -> list[tuple[str, int, np.ndarray | None]]:
        return [(name, at, IDS[name][at]) for at in range(first, first + size)]

    passes.append((1, rows("a", 0, 5) + rows("b", 0, 4), [5, 4]))
    passes.append((5, [*rows("a", 5, 2), ("b", 4, IDS["b"][4]), ("b", 5, extra["b", 5])], None))  # b's was rejected
    passes.append((6, [("a", 6, None), ("a", 7, None), ("b", 5, None), ("b", 6, None)], [2, 2]))  # the draft model
    passes.append((1, rows("c", 0, 3), [3]))
    passes.append((1, [("c", at, None) for at in range(3)], [3]))
    last = [("a", 7, IDS["a"][7]), ("a", 8, extra["a", 8]), ("b", 5, IDS["b"][5]), ("b", 6, extra["b", 6])]
    passes.append((5, last, None))
    records = []
    for number, (mode, found, lengths) in enumerate(passes):
        ids = np.full((3, len(found), 8), -1, dtype=np.int32)
        for row, (_, _, sets) in enumerate(found):
            if sets is not None:
                ids[LAYERS, row, :TOP_K] = sets
        names = {"forward_pass_id": number, "rank": 0, "gatherer_key": "primary", "input_ids": [7] * len(found)}
        names |= {"positions": [position for _, position, _ in found], "extend_seq_lens": lengths, "forward_mode": mode}
        records.append(names | {"topk_ids_of_layer": torch.tensor(ids), "misc_objects": []})
    path = folder("sglang/speculative")
    torch.save(
        {"records": records, "last_physical_to_logical_map": torch.arange(EXPERTS)[None].repeat(3, 1)},
        path / "expert_distribution_recorder_1764000000.5_0.pt",
    )

    def draft(name: str, position: int, phase: int) -> dict[str, Any]:
        return {"position": position, "phase": phase, "ids": extra[name, position].tolist(), "token": 7}

    tokens = {name: [one | {"token": 7} for one in tokens_of(name)] for name in REQUESTS}
    tokens["a"].append(draft("a", 8, 1))  # of the last pass nothing says what was accepted
    tokens["b"][5:5] = [draft("b", 5, 2)]
    tokens["b"].append(draft("b", 6, 1))
    requests = {str(number): tokens[name] for number, name in enumerate(REQUESTS)}
    expect("sglang/speculative", requests, "speculative")
