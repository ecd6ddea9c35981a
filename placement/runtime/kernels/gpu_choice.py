"""The replica choice as one Triton kernel, a program a token; `placement.runtime.choice_on_device` has it in torch too.

With TRITON_INTERPRET=1 it runs on CPU tensors, which is how it is tested without a GPU.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

GOLDEN = tl.constexpr(0x9E3779B97F4A7C15)


@triton.jit
def _mix(x: Any) -> Any:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def _choose(
    ids: Any,
    out: Any,
    seen: Any,
    salt: Any,
    slot_EC: Any,
    node_EC: Any,
    again_EC: Any,
    host_E: Any,
    forced_E: Any,
    nodes_E: Any,
    home_bit: Any,
    top_k: Any,
    copies: Any,
    BY_COVER: tl.constexpr,
    BY_RANK: tl.constexpr,
    NODES: tl.constexpr,
    SUBSETS: tl.constexpr,
    COPIES: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    first = ids + token * top_k
    number = tl.load(seen) + token
    word = _mix(number.to(tl.uint64, bitcast=True) * GOLDEN + tl.load(salt).to(tl.uint64, bitcast=True))
    visited = tl.load(seen) * 0
    if BY_COVER:
        forced = visited
        for k in range(top_k):
            expert = tl.load(first + k)
            forced |= tl.load(forced_E + expert, mask=expert >= 0, other=0)
        subset = tl.arange(0, SUBSETS).to(tl.int64)
        size = tl.zeros((SUBSETS,), dtype=tl.int64)
        for node in tl.static_range(NODES):
            size += (subset >> node) & 1
        for k in range(top_k):
            expert = tl.load(first + k)
            host = tl.load(host_E + expert, mask=expert >= 0, other=0)
            is_open = (host != 0) & ((host & (forced | home_bit)) == 0)
            size = tl.where(is_open & ((host & subset) == 0), NODES + 1, size)
        least = tl.min(size, axis=0)
        smallest = (size == least).to(tl.int64)
        found = tl.sum(smallest, axis=0)
        drawn = (word % found.to(tl.uint64)).to(tl.int64)
        drawn = tl.where(least >= 2, found - 1 - drawn, drawn)
        place = tl.cumsum(smallest, axis=0)
        visited = forced | tl.sum(tl.where((smallest > 0) & (place == drawn + 1), subset, 0), axis=0)
    copy = tl.arange(0, COPIES)
    for k in range(top_k):
        expert = tl.load(first + k)
        routed = expert >= 0
        row = tl.where(routed, expert, 0)
        allowed = tl.load(nodes_E + row)
        draw = _mix(word + (row + 1).to(tl.uint64) * GOLDEN)
        if BY_COVER:
            allowed = tl.where((allowed & home_bit) != 0, allowed, allowed & visited)
            choices = visited * 0
            for node in tl.static_range(NODES):
                choices += (allowed >> node) & 1
            choices = tl.where(choices > 0, choices, 1)
            skip = (draw % choices.to(tl.uint64)).to(tl.int64)
            for step in tl.static_range(NODES):
                allowed = tl.where(skip > step, allowed & (allowed - 1), allowed)
            allowed = allowed & -allowed
            draw = _mix(draw)
        inside = copy < copies
        slot = tl.load(slot_EC + row * copies + copy, mask=inside, other=-1)
        node = tl.load(node_EC + row * copies + copy, mask=inside, other=0)
        again = tl.load(again_EC + row * copies + copy, mask=inside, other=1)
        once = again == 0
        if not BY_COVER:
            far = (allowed & home_bit) == 0
            once = once | (far if BY_RANK else far | (far == 0))
        usable = ((slot >= 0) & (((allowed >> node) & 1) != 0) & once).to(tl.int64)
        number_usable = tl.sum(usable, axis=0)
        number_usable = tl.where(number_usable > 0, number_usable, 1)
        left = (draw % number_usable.to(tl.uint64)).to(tl.int64)
        taken = (usable > 0) & (tl.cumsum(usable, axis=0) == left + 1)
        chosen = tl.sum(tl.where(taken, slot, 0), axis=0)
        tl.store(out + token * top_k + k, tl.where(routed, chosen, -1))


def choose(
    ids_TK: Tensor,
    seen: Tensor,
    salt: Tensor,
    tables: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor],
    home_bit: int,
    num_nodes: int,
    *,
    by_cover: bool,
    by_rank: bool,
) -> Tensor:
    """Slots of assignments, int64 [T, K].

    tables  slots and their nodes, int64 [E, C], whether a slot is on the rank of the one before, uint8 [E, C]; nodes
            that host each expert, the same where that is one copy, and those whose copies may serve it, int64 [E]
    """
    ids = ids_TK.contiguous()
    out, copies = ids.new_empty(ids.shape), tables[0].shape[1]
    if out.numel():
        _choose[(len(ids),)](
            ids,
            out,
            seen,
            salt,
            *tables,
            home_bit,
            ids.shape[1],
            copies,
            BY_COVER=by_cover,
            BY_RANK=by_rank,
            NODES=num_nodes,
            SUBSETS=1 << num_nodes if by_cover else 1,
            COPIES=triton.next_power_of_2(copies),
            num_warps=1,
        )
    return out
