"""The one door to the kernels: what one layer's map costs on tokens, and what it costs from each home.

Which kernel fits is decided here for maps with one copy of every expert, and by the replica choice for others.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from placement.core.cluster import Cluster
from placement.cost.choices.base import Floats, HomeCoster, LayerCost, LayerTokens, ReplicaChoice
from placement.cost.kernel_homes import cost_of_single
from placement.cost.kernel_single import cost_single
from placement.cost.lookup_tables import LayerTables
from placement.cost.sets import any_short
from placement.support.hash64 import mixed_order
from placement.traces.format import id_dtype


def cost_layer(tokens: LayerTokens, choice: ReplicaChoice, layer: LayerCost) -> None:
    """Add what the tokens send, and which slots serve them, to what the layer has cost."""
    short = any_short(tokens.ids_UK)
    if short:
        _count_lacking(tokens, layer.traffic.lacking_H)
    if layer.tables.one_copy:
        # in the types of traces, so that the kernel is compiled for no others
        ids_UK = tokens.ids_UK.astype(id_dtype(len(layer.tables.host_E), short=short), copy=False)
        cost_single(ids_UK, tokens.count_U, tokens.home_U, layer.tables, layer.traffic, layer.load_P)
    else:
        choice.cost(tokens, layer)


def _count_lacking(tokens: LayerTokens, lacking_H: Floats) -> None:
    lacking_U = (tokens.ids_UK < 0).sum(axis=1) * tokens.count_U
    known_X = np.bincount(tokens.home_U + 1, weights=lacking_U, minlength=len(lacking_H) + 1)
    lacking_H += known_X[1:] + known_X[0] / len(lacking_H)


def in_server_order(tokens: LayerTokens) -> LayerTokens:
    """Every token on its own, in an order that looks random and depends on nothing but how many there are."""
    row_T = np.repeat(np.arange(len(tokens.count_U)), tokens.count_U)
    row_T = row_T[mixed_order(len(row_T))]
    once_T = np.ones(len(row_T), dtype=np.int64)
    return LayerTokens(tokens.ids_UK[row_T], once_T, tokens.home_U[row_T], tokens.homes_random)


def home_coster(
    tables: LayerTables, choice: ReplicaChoice, cluster: Cluster, fare_HX: Floats, distinct: bool
) -> HomeCoster:
    """What adds up the costs of homes; with several copies of experts, fares of ranks are the mean of their node's."""
    if not tables.one_copy:
        fare_HN = fare_HX.reshape(cluster.num_nodes, cluster.num_nodes, -1).mean(axis=2)
        return choice.home_coster(tables, cluster, fare_HN, distinct)
    first = tables.slot_ptr_E[:-1]
    node_E = tables.slot_node[first].astype(np.int64)
    unit_E = node_E if fare_HX.shape[1] == cluster.num_nodes else tables.slot_rank[first].astype(np.int64)
    return partial(cost_of_single, unit_E, node_E, fare_HX, distinct)
