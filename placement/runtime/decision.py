"""Capacity applied to one rank's tokens: candidates, who is admitted, and what is left of slots and weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from placement.errors import OptionError
from placement.runtime.admission import admit, class_of, order_keys
from placement.runtime.capacity import EXPANDED, MOST_LOAD, NONE, CapacityPolicy, limit_of, limits_of, load_units
from placement.runtime.header import SCORES, Exchange, announce, fault_of
from placement.runtime.layer_map import LayerMap
from placement.runtime.transport.base import Group


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityDecision:
    """What is dispatched of a rank's tokens.

    slots    int64 [T, K + extra], -1 where nothing is sent
    weights  fp32 of the same shape; 0 where nothing is sent
    dropped  assignments of the top-k sets that were dropped, int64 scalar on the device
    extra    further experts that were added, the same
    fault    0 or what the headers told, for the dispatch to pass on
    """

    slots: Tensor
    weights: Tensor
    dropped: Tensor
    extra: Tensor
    fault: Tensor | int


class RankCapacity:
    """The policy of one layer on one rank."""

    def __init__(self, policy: CapacityPolicy, layer_map: LayerMap, world: Group) -> None:
        self.policy, self._map, self._world = policy, layer_map, world
        self._own = layer_map.slots_of_rank(world.rank)
        self._own_logical = [layer_map.logical_P[p] for p in self._own]
        self._rows_seen: Tensor | int = 0  # a tensor where a graph counts them
        self._step = 0
        self._kind, self._tables = policy.number(), cache(self._make_tables)
        units = layer_map.num_ranks if policy.level == "device" else layer_map.num_experts
        self._shares = [] if policy.mode == NONE else policy.shares(units, layer_map.layer)

    def decide(
        self,
        ids: Tensor,
        slots: Tensor,
        weights: Tensor,
        scores: Tensor | None,
        *,
        priority: Tensor | None = None,
        load: Tensor | None = None,
        spared: bool = False,
        fault: Tensor | int = 0,
    ) -> CapacityDecision:
        """Which of this rank's assignments are dispatched. With scope `global` every rank must call it.

        ids, slots, weights  [T, K] of the top-k sets
        scores               [T, E] gate scores of all experts; needed by `expanded`. Without, weights are the scores
        priority             [T] whole numbers, 0 to 65535: lower ones are dropped first (images before text)
        load                 [T] what a token counts for, 0 to 1024, 1 if not given (see `entropy_load`)
        spared               these tokens are not limited, nor do they count for what others may take
        """
        weights = weights.float()
        top_k = slots.shape[1]
        if self.policy.mode == NONE:
            nobody = torch.zeros((), dtype=torch.int64, device=slots.device)
            return CapacityDecision(slots=slots, weights=weights, dropped=nobody, extra=nobody, fault=fault)
        fault = self._checked(scores, load, fault)
        score = weights
        if scores is not None and self.policy.keep != "weight":
            score = scores.gather(1, ids.clamp(min=0)).float()
        before = weights, slots
        if self.policy.mode == EXPANDED:
            slots, score, weights = self._expanded(ids, slots, weights, score, scores)
        key = order_keys(self.policy, score, priority, self._rows_seen, self._world.rank)
        load_T = load_units(load, len(slots), slots.device)
        self._rows_seen += len(slots)
        wanted = slots >= 0
        routed_T = load_T * wanted[:, :top_k].sum(dim=1)
        if self.policy.classes:
            routed_M = routed_T.new_zeros(len(self._shares)).scatter_add_(0, class_of(self.policy, key[:, 0]), routed_T)
        else:
            routed_M = routed_T.sum(dim=0, keepdim=True)
        asked = Asked(slots=slots, key=key, load=load_T[:, None].expand_as(slots), routed_M=routed_M, top_k=top_k)
        if self.policy.scope == "global":
            kept, fault = self._of_all(asked, 0 if spared else len(slots), fault)
        else:
            kept = self._of_mine(asked, 0 if spared else len(slots))
        weights = weights.masked_fill(~kept, 0.0)
        if self.policy.renormalize:
            left = weights.sum(dim=1, keepdim=True)
            weights = torch.where(left != 0, weights * (_sums(*before) / left), weights)
        return CapacityDecision(
            slots=torch.where(kept, slots, -1),
            weights=weights,
            dropped=(wanted & ~kept)[:, :top_k].sum(),
            extra=kept[:, top_k:].sum(),
            fault=fault,
        )

    def _expanded(
        self, ids: Tensor, slots: Tensor, weights: Tensor, score: Tensor, scores: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Slots, scores and weights with columns for the best experts of this rank that are not in the token's set.

        A further expert weighs its score times what the router makes of scores: the sum of weights over that of scores.
        """
        if scores is None:
            raise OptionError("mode='expanded' needs the scores of all experts; pass scores=[T, E]")
        own = self._tables(slots.device).own_logical
        own_score = scores.float()[:, own]
        taken = (ids[:, :, None] == own).any(dim=1) | (ids < 0).all(dim=1, keepdim=True)  # padding gets none
        limit = len(own) if self.policy.max_extra is None else min(self.policy.max_extra, len(own))
        order = torch.argsort(own_score.masked_fill(taken, -torch.inf), dim=1, descending=True, stable=True)[:, :limit]
        extra_slot = (order + self._own[0]).masked_fill(taken.gather(1, order), -1)
        extra_score = own_score.gather(1, order)
        score_sum = _sums(score, slots)
        ratio = torch.where(score_sum > 0, _sums(weights, slots) / score_sum, 0.0)
        return (
            torch.cat([slots, extra_slot], dim=1),
            torch.cat([score, extra_score], dim=1),
            torch.cat([weights, extra_score * ratio], dim=1),
        )

    def _admit(self, key_A: Tensor, slot_A: Tensor, load_A: Tensor, routed: Tensor | int) -> Tensor:
        """Which candidates are admitted, bool [A]: each class of each slot or rank up to its limit.

        routed  total load of each class, int64 [M]; one number where there are no classes and the host knows it
        """
        by_rank, last = self.policy.level == "device", self.policy.keep == "last"
        unit_A = torch.div(slot_A, self._map.slots_per_gpu, rounding_mode="floor") if by_rank else slot_A
        if isinstance(routed, int):
            return admit(key_A, unit_A, load_A, limit_of(routed, self._shares[0]), latest_first=last)
        limit_M, class_A = limits_of(routed, self._tables(key_A.device).share_M), class_of(self.policy, key_A)
        return admit(key_A, unit_A * len(limit_M) + class_A, load_A, limit_M[class_A], latest_first=last)

    def _of_mine(self, asked: Asked, limited: int) -> Tensor:
        if limited < max(self.policy.min_tokens, 1):
            return asked.unlimited()
        slots = asked.slots
        kept = self._admit(asked.key.reshape(-1), slots.reshape(-1), asked.load.reshape(-1), asked.routed_M)
        return kept.view_as(slots) & (slots >= 0)  # slot -1 is one of those that want none

    def _of_all(self, asked: Asked, limited: int, fault: Tensor | int) -> tuple[Tensor, Tensor | int]:
        """Every rank decides for its own slots on the candidates of all, and tells who is admitted.

        limited  tokens of this rank that have a limit: all or none of them
        """
        size, slots, routed_M = self._map.num_ranks, asked.slots, asked.routed_M
        tables = self._tables(slots.device)
        rank_A = tables.rank_P[slots].reshape(-1)
        if not limited:
            rank_A, routed_M = torch.full_like(rank_A, size), torch.zeros_like(routed_M)
        rows_G = (rank_A[:, None] == tables.rank_G).sum(dim=0)
        exchange = Exchange(version=self._map.version, layer=self._map.layer, step=self._step, row_kind=self._kind)
        self._step += 1
        told = announce(self._world, exchange, rows_G, routed_M.sum(), fault, limited)
        order = torch.argsort(rank_A, stable=True)[: sum(told.send_rows)]  # by rank, then in order of rows and columns
        kept = torch.zeros(slots.numel(), dtype=torch.bool, device=slots.device)
        if told.fault:
            return kept.view_as(slots), told.fault
        if told.tokens < max(self.policy.min_tokens, 1):
            return asked.unlimited(), 0
        rows = torch.stack([asked.key.reshape(-1), slots.reshape(-1), asked.load.reshape(-1)], dim=1)[order]
        got = self._world.all_to_all(rows, told.send_rows, told.recv_rows)
        routed: Tensor | int = told.assignments
        if self.policy.classes:
            routed = self._world.all_to_all(routed_M.repeat(size, 1)).sum(dim=0)
        answer = self._admit(got[:, 0], got[:, 1], got[:, 2], routed)
        back = self._world.all_to_all(answer.view(torch.uint8), told.recv_rows, told.send_rows)
        if not limited:
            return asked.unlimited(), 0
        return kept.scatter_(0, order, back.view(torch.bool)).view_as(slots), 0

    def _checked(self, scores: Tensor | None, load: Tensor | None, fault: Tensor | int) -> Tensor | int:
        """The fault, or that of scores and loads which are no numbers; weights are the dispatcher's to check."""
        mine = fault_of(SCORES, self._world.rank)
        for unsound in (
            None if scores is None else (scores * 0).sum().isnan(),
            None if load is None else ~((load >= 0) & (load <= MOST_LOAD)).all(),
        ):
            if unsound is not None:
                fault = torch.where(unsound, mine, fault)
        return fault

    def _make_tables(self, device: torch.device) -> _Tables:
        slots, per_rank = range(self._map.num_slots), self._map.slots_per_gpu
        return _Tables(
            own_logical=torch.tensor(self._own_logical, device=device),
            rank_P=torch.tensor([*(slot // per_rank for slot in slots), self._map.num_ranks], device=device),
            rank_G=torch.arange(self._map.num_ranks, device=device),
            share_M=torch.tensor(self._shares, dtype=torch.float64, device=device),
        )


def _sums(values: Tensor, slots: Tensor) -> Tensor:
    """Of each token's assignments, [T, 1]."""
    return values.masked_fill(slots < 0, 0).sum(dim=1, keepdim=True)


class Asked(NamedTuple):
    """Candidates of this rank's tokens: slots, keys and loads [T, K + extra], the first `top_k` columns their own sets;
    and the loads of each class, int64 [M]."""

    slots: Tensor
    key: Tensor
    load: Tensor
    routed_M: Tensor
    top_k: int

    def unlimited(self) -> Tensor:
        """What is kept without a limit: the sets as they are."""
        kept = self.slots >= 0
        kept[:, self.top_k :] = False
        return kept


class _Tables(NamedTuple):
    """On the device: experts of this rank's slots, rank of each slot (the last is for slot -1), ranks, shares."""

    own_logical: Tensor
    rank_P: Tensor
    rank_G: Tensor
    share_M: Tensor
