"""The lowest rank imbalance alone: every copy serves an even share of its expert's load, sends do not count.

`balance_maps` does all layers of a model from counts alone, in milliseconds.
Starts are EPLB's maps and heaviest-first packings of several ways to share out the slots; then swaps refine them. So
no layer is less balanced than EPLB's.
"""

from __future__ import annotations

from concurrent.futures import Executor

import numpy as np
import numpy.typing as npt

from placement.core.cluster import Cluster
from placement.errors import OptionError
from placement.solvers.balancing.balance_kernels import balanced_row, highest
from placement.solvers.eplb import balanced_packing, eplb_row
from placement.solvers.moves import separate
from placement.support.kernel import inner_kernel, kernel
from placement.support.parallel import run_tasks

# swaps and recounts that `balance_maps` looks at in a layer: some 0.1 ms where there are 288 slots
LEAST_WORK, WORK_PER_SLOT = 30_000, 100

Floats = npt.NDArray[np.float64]
Row = npt.NDArray[np.int32]


def balance_maps(
    load_LE: npt.NDArray[np.number],
    cluster: Cluster,
    *,
    num_groups: int | None = None,
    keep_groups: bool = False,
    executor: Executor | None = None,
    work: int | None = None,
) -> npt.NDArray[np.int32]:
    """Maps of all layers from loads alone.

    Args:
        load_LE: load of every expert, [L, E], in any unit.
        cluster: where the slots are.
        num_groups: routing groups of the model, whose experts are contiguous; a further start is then EPLB's
            hierarchical map, if the nodes divide the groups.
        keep_groups: every group's experts stay on one node, so that group-limited routing reaches few nodes.
        executor: solves layers side by side; the answer does not depend on it.
        work: swaps that the search looks at per layer, at most; None: 100 a slot, at least 30,000.

    Returns:
        The maps, int32 [L, P].

    Raises:
        InfeasibleError: the experts do not fit.
        OptionError: a load is negative or not finite, or the groups cannot be kept.
    """
    load = np.ascontiguousarray(load_LE, dtype=np.float64)
    if load.ndim != 2 or not (np.isfinite(load).all() and (load >= 0).all()):
        raise OptionError(f"load_LE of shape {load.shape} must be [layers, experts] of finite numbers, 0 or more")
    num_experts = load.shape[1]
    cluster.check_fits(num_experts)
    if num_groups is not None and (num_groups < 1 or num_experts % num_groups):
        raise OptionError(f"num_groups={num_groups} must divide the {num_experts} experts of a layer")
    if keep_groups:
        check_groups(num_experts, cluster, num_groups)
    phy2log_LP = np.empty((len(load), cluster.num_slots), dtype=np.int32)
    slowness_G, groups = 1.0 / cluster.speed_G(), num_groups or 1
    limit = max(WORK_PER_SLOT * cluster.num_slots, LEAST_WORK) if work is None else work
    parts = np.array_split(np.arange(len(load)), min(len(load), 16) or 1)

    def task(part: npt.NDArray[np.int64]) -> None:
        lows = slice(part[0], part[-1] + 1) if len(part) else slice(0, 0)
        _balance_layers(
            load[lows],
            phy2log_LP[lows],
            slowness_G,
            cluster.num_nodes,
            cluster.slots_per_gpu,
            groups,
            keep_groups,
            limit,
        )

    run_tasks(task, parts, executor)
    return phy2log_LP


def check_groups(num_experts: int, cluster: Cluster, num_groups: int | None) -> None:
    """Raise OptionError unless every group of experts can be kept on one node."""
    if num_groups is None or num_groups % cluster.num_nodes:
        raise OptionError(
            f"num_groups={num_groups} cannot be kept on {cluster.num_nodes} nodes; a multiple of the nodes is needed"
        )
    each = num_experts // cluster.num_nodes
    if cluster.slots_per_gpu > each:
        raise OptionError(
            f"groups cannot be kept: {each} experts a node are fewer than slots_per_gpu={cluster.slots_per_gpu}, so a "
            "GPU would hold one twice"
        )


@kernel
def _balance_layers(
    load_LE: Floats,
    phy2log_LP: Row,
    slowness_G: Floats,
    num_nodes: int,
    slots: int,
    num_groups: int,
    keep_groups: bool,
    work: int,
) -> None:
    for layer in range(len(load_LE)):
        if keep_groups:
            phy2log_LP[layer] = _grouped_row(load_LE[layer], slowness_G, num_nodes, slots, num_groups, work)
        else:
            starts_XP, beat = _eplb_starts(load_LE[layer], slowness_G, num_nodes, slots, num_groups)
            phy2log_LP[layer] = balanced_row(load_LE[layer], slowness_G, slots, starts_XP, 0.0, beat, work)


@inner_kernel
def _eplb_starts(load_E: Floats, slowness_G: Floats, num_nodes: int, slots: int, num_groups: int) -> tuple[Row, float]:
    """EPLB's maps, the global and the hierarchical one, mended where a rank holds an expert twice.

    And the `highest` of the better one as it was: with an expert twice on a rank it may be below that of valid maps.
    """
    num_ranks = len(slowness_G)
    hierarchical = num_groups > 1 and num_groups % num_nodes == 0
    starts_XP = np.empty((2 if hierarchical else 1, num_ranks * slots), dtype=np.int32)
    starts_XP[0] = eplb_row(load_E, num_ranks * slots, 1, 1, num_ranks)
    if hierarchical:
        starts_XP[1] = eplb_row(load_E, num_ranks * slots, num_groups, num_nodes, num_ranks)
    raw = np.inf
    for start in starts_XP:
        raw = min(raw, highest(start, load_E, slowness_G))
        separate(start, num_ranks, num_ranks // num_nodes, load_E)
    return starts_XP, raw


@inner_kernel
def _grouped_row(load_E: Floats, slowness_G: Floats, num_nodes: int, slots: int, num_groups: int, work: int) -> Row:
    """Groups to nodes as experts to ranks, then every node by itself; with EPLB's groups on the nodes, too."""
    size, each, slots_per_node = (
        len(load_E) // num_groups,
        num_groups // num_nodes,
        len(slowness_G) // num_nodes * slots,
    )
    slowness_N = num_nodes / (1 / slowness_G).reshape(num_nodes, -1).sum(axis=1)
    group_load = load_E.reshape(num_groups, size).sum(axis=1)
    node_G, place_G = balanced_packing(group_load, num_nodes)
    theirs = np.empty((1, num_groups), dtype=np.int32)
    for group in range(num_groups):
        theirs[0, node_G[group] * each + place_G[group]] = group
    ours = balanced_row(group_load, slowness_N, each, theirs, 0.0, np.inf, work)
    beat = highest(
        eplb_row(load_E, num_nodes * slots_per_node, num_groups, num_nodes, len(slowness_G)).astype(np.int32),
        load_E,
        slowness_G,
    )
    best, least = np.empty(num_nodes * slots_per_node, dtype=np.int32), np.inf
    for groups in (ours, theirs[0]):
        row = np.empty(num_nodes * slots_per_node, dtype=np.int32)
        _pack_nodes(row, load_E, slowness_G, slots, groups, num_nodes, beat, work)
        peak = highest(row, load_E, slowness_G)
        if peak < least:
            best, least = row, peak
        if np.array_equal(ours, theirs[0]):
            break
    return best


@inner_kernel
def _pack_nodes(
    row: Row, load_E: Floats, slowness_G: Floats, slots: int, groups: Row, num_nodes: int, beat: float, work: int
) -> None:
    """Fill `row` with every node's map of its `groups`; the hardest node first, others need not be more even."""
    gpus, size, each = len(slowness_G) // num_nodes, len(load_E) // len(groups), len(groups) // num_nodes
    own_NE = np.empty((num_nodes, each * size), dtype=np.int64)
    mean_N = np.empty(num_nodes)
    for n in range(num_nodes):
        for i in range(each):
            own_NE[n, i * size : (i + 1) * size] = groups[n * each + i] * size + np.arange(size)
        mean_N[n] = load_E[own_NE[n]].sum() / (1 / slowness_G[n * gpus : (n + 1) * gpus]).sum()
    peak = 0.0
    for n in np.argsort(-mean_N, kind="mergesort"):
        load_own, slowness_own = load_E[own_NE[n]], slowness_G[n * gpus : (n + 1) * gpus].copy()
        starts_XP, _ = _eplb_starts(load_own, slowness_own, 1, slots, 1)
        local = balanced_row(load_own, slowness_own, slots, starts_XP, peak, beat, work // num_nodes)
        row[n * gpus * slots : (n + 1) * gpus * slots] = own_NE[n][local]
        peak = max(peak, highest(local, load_own, slowness_own))
