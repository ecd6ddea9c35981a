"""Hops by DeepEP v2 (`ElasticBuffer`) instead of our own: for Hopper GPUs, NVLink, NCCL 2.30.4. Not run on a GPU.

Written to the signatures of DeepEP's `deep_ep/buffers/elastic.py` (commit 0297fc8), and tested against a stand-in that
keeps to them. What DeepEP lacks and our hops have: headers in every exchange, so maps are compared when the dispatcher
is made and not again, and another rank's bad input is told on that rank alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from placement.core.choices import REPLICA_CHOICE
from placement.core.cluster import Cluster
from placement.errors import OptionError
from placement.runtime.dispatcher import Dispatcher
from placement.runtime.handle import Arrival
from placement.runtime.header import Announced, Exchange, announce, fault_error
from placement.runtime.layer_map import LayerMap
from placement.runtime.overlap import Meanwhile
from placement.runtime.transport.base import Group, Mesh
from placement.runtime.wire import Wire


class DeepEPBuffer:
    """One rank's `ElasticBuffer`, which the dispatchers of all layers share: a layer's exchange ends before the next.

    Args:
        hidden: Hidden size.
        top_k: Experts of a token.
        max_tokens: Most tokens that a rank brings, the same on all ranks.
        process_group: All ranks; None: the default group.

    Raises:
        OptionError: DeepEP is not installed.
    """

    def __init__(
        self, *, hidden: int, top_k: int, max_tokens: int, process_group: dist.ProcessGroup | None = None
    ) -> None:
        try:
            from deep_ep import ElasticBuffer
        except ImportError:
            raise OptionError(
                "DeepEP is not installed; build deep_ep from its source, or use hops='flat' or 'hierarchical'"
            ) from None
        self.hidden, self.top_k, self.max_tokens = hidden, top_k, max_tokens
        group = process_group or dist.group.WORLD
        self.elastic = ElasticBuffer(group, num_max_tokens_per_rank=max_tokens, hidden=hidden, num_topk=top_k)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepEPHop:
    """In the place of a `HopHandle`."""

    group: Group
    announced: Announced
    buffer: Any
    handle: Any

    def room_for_sums(self, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty((sum(self.announced.recv_rows), columns), dtype=dtype, device=device)

    def back(self, sums: Tensor, _out: None = None, meanwhile: Meanwhile | None = None) -> Tensor:
        if meanwhile is not None:
            meanwhile()
        combined, _, _ = self.buffer.combine(sums.contiguous(), handle=self.handle)  # an event only if asynchronous
        return combined  # type: ignore[no-any-return]


class DeepEPDispatcher(Dispatcher):
    """A `Dispatcher` for bfloat16 on CUDA; slots are DeepEP's experts.

    Args:
        mesh: This rank's groups.
        layer_map: The layer's slots.
        buffer: That of this rank, for all layers.
        choice: Replica choice, see `ReplicaChooser`.
        cluster: See `ReplicaChooser`.
    """

    def __init__(
        self,
        mesh: Mesh,
        layer_map: LayerMap,
        buffer: DeepEPBuffer,
        *,
        choice: str = REPLICA_CHOICE,
        cluster: Cluster | None = None,
        device: torch.device | str = "cuda",
    ) -> None:
        super().__init__(mesh, layer_map, choice=choice, cluster=cluster, device=device)
        self._buffer = buffer
        exchange = Exchange(
            version=layer_map.version, layer=layer_map.layer, step=buffer.max_tokens, row_kind=buffer.hidden
        )
        nothing = torch.zeros(mesh.num_nodes * mesh.gpus_per_node, dtype=torch.int64, device=self.device)
        if fault := announce(mesh.world, exchange, nothing, nothing, 0, 0).fault:
            raise fault_error(fault, exchange, layer_map.num_experts)

    @torch.no_grad()
    def send(
        self,
        x: Tensor,
        slots: Tensor,
        weights: Tensor,
        fault: Tensor | int = 0,
        meanwhile: Meanwhile | None = None,
    ) -> Arrival:
        """See `Dispatcher.send`; `meanwhile` is called after the dispatch, which the adaptor waits for."""
        most, hidden = self._buffer.max_tokens, self._buffer.hidden
        if x.dtype != torch.bfloat16 or x.ndim != 2 or len(x) > most or x.shape[1] != hidden:
            raise OptionError(f"x is {x.dtype} {list(x.shape)}; bfloat16 and at most [{most}, {hidden}] are allowed")
        found = int(fault)
        slots = slots if not found else torch.full_like(slots, -1)  # take part, so that no other rank waits
        came, local, weights_RK, handle, _ = self._buffer.elastic.dispatch(
            x.contiguous(),
            topk_idx=slots,
            topk_weights=weights.float(),
            num_experts=self.layer_map.num_slots,
            num_max_tokens_per_rank=most,
        )
        if meanwhile is not None:
            meanwhile()
        if found:
            exchange = Exchange(version=0, layer=self.layer_map.layer, step=0, row_kind=0)
            raise fault_error(found, exchange, self.layer_map.num_experts)
        size = self.layer_map.num_ranks
        hit_TG = torch.zeros((len(x), size + 1), dtype=torch.bool, device=x.device)
        hit_TG.scatter_(1, torch.where(slots >= 0, slots // self.layer_map.slots_per_gpu, size), True)
        announced = Announced(
            send_rows=hit_TG[:, :size].sum(dim=0).tolist(),
            recv_rows=[len(came)],
            assignments=sum(handle.num_recv_tokens_per_expert_list),
            tokens=len(x),
            fault=0,
            headers=[],
        )
        hop = DeepEPHop(group=self.mesh.world, announced=announced, buffer=self._buffer.elastic, handle=handle)
        return Arrival(
            wire=Wire(hidden=x.shape[1], dtype=x.dtype, width=slots.shape[1]),
            hops=(hop,),  # type: ignore[arg-type]
            hidden=came,
            local=local.long().masked_fill(local < 0, self.layer_map.slots_per_gpu),
            weights=weights_RK,
        )
