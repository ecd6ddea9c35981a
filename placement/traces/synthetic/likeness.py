"""What is known of real routing without its tokens: loads of experts, and the pairs that go together.

A synthetic router that is to resemble it gets these very loads, and vectors of experts of which those of a strong pair
point the same way: the factors of the logarithms of the pairs' lifts. How far they decide is fitted layer by layer, so
that the strong pairs get the share of all pairs that they have.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from placement.core.model import Model
from placement.documents.pair_file import PairFile

RANK = 16  # dimensions of the experts' vectors
LEAST_COUNT, LEAST_LIFT, MOST_PAIRS = 5, 1.5, 2000  # of the pairs of a layer that are strong

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class StrongPairs:
    """Pairs of experts of one layer that tokens visit oftener than by chance.

    pair_M2  the two experts of each pair, int64 [M, 2]
    share_M  share of all pairs that tokens visit, float64 [M]
    lift_M   how many times oftener than the loads of the two say, float64 [M]
    """

    pair_M2: Ints
    share_M: Floats
    lift_M: Floats

    @property
    def share(self) -> float:
        """Share of all pairs that tokens visit."""
        return float(self.share_M.sum())

    @property
    def lift(self) -> float:
        """Lift of the strong pair of an average token; 1 where there is none."""
        return float((self.share_M * self.lift_M).sum() / self.share) if len(self.share_M) else 1.0

    def vectors_RE(self, num_experts: int) -> npt.NDArray[np.float32]:
        """A vector for every expert, float32 [R, E]: their products come near the logarithms of the lifts."""
        lift_EE = np.zeros((num_experts, num_experts))
        first_M, second_M = self.pair_M2.T
        lift_EE[first_M, second_M] = lift_EE[second_M, first_M] = np.log(self.lift_M)
        value_E, vector_EE = np.linalg.eigh(lift_EE)
        kept = np.argsort(-value_E, kind="stable")[:RANK]
        scale_R = np.sqrt(np.maximum(value_E[kept], 0.0))
        sign_R = np.sign(vector_EE[np.abs(vector_EE[:, kept]).argmax(axis=0), kept])
        return np.asarray((vector_EE[:, kept] * scale_R * sign_R).T, dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Likeness:
    """What a synthetic trace is to resemble.

    share_LE  share of the tokens that visit an expert, float64 [L, E]; a synthetic trace has full sets, and where those
              of the real one are shorter, these shares in proportion
    pairs_L   the strong pairs of every layer; None: nothing is known of pairs
    """

    model: Model
    num_tokens: int
    share_LE: Floats
    pairs_L: tuple[StrongPairs, ...] | None

    @property
    def set_size(self) -> float:
        """Experts that a token visits in a layer, on average."""
        return float(self.share_LE.sum(axis=1).mean())

    @staticmethod
    def of(file: PairFile) -> Likeness:
        """What a pair file says. Of its pairs those count that are strong by its counts."""
        model, num_tokens, load_LE = file.shape(), file.n_decode_tokens, file.load_LE()
        listed = file.pairs_L()
        pairs_L = None
        if listed is not None and model.top_k > 1:
            all_pairs = num_tokens * model.top_k * (model.top_k - 1) // 2
            pairs_L = tuple(
                strong_pairs(*pairs, load_E, num_tokens, all_pairs)
                for pairs, load_E in zip(listed, load_LE, strict=True)
            )
        return Likeness(model=model, num_tokens=num_tokens, share_LE=load_LE / num_tokens, pairs_L=pairs_L)


def strong_pairs(pair_M2: Ints, count_M: Ints, load_E: Ints, num_tokens: int, all_pairs: int) -> StrongPairs:
    """The strong ones of counted pairs: seen `LEAST_COUNT` times or more, with a lift of `LEAST_LIFT` or more, and of
    these the `MOST_PAIRS` that are seen most.

    Args:
        pair_M2: The two experts of each pair, int64 [M, 2].
        count_M: Tokens that visit both, int64 [M].
        load_E: Tokens that visit each expert, int64 [E].
        num_tokens: All tokens.
        all_pairs: Pairs that tokens visit, strong or not.
    """
    chance_M = load_E[pair_M2].astype(np.float64).prod(axis=1) / num_tokens
    lift_M = count_M / np.maximum(chance_M, np.finfo(np.float64).tiny)
    strong = np.flatnonzero((count_M >= LEAST_COUNT) & (lift_M >= LEAST_LIFT))
    strong = strong[np.argsort(-count_M[strong], kind="stable")][:MOST_PAIRS]
    return StrongPairs(pair_M2=pair_M2[strong], share_M=count_M[strong] / all_pairs, lift_M=lift_M[strong])


def strong_pairs_L(coact_LEE: Ints, load_LE: Ints, num_tokens: int, top_k: int) -> tuple[StrongPairs, ...] | None:
    """The strong pairs of every layer whose pairs are all counted, int64 [L, E, E]; None of a top-1 model."""
    if top_k == 1:
        return None
    pair_M2 = np.stack(np.triu_indices(coact_LEE.shape[1], 1), axis=1)
    count_LM = coact_LEE[:, pair_M2[:, 0], pair_M2[:, 1]]
    return tuple(
        strong_pairs(pair_M2, count_M, load_E, num_tokens, int(count_M.sum()))
        for count_M, load_E in zip(count_LM, load_LE, strict=True)
    )


def pair_share(ids_TK: npt.NDArray[np.integer], pair_M2: Ints, num_experts: int) -> float:
    """Share of all pairs of these top-k sets that are of the list."""
    listed_EE = np.zeros((num_experts, num_experts), dtype=bool)
    listed_EE[pair_M2[:, 0], pair_M2[:, 1]] = listed_EE[pair_M2[:, 1], pair_M2[:, 0]] = True
    first_P, second_P = np.triu_indices(ids_TK.shape[1], 1)
    return float(listed_EE[ids_TK[:, first_P], ids_TK[:, second_P]].mean())
