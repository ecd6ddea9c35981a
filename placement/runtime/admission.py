"""Which candidates are admitted: at each slot or rank the best, until its capacity is full."""

from __future__ import annotations

import torch
from torch import Tensor

from placement.runtime.capacity import LARGEST_PRIORITY, CapacityPolicy
from placement.runtime.hash64_torch import mix, mix_int
from placement.runtime.kernels import cpu

PRIORITY_SHIFT = 32


def order_keys(
    policy: CapacityPolicy, score_TK: Tensor, priority_T: Tensor | None, first_row: Tensor | int, rank: int
) -> Tensor:
    """Whole numbers [T, K] by which candidates are ordered, larger ones first: priority, then what `keep` looks at.

    first_row  tokens that this rank brought before, so that `random` draws anew every step
    """
    if policy.keep in ("score", "weight"):
        bits = (score_TK.float() + 0.0).view(torch.int32)  # adding 0.0 turns -0.0 into 0.0
        key = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() + (1 << 31)
    elif policy.keep == "random":
        rows = torch.arange(len(score_TK), device=score_TK.device)[:, None] + first_row
        columns = torch.arange(score_TK.shape[1], device=score_TK.device)
        key = mix(mix(rows * 65_537 + columns) + mix_int(policy.seed * 1_000_003 + rank)) & 0xFFFFFFFF
    else:
        key = torch.zeros(score_TK.shape, dtype=torch.int64, device=score_TK.device)
    if priority_T is not None:
        key = key + (priority_T.long().clamp(0, LARGEST_PRIORITY)[:, None] << PRIORITY_SHIFT)
    return key


def class_of(policy: CapacityPolicy, key: Tensor) -> Tensor:
    """Index among `policy.class_factors()` of candidates with these keys."""
    *named, _ = policy.class_factors()
    priority = key >> PRIORITY_SHIFT
    out = torch.full_like(key, len(named))
    for index, (one, _) in enumerate(named):
        out = out.masked_fill(priority == one, index)
    return out


def admit(key_A: Tensor, unit_A: Tensor, load_A: Tensor, limit_A: Tensor | int, *, latest_first: bool) -> Tensor:
    """True for the candidates that are admitted, bool [A].

    Candidates come in the order of source rank, row and column, which settles ties (`latest_first`: the other way).

    unit_A   slot or rank that each wants, any whole numbers
    load_A   what it takes of the unit's limit
    limit_A  limit of the unit; one number if all have the same
    """
    if not key_A.is_cuda:
        if isinstance(limit_A, int):
            limit_A = torch.full_like(key_A, limit_A)
        key, unit, load, limit = (one.contiguous().numpy() for one in (key_A, unit_A, load_A, limit_A))
        return torch.from_numpy(cpu.admit(key, unit, load, limit, latest_first))
    return admit_on_device(key_A, unit_A, load_A, limit_A, latest_first=latest_first)


def admit_on_device(
    key_A: Tensor, unit_A: Tensor, load_A: Tensor, limit_A: Tensor | int, *, latest_first: bool
) -> Tensor:
    """The same in torch."""
    if latest_first:
        limit_A = limit_A if isinstance(limit_A, int) else limit_A.flip(0)
        key, unit, load = (one.flip(0) for one in (key_A, unit_A, load_A))
        return admit_on_device(key, unit, load, limit_A, latest_first=False).flip(0)
    by_key = torch.argsort(key_A, descending=True, stable=True)
    unit, by_unit = torch.sort(unit_A[by_key], stable=True)
    order = by_key[by_unit]
    load = load_A[order]
    used = torch.cumsum(load, 0)
    start = torch.searchsorted(unit, unit)  # the first candidate of the same unit
    limit = limit_A if isinstance(limit_A, int) else limit_A[order]
    fits = used - (used - load)[start] <= limit
    return torch.empty_like(fits).scatter_(0, order, fits)
