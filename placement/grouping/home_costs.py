"""What each request of a trace sends from each node, if that were its home."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from placement.core.choices import REPLICA_CHOICE, TRANSPORT
from placement.core.cluster import Cluster
from placement.core.placement import Placement, check_same_slots
from placement.cost.choices import REPLICA_CHOICES
from placement.cost.choices.base import HomeCoster
from placement.cost.cost_layer import home_coster
from placement.cost.lookup_tables import layer_tables
from placement.cost.sets import load_of
from placement.cost.transport import fare_HX
from placement.cost.transports import TRANSPORTS
from placement.errors import OptionError
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
    replica_choice: str = REPLICA_CHOICE,
    transport: str = TRANSPORT,
    executor: Executor | None = None,
) -> HomeCosts:
    """One pass over the trace; `min-nodes-balanced` sends what `min-nodes` sends.

    With several copies of experts `rank` is counted by nodes, and the fares of ranks are the mean of their node's.
    Raises OptionError for a transport that sends every token everywhere.
    """
    model = trace.model
    costers = home_costers(placement, cluster, replica_choice=replica_choice, transport=transport)
    cost_LQN = np.zeros((model.num_layers, len(requests.ids), cluster.num_nodes))
    saved_LEN = np.zeros((model.num_layers, model.num_experts, cluster.num_nodes))
    load_LE = np.zeros((model.num_layers, model.num_experts), dtype=np.int64)
    tokens_Q = np.zeros(len(requests.ids), dtype=np.int64)
    for tokens in token_batches(trace, mixed=False):
        request_T = requests.request_E[tokens.request_T]

        def book(layer: int, tokens: TokenBatch = tokens, request_T: npt.NDArray[np.int32] = request_T) -> None:
            ids_TK = tokens.ids_TK(layer)
            load_LE[layer] += load_of(ids_TK, model.num_experts)
            costers[layer](ids_TK, request_T, cost_LQN[layer], saved_LEN[layer])

        run_tasks(book, range(model.num_layers), executor)
        tokens_Q += np.bincount(request_T, minlength=len(tokens_Q))
    return HomeCosts(cost_LQN=cost_LQN, tokens_Q=tokens_Q, saved_LEN=saved_LEN, load_LE=load_LE)


def home_costers(placement: Placement, cluster: Cluster, *, replica_choice: str, transport: str) -> list[HomeCoster]:
    """What adds up the costs of homes, for every layer. Raises OptionError as `home_costs`."""
    carrier = TRANSPORTS.make(transport)
    if carrier.everywhere:
        raise OptionError(
            f"transport={transport!r} sends every token everywhere, so homes change nothing; group for another "
            "transport"
        )
    check_same_slots(placement, "grouping")
    choice, fares = REPLICA_CHOICES.make(replica_choice), fare_HX(cluster, transport)
    tables = [layer_tables(row, placement.model.num_experts, placement) for row in placement.phy2log_LP]
    return [home_coster(one, choice, cluster, fares, carrier.distinct) for one in tables]
