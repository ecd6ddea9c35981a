"""Solvers where GPUs of a node share load at run time: nodes take the place of ranks, then experts go to GPUs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from placement.core.cluster import Cluster
from placement.solvers.base import Solver
from placement.solvers.problem import LayerProblem, LayerSolution

Row = npt.NDArray[np.int32]


class SharedNodes:
    """A solver that is asked about what is left to place, see `LayerProblem.balanced`; its bounds and proofs hold."""

    def __init__(self, solver: Solver) -> None:
        self._solver = solver
        self.name = solver.name

    def unsupported(self, problem: LayerProblem) -> str | None:
        return self._solver.unsupported(problem.balanced())

    def solve_layer(self, problem: LayerProblem) -> LayerSolution:
        left = problem.balanced()
        solution = self._solver.solve_layer(left)
        if left is problem:
            return solution
        near = problem.starts[-1] if problem.starts else None
        return replace(solution, phy2log_P=spread(solution.phy2log_P, problem.load_E, problem.cluster, near))


def spread(row: Row, load_E: npt.NDArray[np.float64], cluster: Cluster, near: Row | None = None) -> Row:
    """The same experts on every node, shared by its GPUs so that little is left to balance at run time.

    Hottest first, each goes to the GPU with the least load for its speed.

    Args:
        row: A map, int32 [P], no expert twice on a node.
        load_E: Load of every expert, which its slots share.
        cluster: Where the slots are.
        near: A map in use, int32 [P]: experts that a GPU holds there and that stay on its node stay on the GPU.
    """
    gpus, slots, speed_G = cluster.gpus_per_node, cluster.slots_per_gpu, cluster.speed_G()
    each_E = load_E / np.maximum(np.bincount(row, minlength=len(load_E)), 1)
    answer = np.empty_like(row)
    for node in range(cluster.num_nodes):
        first = node * cluster.slots_per_node
        mine = row[first : first + cluster.slots_per_node]
        held: list[list[int]] = [[] for _ in range(gpus)]
        if near is not None:
            left = set(mine.tolist())
            for gpu, old in enumerate(near[first : first + len(mine)].reshape(gpus, slots).tolist()):
                held[gpu] = [expert for expert in dict.fromkeys(old) if expert in left]
                left -= set(held[gpu])
            mine = np.array([expert for expert in mine.tolist() if expert in left], dtype=row.dtype)
        load_g = np.array([each_E[experts].sum() for experts in held])
        for expert in mine[np.argsort(-each_E[mine], kind="stable")].tolist():
            time_g = (load_g + each_E[expert]) / speed_G[node * gpus : (node + 1) * gpus]
            gpu = min((g for g in range(gpus) if len(held[g]) < slots), key=time_g.__getitem__)
            held[gpu].append(expert)
            load_g[gpu] += each_E[expert]
        answer[first : first + cluster.slots_per_node] = np.concatenate(held)
    return answer
