"""A plain replay of steps, token by token."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import steps_reference as plain
from evaluation_cases import Case

from placement.cost.choices import REPLICA_CHOICES
from placement.cost.kernel_balanced import RunningLoad
from placement.cost.lookup_tables import layer_tables

NAMES = ("busiest_gpu", "busiest_link", "busiest_sends", "sends", "step_us")
QUICK = mock.patch.multiple("placement.cost.steps.uniform", MOST_DRAWN=0, FEWEST_LAYERS=1)


def reference(case: Case, phase_T: np.ndarray, transport: str, size: int, most: int, seed: int) -> dict[str, Any]:
    """Figures by phase; None of a phase in which no step is full."""
    cluster = case.cluster
    shape = {"nodes": cluster.num_nodes, "gpus": cluster.gpus_per_node}
    facts = plain.Cluster(
        **shape,
        speeds=(np.array(cluster.gpu_speeds) / np.mean(cluster.gpu_speeds)).tolist(),
        fare=[
            [0.0 if a == b else cluster.inter_gbps / min(x, y) for b, y in enumerate(cluster.topology.node_gbps)]
            for a, x in enumerate(cluster.topology.node_gbps)
        ],
        copy_bits=8 * (cluster.dispatch_bytes + cluster.combine_bytes),
        inter_gbps=cluster.inter_gbps,
        intra_gbps=cluster.intra_gbps,
        expert_bytes=cluster.expert_bytes,
        gpu_tflops=cluster.gpu_tflops,
        memory_gbps=cluster.memory_gbps,
        copy_us=cluster.copy_us,
        latency_us=cluster.latency_us,
        slots=cluster.slots_per_gpu,
        shared=cluster.run_time_balance == "node",
    )
    request_of = case.request_T.tolist()
    shards = [part.tolist() for part in np.array_split(np.arange(len(request_of)), case.num_shards)]
    found: dict[str, Any] = {}
    for phase in ("prefill", "decode"):

        def kept(index: int, prefill: bool = phase == "prefill") -> bool:
            mine = case.selected_Q is None or case.selected_Q[request_of[index]]
            return bool(mine) and (phase_T[index] == 0) == prefill

        steps: list[list[plain.Token]] = []
        tokens = 0
        draw = Draw(case)
        rows: list[list[tuple[float, ...]]] = []
        for window in plain.windows(shards, kept, most):
            tokens += len(window)
            homes = None if case.home_Q is None else case.home_Q.tolist()
            order = plain.run_order(window, request_of, prefill=phase == "prefill", home_of=homes, seed=seed, **shape)
            served = [[draw(layer, token) for token in order] for layer in range(case.num_layers)]
            of_step = size * cluster.num_ranks
            for start in range(0, len(order) - of_step + 1, of_step):
                steps.append(order[start : start + of_step])
                rows.append(
                    [plain.layer_of_step(ranks[start : start + of_step], facts, transport, size) for ranks in served]
                )
        if not tokens:
            continue
        left_out = tokens - sum(map(len, steps))
        over = None
        if rows:
            sums = np.array([np.sum(row, axis=0) for row in rows])
            scale = np.array([case.num_layers] * 4 + [1])
            over = {
                name: plain.over_steps(column.tolist())
                for name, column in zip(NAMES, (sums[:, :5] / scale).T, strict=True)
            }
            terms = sums[:, 5:]
            largest = terms >= terms.max(axis=1, keepdims=True) * (1 - 1e-12)
            over |= {"terms": terms.mean(axis=0), "most": largest.mean(axis=0)}
        found[phase] = (len(steps), left_out, over)
    return found


class Draw:
    """The slots that serve a token, by the engine's own rule, asked token by token."""

    def __init__(self, case: Case) -> None:
        self.case, self.choice = case, REPLICA_CHOICES.make(case.choice)
        self.running: dict[tuple[int, int], RunningLoad] = {}

    def __call__(self, layer: int, token: plain.Token) -> tuple[int, list[int]]:
        case, cluster = self.case, self.case.cluster
        ids = case.ids_LTK[layer, token.index]
        slots = case.phy2log_LP[layer].tolist()
        if len(slots) == case.num_experts:
            chosen = [slots.index(e) for e in ids.tolist() if e >= 0]
        else:
            running = self.running.setdefault((layer, token.rank), RunningLoad.start(cluster))
            tables = layer_tables(case.phy2log_LP[layer], case.num_experts, cluster)
            slot_TK = np.empty((1, len(ids)), dtype=np.int32)
            self.choice.drawer(tables, token.rank, cluster)(ids[None].astype(np.int64), running, slot_TK)
            chosen = [slot for slot in slot_TK[0].tolist() if slot >= 0]
            assert [slots[slot] for slot in chosen] == [e for e in ids.tolist() if e >= 0]
        return token.rank, chosen
