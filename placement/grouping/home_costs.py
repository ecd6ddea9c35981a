"""What each request of a trace sends from each node, if that were its home."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from placement.core.cluster import Cluster
from placement.core.placement import Placement
from placement.cost.lookup_tables import layer_tables
from placement.cost.replica_choice import MIN_NODES, MIN_NODES_BALANCED, UNIFORM, replica_choice_code
from placement.cost.transport import fare_HX
from placement.errors import OptionError
from placement.grouping.home_kernels import cost_of_chances, cost_of_covers, cost_of_single
from placement.grouping.requests import Requests
from placement.support.parallel import run_tasks
from placement.traces.token_order import TokenBatch, token_batches
from placement.traces.trace import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class HomeCosts:
    """Exact sums over the kept tokens of a trace, weighed by the fares of the transport.

    cost_LQN   float64 [L, Q, N], what the tokens of request q send in layer l if their home is node n
    tokens_Q   int64 [Q], its kept tokens
    saved_LEN  float64 [L, E, N], what homes save against the dearest home of each token, shared evenly by those of the
               token's experts that the home hosts
    load_LE    int64 [L, E], assignments of every expert
    """

    cost_LQN: npt.NDArray[np.float64]
    tokens_Q: npt.NDArray[np.int64]
    saved_LEN: npt.NDArray[np.float64]
    load_LE: npt.NDArray[np.int64]

    @property
    def cost_QN(self) -> npt.NDArray[np.float64]:
        """All layers together."""
        return np.asarray(self.cost_LQN.sum(axis=0))


def home_costs(
    trace: Trace,
    requests: Requests,
    placement: Placement,
    cluster: Cluster,
    *,
    replica_choice: str = "min-nodes",
    transport: str = "node",
    executor: Executor | None = None,
) -> HomeCosts:
    """One pass over the trace; `min-nodes-balanced` sends what `min-nodes` sends.

    With several copies of experts `rank` is counted by nodes, and the fares of ranks are the mean of their node's.
    Raises OptionError for `allgather`.
    """
    if transport == "allgather":
        raise OptionError(
            "transport='allgather' sends every token everywhere, so homes change nothing; group for another transport"
        )
    model, code = trace.model, replica_choice_code(replica_choice)
    single = placement.num_redundant == 0
    by_cover = not single and code in (MIN_NODES, MIN_NODES_BALANCED)
    fares = fare_HX(cluster, transport)
    if not single:
        fares = fares.reshape(cluster.num_nodes, cluster.num_nodes, -1).mean(axis=2)
    distinct = transport != "assignment"
    tables = [
        layer_tables(
            row, num_experts=model.num_experts, num_nodes=cluster.num_nodes, gpus_per_node=cluster.gpus_per_node
        )
        for row in placement.phy2log_LP
    ]
    cost_LQN = np.zeros((model.num_layers, len(requests.ids), cluster.num_nodes))
    saved_LEN = np.zeros((model.num_layers, model.num_experts, cluster.num_nodes))
    load_LE = np.zeros((model.num_layers, model.num_experts), dtype=np.int64)
    tokens_Q = np.zeros(len(requests.ids), dtype=np.int64)
    chance_LEHN = (
        {}
        if single or by_cover
        else {
            n: _chances(one.host_E, placement.phy2log_LP[n], cluster, code == UNIFORM) for n, one in enumerate(tables)
        }
    )
    for tokens in token_batches(trace, mixed=False):
        request_T = requests.request_E[tokens.request_T]

        def book(layer: int, tokens: TokenBatch = tokens, request_T: npt.NDArray[np.int32] = request_T) -> None:
            ids_TK = tokens.ids_TK(layer)
            load_LE[layer] += np.bincount(ids_TK.ravel(), minlength=model.num_experts)
            out = (fares, distinct, cost_LQN[layer], saved_LEN[layer])
            one = tables[layer]
            if single:
                first = one.slot_ptr_E[:-1]
                node_E = one.slot_node[first].astype(np.int64)
                by_node = fares.shape[1] == cluster.num_nodes
                unit_E = node_E if by_node else one.slot_rank[first].astype(np.int64)
                cost_of_single(ids_TK, request_T, unit_E, node_E, *out)
            elif by_cover:
                cost_of_covers(ids_TK, request_T, one.host_E, *out)
            else:
                cost_of_chances(ids_TK, request_T, one.host_E, chance_LEHN[layer], *out)

        run_tasks(book, range(model.num_layers), executor)
        tokens_Q += np.bincount(request_T, minlength=len(tokens_Q))
    return HomeCosts(cost_LQN=cost_LQN, tokens_Q=tokens_Q, saved_LEN=saved_LEN, load_LE=load_LE)


def _chances(
    host_E: npt.NDArray[np.uint64], phy2log_P: npt.NDArray[np.integer], cluster: Cluster, uniform: bool
) -> npt.NDArray[np.float64]:
    """The chance that node n serves expert e for home h, [E, H, N]: any copy, or those of the home if it has some."""
    copies_EN = np.zeros((len(host_E), cluster.num_nodes))
    np.add.at(copies_EN, (phy2log_P, cluster.node_of_slot_P()), 1.0)
    chance_EHN = np.repeat((copies_EN / copies_EN.sum(axis=1, keepdims=True))[:, None], cluster.num_nodes, axis=1)
    if not uniform:
        e, h = np.nonzero(copies_EN)
        chance_EHN[e, h] = 0.0
        chance_EHN[e, h, h] = 1.0
    return chance_EHN
