"""Dispatch and combine of one MoE layer on one rank: a chain of hops, then rows in the order of slots."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from placement.core.choices import REPLICA_CHOICE
from placement.core.cluster import Cluster
from placement.errors import MapError, OptionError
from placement.runtime.choice import ReplicaChooser
from placement.runtime.handle import Arrival, DispatchHandle
from placement.runtime.header import IDS, SCORES, Exchange, fault_of, settled_error
from placement.runtime.hop import Hop, HopHandle, Write
from placement.runtime.kernels import cpu
from placement.runtime.layer_map import LayerMap
from placement.runtime.overlap import Meanwhile
from placement.runtime.reduce import gather_rows, order_visits, sum_rows
from placement.runtime.transport.base import Mesh
from placement.runtime.wire import Wire
from placement.runtime.workspace import Workspace

FLAT, HIERARCHICAL = "flat", "hierarchical"


class Dispatcher:
    """Moves the tokens of one rank to the slots that serve them, and the sums of what the experts return back.

    Every rank of the group makes the same calls in the same order, without tokens too.

    Args:
        mesh: This rank's groups.
        layer_map: The layer's slots.
        hops: `flat`: one hop, a copy for each distinct rank; `hierarchical`: a copy for each distinct node, then for
            each distinct rank of the node.
        choice: Replica choice, see `ReplicaChooser`.
        fp8: Hidden states travel as float8 with scales.
        any_map: See `ReplicaChooser`.
    """

    def __init__(
        self,
        mesh: Mesh,
        layer_map: LayerMap,
        *,
        hops: str = FLAT,
        choice: str = REPLICA_CHOICE,
        cluster: Cluster | None = None,
        fp8: bool = False,
        device: torch.device | str = "cpu",
        any_map: bool = False,
    ) -> None:
        if (mesh.num_nodes, mesh.gpus_per_node) != (layer_map.num_nodes, layer_map.gpus_per_node):
            raise MapError(
                f"the map is for {layer_map.num_nodes} nodes x {layer_map.gpus_per_node} GPUs and the mesh has "
                f"{mesh.num_nodes} x {mesh.gpus_per_node}; solve for this mesh, or start as many ranks"
            )
        if hops not in (FLAT, HIERARCHICAL):
            raise OptionError(f"hops={hops!r} is unknown; choose {FLAT!r} or {HIERARCHICAL!r}")
        self.mesh, self.layer_map, self.hops, self.fp8 = mesh, layer_map, hops, fp8
        self.device = torch.device(device)
        self.choose = ReplicaChooser(layer_map, mesh.rank, choice, cluster=cluster, world=mesh.world, any_map=any_map)
        slots, per_node = range(layer_map.num_slots), layer_map.slots_per_node
        first = layer_map.slots_of_rank(mesh.rank)[0]
        node_first = mesh.rank // mesh.gpus_per_node * per_node
        ways = {"world": (mesh.world, [p // layer_map.slots_per_gpu for p in slots])}
        if hops == HIERARCHICAL:
            ways = {
                "across": (mesh.across, [p // per_node for p in slots]),
                "within": (mesh.within, [(p - node_first) // layer_map.slots_per_gpu for p in slots]),
            }
        self._hops = [Hop(group, to, mesh.workspace, name, self.device) for name, (group, to) in ways.items()]
        local = [p - first if 0 <= p - first < layer_map.slots_per_gpu else layer_map.slots_per_gpu for p in slots]
        self.local_P = torch.tensor([*local, layer_map.slots_per_gpu], device=self.device)
        self._step = 0

    @torch.no_grad()
    def dispatch(
        self, x: Tensor, ids: Tensor, weights: Tensor, *, reuse: bool = False
    ) -> tuple[Tensor, Tensor, DispatchHandle]:
        """Send this rank's tokens to the experts' slots.

        Args:
            x: Hidden states [T, D], float32, bfloat16 or float16.
            ids: Logical experts [T, K], whole numbers; -1 for none.
            weights: Weights of the experts' outputs in the sum [T, K].
            reuse: Rows may lie in a buffer that the next dispatch on this mesh writes to: on a CPU that is quicker.

        Returns:
            Hidden states for this rank's slots [A, D], those of its first slot first; rows of each slot, int64
            [slots_per_gpu]; and what `combine` needs.

        Raises:
            RankError: On every rank, if a rank gave bad ids or weights, has another map or is at another layer.
        """
        checked, fault = self.checked(ids, weights)
        return self.dispatch_slots(x, self.choose(checked), weights, fault, reuse=reuse)

    def checked(self, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Ids with -1 for those that do not exist, and the fault of this input (0 for none), both on the device."""
        if ids.shape != weights.shape or ids.ndim != 2:
            raise OptionError(f"ids {list(ids.shape)} and weights {list(weights.shape)} must both be [T, K]")
        if not ids.is_cuda:
            checked, beyond, unsound = cpu.check_choices(
                ids.to(torch.int64).contiguous().numpy(), weights.detach().float().numpy(), self.layer_map.num_experts
            )
            fault = fault_of(IDS, self.mesh.rank) if beyond else unsound * fault_of(SCORES, self.mesh.rank)
            return torch.from_numpy(checked), torch.tensor(fault)
        ids = ids.long()
        wrong = ids != ids.clamp(-1, self.layer_map.num_experts - 1)
        bad = (weights.masked_fill(ids < 0, 0) * 0).sum().isnan()  # 0 times what is no finite number is none either
        return ids.masked_fill(wrong, -1), torch.where(
            wrong.any(), fault_of(IDS, self.mesh.rank), bad * fault_of(SCORES, self.mesh.rank)
        )

    @torch.no_grad()
    def dispatch_slots(
        self,
        x: Tensor,
        slots: Tensor,
        weights: Tensor,
        fault: Tensor | int = 0,
        *,
        reuse: bool = False,
        meanwhile: Meanwhile | None = None,
    ) -> tuple[Tensor, Tensor, DispatchHandle]:
        """As `dispatch`, with the slot that serves each assignment [T, K] already chosen; -1 for none.

        Args:
            fault: What `checked` found, for all ranks to hear.
            meanwhile: Called once a hop, while its rows travel.
        """
        return self.by_slot(self.send(x, slots, weights, fault, meanwhile), reuse=reuse)

    @torch.no_grad()
    def send(
        self,
        x: Tensor,
        slots: Tensor,
        weights: Tensor,
        fault: Tensor | int = 0,
        meanwhile: Meanwhile | None = None,
    ) -> Arrival:
        """The hops alone: copies of tokens as they came, not yet in the order of slots (as DeepEP returns them)."""
        if slots.shape != weights.shape or slots.ndim != 2 or x.ndim != 2 or len(x) != len(slots):
            raise OptionError(
                f"x {list(x.shape)}, ids {list(slots.shape)} and weights {list(weights.shape)} do not fit; "
                f"[T, D], [T, K] and [T, K] are needed"
            )
        if x.device.type != self.device.type:
            raise OptionError(
                f"x is on {x.device} and the dispatcher on {self.device}; give it device={x.device.type!r}"
            )
        wire = Wire(hidden=x.shape[1], dtype=x.dtype, width=slots.shape[1], fp8=self.fp8)
        exchange = Exchange(
            version=self.layer_map.version, layer=self.layer_map.layer, step=self._step, row_kind=wire.kind
        )
        self._step += 1
        write: Write = wire.writer(x, slots, weights)
        handles: list[HopHandle] = []
        slot_RK, known, tokens = slots, fault, len(x)
        for hop in self._hops:
            rows, handle = hop.send(write, wire.row_bytes, slot_RK, exchange, known, tokens, meanwhile)
            handles.append(handle)
            write = partial(gather_rows, rows)
            slot_RK, tokens = wire.slots(rows).long(), handle.announced.tokens
            known = handle.announced.fault
        last = handles[-1]
        if last.announced.fault:
            raise settled_error(
                last.announced, last.group, self.mesh.world, exchange, self.layer_map.num_experts, self.device
            )
        return Arrival(
            wire=wire,
            hops=tuple(handles),
            hidden=wire.hidden_states(rows),
            local=self.local_P[slot_RK],
            weights=wire.weights(rows),
        )

    @torch.no_grad()
    def by_slot(self, arrival: Arrival, *, reuse: bool = False) -> tuple[Tensor, Tensor, DispatchHandle]:
        """Copies that came, repeated for each slot that they visit here, in the order of slots; as `dispatch`."""
        most, slots = arrival.hops[-1].announced.assignments, self.layer_map.slots_per_gpu
        counts, row_A, weight_A = order_visits(arrival.local, arrival.weights, slots, most)
        handle = DispatchHandle(
            wire=arrival.wire, hops=arrival.hops, num_rows=len(arrival.hidden), row_A=row_A, weight_A=weight_A
        )
        hidden, shape = arrival.hidden, (len(row_A), arrival.wire.hidden)
        workspace = self.mesh.workspace if reuse else Workspace()
        rows = gather_rows(hidden, row_A, workspace.empty("rows", *shape, hidden.dtype, hidden.device))
        return rows, counts, handle

    @torch.no_grad()
    def combine(self, rows: Tensor, handle: DispatchHandle, meanwhile: Meanwhile | None = None) -> Tensor:
        """Weighted sums of the experts' outputs, [T, D]; `rows` [A, D] are in the order that `dispatch` gave.

        Sums are made in fp32; between hops they travel in the type of the rows. `meanwhile` is called once a hop, while
        its sums travel.
        """
        if len(rows) != len(handle.row_A):
            raise OptionError(f"rows has {len(rows)} rows; the dispatch of this handle gave {len(handle.row_A)}")
        room = handle.hops[-1].room_for_sums(rows.shape[1], rows.dtype, rows.device)
        sums = sum_rows(rows, handle.row_A, handle.num_rows, handle.weight_A, room)
        return self.give_back(sums, handle.hops, meanwhile)

    @torch.no_grad()
    def give_back(self, sums: Tensor, hops: tuple[HopHandle, ...], meanwhile: Meanwhile | None = None) -> Tensor:
        """The sum of each copy that came [R, D] goes back to its token, where copies are summed up [T, D]."""
        for hop, before in zip(reversed(hops), (*reversed(hops[:-1]), None), strict=True):
            out = None if before is None else before.room_for_sums(sums.shape[1], sums.dtype, sums.device)
            sums = hop.back(sums, out, meanwhile)
        return sums
