"""What a top-k set sends, and where its experts are served, as tables over families of node sets (up to 4 nodes).

An expert on the nodes of mask `m` is met by a node set `s` if `s & m != 0`. The family of an expert is the node sets
that meet it, a bit for each of the 2^N node sets: its word. The family of several experts is the AND of their words.
With N = 4, only 167 families occur: the states. Under the replica choice `min-nodes`, a token at home h sends to the
smallest node set of its family that holds h, less h itself. So a state says all that a set sends and serves.
"""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from math import lcm
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

MOST_NODES = 4  # a family of 5 nodes has 32 bits, and thousands of states
LANES = 16  # rows of states are padded to whole vectors

Counts = npt.NDArray[np.int32]


class Families(NamedTuple):
    """Tables for N nodes. Columns Y are blocks of states Z: block 0 of random homes, block 1 + h of home h.

    word_M     int64 [2^N], the family of an expert on the nodes M; every node set for nobody, who is on none
    state_W    uint8 [2^(2^N)], the state of a family; state 0 is that of no expert; words that are no family have 0
    sends_BZ   int64 [N+1, Z], N * sends of a set, a row for each block
    after_MY   int32 [2^N, Y], N * sends of a set of state Z and one further expert on the nodes M
    share_MNY  int32 [2^N, N, Y], what node N serves of that further expert: N * share * `unit`
    everyone   the family of no expert: every node set
    width      columns of a block
    """

    word_M: npt.NDArray[np.int64]
    state_W: npt.NDArray[np.uint8]
    sends_BZ: npt.NDArray[np.int64]
    after_MY: Counts
    share_MNY: Counts
    everyone: int
    unit: int
    width: int


class Choices(NamedTuple):
    """Which node sets serve a token, and how often one node serves one or two experts of it, from each home H.

    smallest_HZ  int64 [N, Z], the smallest node sets of a state's families that hold the home: a bit for each
    visit_ZHN    float64 [Z, N, N], how often a copy goes to another node than the home
    share_MNZH   float64 [2^N, N, Z, N], what node N serves of an expert on the nodes M
    both_MMNZH   float64 [2^N, 2^N, N, Z, N], how often a node other than the home serves both of two experts
    """

    smallest_HZ: npt.NDArray[np.int64]
    visit_ZHN: npt.NDArray[np.float64]
    share_MNZH: npt.NDArray[np.float64]
    both_MMNZH: npt.NDArray[np.float64]


@cache
def families_of(num_nodes: int, *, random_homes: bool) -> Families:
    """The tables for at most MOST_NODES nodes; `random_homes`: the block of random homes alone."""
    tables = _tables(num_nodes)
    if not random_homes:
        return tables
    return tables._replace(
        after_MY=np.ascontiguousarray(tables.after_MY[:, : tables.width]),
        share_MNY=np.ascontiguousarray(tables.share_MNY[:, :, : tables.width]),
    )


@cache
def _tables(num_nodes: int) -> Families:
    masks, word_M = range(1 << num_nodes), _word_M(num_nodes)
    words = _words(num_nodes)
    state_W = np.zeros(1 << (1 << num_nodes), dtype=np.int64)
    state_W[list(words)] = np.arange(len(words))
    width = -(-len(words) // LANES) * LANES
    sends = [[_sends(word, home, num_nodes) for word in words] for home in range(num_nodes)]
    sends_BZ = np.array([[sum(column) for column in zip(*sends, strict=True)], *(np.array(sends) * num_nodes).tolist()])
    after_MBZ = np.zeros((len(masks), num_nodes + 1, width), dtype=np.int32)
    shares = np.zeros((len(masks), num_nodes, num_nodes + 1, width), dtype=object)
    for m in masks[1:]:
        for z, word in enumerate(words):
            after_MBZ[m, :, z] = sends_BZ[:, state_W[word & word_M[m]]]
            for home in range(num_nodes):
                for node, share in _served(word & word_M[m], m, home, num_nodes).items():
                    shares[m, node, 0, z] += share
                    shares[m, node, 1 + home, z] = num_nodes * share
    unit = lcm(*{Fraction(one).denominator for one in shares.ravel()})
    share_MNY = (shares * unit).astype(np.int32).reshape(len(masks), num_nodes, -1)
    return Families(
        word_M=np.array(word_M, dtype=np.int64),
        state_W=state_W.astype(np.uint8),
        sends_BZ=sends_BZ.astype(np.int64),
        after_MY=after_MBZ.reshape(len(masks), -1),
        share_MNY=np.ascontiguousarray(share_MNY),
        everyone=words[0],
        unit=unit,
        width=width,
    )


def _smallest(word: int, home: int, num_nodes: int) -> list[int]:
    """The smallest node sets of a family that hold the home."""
    found = [s for s in range(1 << num_nodes) if word >> s & 1 and s >> home & 1]
    least = min(s.bit_count() for s in found)
    return [s for s in found if s.bit_count() == least]


def _sends(word: int, home: int, num_nodes: int) -> int:
    return _smallest(word, home, num_nodes)[0].bit_count() - 1


def _served(word: int, mask: int, home: int, num_nodes: int) -> dict[int, Fraction]:
    """Share of an expert on the nodes of `mask` that each of its nodes serves, in a set of the family `word`."""
    if mask >> home & 1:
        return {home: Fraction(1)}
    chosen = _smallest(word, home, num_nodes)
    share: dict[int, Fraction] = {}
    for s in chosen:
        usable = [n for n in range(num_nodes) if s & mask & ~(1 << home) & 1 << n]
        for n in usable:
            share[n] = share.get(n, Fraction(0)) + Fraction(1, len(usable) * len(chosen))
    return share


@cache
def choices_of(num_nodes: int) -> Choices:
    """The tables for at most MOST_NODES nodes: a chosen node that hosts an expert serves it, and all such alike."""
    smallest_HZ = np.array(
        [
            [sum(1 << s for s in _smallest(word, home, num_nodes)) for word in _words(num_nodes)]
            for home in range(num_nodes)
        ],
        dtype=np.int64,
    )
    set_S = np.arange(1 << num_nodes)
    chosen_HZS = (smallest_HZ[:, :, None] >> set_S & 1) / np.bitwise_count(smallest_HZ)[:, :, None]
    hosts_MN = (set_S[:, None] & 1 << np.arange(num_nodes)) != 0
    share_MS = 1.0 / np.maximum(np.bitwise_count(set_S[:, None] & set_S), 1)
    # of an expert on M, not at home, where the nodes S are chosen
    served_HMSN = share_MS[None, :, :, None] * ~hosts_MN.T[:, :, None, None] * (hosts_MN[:, None] & hosts_MN[None])
    both_MMNZH = np.einsum("hzs,hasn,hbsn->abnzh", chosen_HZS, served_HMSN, served_HMSN, optimize=True)
    visit_ZHN = np.einsum("hzs,sn->zhn", chosen_HZS, hosts_MN) * (1.0 - np.eye(num_nodes))
    tables = _tables(num_nodes)
    share_MNBZ = tables.share_MNY.reshape(len(set_S), num_nodes, num_nodes + 1, -1) / (num_nodes * tables.unit)
    return Choices(
        smallest_HZ=smallest_HZ,
        visit_ZHN=np.ascontiguousarray(visit_ZHN),
        share_MNZH=np.ascontiguousarray(share_MNBZ[:, :, 1:].swapaxes(2, 3)),
        both_MMNZH=np.ascontiguousarray(both_MMNZH),
    )


@cache
def visits_of(num_nodes: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int32], int]:
    """N * copies into each node: of a token of a state, float64 [Y, N]; and of a token whose set has one further expert
    on the nodes M, int32 [2^N, N, Y], in parts of one over the number that comes last. Columns Y are those of
    `Families`."""
    tables, words = _tables(num_nodes), _words(num_nodes)
    choices = choices_of(num_nodes)
    visit_ZHN, unit = choices.visit_ZHN, lcm(*np.bitwise_count(choices.smallest_HZ).ravel().tolist())
    visit_BZN = np.zeros((num_nodes + 1, tables.width, num_nodes))
    visit_BZN[0, : len(words)] = visit_ZHN.sum(axis=1)
    visit_BZN[1:, : len(words)] = num_nodes * visit_ZHN.swapaxes(0, 1)
    state_MZ = tables.state_W[np.array(words)[None] & tables.word_M[:, None]]
    into_MNBZ = np.zeros((len(state_MZ), num_nodes, num_nodes + 1, tables.width), dtype=np.int32)
    for m, state_Z in enumerate(state_MZ):
        into_MNBZ[m, :, :, : len(words)] = np.rint(visit_BZN[:, state_Z].transpose(2, 0, 1) * unit)
    return visit_BZN.reshape(-1, num_nodes), into_MNBZ.reshape(len(state_MZ), num_nodes, -1), unit


@cache
def _words(num_nodes: int) -> tuple[int, ...]:
    """All families, in the order of their states."""
    word_M = _word_M(num_nodes)
    words = [(1 << (1 << num_nodes)) - 1]
    known = {words[0]}
    for word in words:  # grows while it is gone through
        for more in word_M[1:]:
            if word & more not in known:
                known.add(word & more)
                words.append(word & more)
    return tuple(words)


def _word_M(num_nodes: int) -> list[int]:
    return [sum(1 << s for s in range(1 << num_nodes) if s & m or m == 0) for m in range(1 << num_nodes)]
