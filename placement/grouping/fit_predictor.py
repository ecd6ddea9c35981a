"""Fitting the predictor: training requests whose prompts are known, and what each saved at every home.

A request is several examples: its prompt alone, with its labels, its labels alone, and pieces of its answer, whose
tokens visit experts as those of prompts do. One ridge regression over all, so that whatever is known can be asked.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from placement.grouping.features import gram_counts, label_features, prompt_features
from placement.grouping.predictor import Predictor, buckets_for
from placement.traces.prompts import TokenLists

log = logging.getLogger("placement")

FEWEST_PROMPTS = 8  # with fewer nothing is learned
MOST_REQUESTS = 8192  # drawn where there are more
PIECE_TOKENS = 96
PROMPT, LABELLED, LABELS, PIECE = 1.0, 0.5, 0.2, 0.3  # what examples weigh
PENALTIES = (0.03, 0.1, 0.3, 1.0)
FOLDS = 4

Floats = npt.NDArray[np.float64]
Example = tuple[int, float, npt.NDArray[np.int64], Floats]  # request, weight, buckets, values


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """The predictor; what it foretells of training requests from prompts that it was not fitted on.

    score_SN   float64 [S, N]
    error      their mean square error; `variance` is that of what all requests have in common
    """

    predictor: Predictor
    score_SN: Floats
    error: float
    variance: float

    def with_worth(self, noise: float) -> Fitted:
        """The same where a request's own n first tokens tell what it saves with the mean square error `noise / n`."""
        worth = [round(noise / max(error, 1e-12), 3) for error in (min(self.error, self.variance), self.variance)]
        predictor = replace(self.predictor, worth_tokens=worth[0], least_worth_tokens=worth[1])
        return replace(self, predictor=predictor)


def fit_predictor(
    saved_QN: Floats,
    tokens_Q: npt.NDArray[np.int64],
    prompts: TokenLists,
    answers: TokenLists,
    labels: Sequence[Mapping[str, str]],
    *,
    seed: int,
) -> Fitted | None:
    """The predictor of requests with tokens and a known prompt; None where these are fewer than FEWEST_PROMPTS.

    saved_QN  what the requests save per token and layer at each home, beside the mean home
    tokens_Q  training tokens of each; 0: not one of training
    """
    known_R = np.flatnonzero((tokens_Q > 0) & (prompts.length_Q > 0))
    if len(known_R) < FEWEST_PROMPTS:
        log.info("%d training requests have prompts: too few to foretell homes from prompts", len(known_R))
        return None
    rng = np.random.default_rng(np.random.SeedSequence([seed & (2**63 - 1), 0x7E11]))
    if len(known_R) > MOST_REQUESTS:
        known_R = np.sort(rng.choice(known_R, MOST_REQUESTS, replace=False))
    buckets = buckets_for(saved_QN.shape[1])
    idf_F = _rarity(known_R, prompts, buckets)
    examples = [one for q in known_R.tolist() for one in _examples(q, prompts, answers, labels[q], idf_F)]
    weight_Q = tokens_Q / tokens_Q[known_R].mean()
    mean_N = (weight_Q[known_R, None] * saved_QN[known_R]).sum(axis=0) / weight_Q[known_R].sum()
    centred_QN = saved_QN - mean_N
    fold_Q = rng.integers(0, FOLDS, len(tokens_Q))
    errors, foretold = [], []
    for penalty in PENALTIES:
        score_QN = np.zeros_like(saved_QN)
        for fold in range(FOLDS):
            mine = known_R[fold_Q[known_R] == fold]
            others = [one for one in examples if fold_Q[one[0]] != fold]
            weight_FN = _ridge(others, centred_QN, weight_Q, buckets, penalty)
            for q in mine.tolist():
                column, value = prompt_features(prompts.list_of(q), idf_F)
                score_QN[q] = value @ weight_FN[column]
        wrong_QN = (score_QN - centred_QN)[known_R]
        errors.append(float((weight_Q[known_R, None] * wrong_QN**2).mean()))
        foretold.append(score_QN[known_R] + mean_N)
    best = int(np.argmin(errors))
    weight_FN = _ridge(examples, centred_QN, weight_Q, buckets, PENALTIES[best])
    predictor = Predictor(
        idf_F=idf_F.astype(np.float16),
        weight_NF=np.ascontiguousarray(weight_FN.T.astype(np.float16)),
        mean_N=mean_N.round(6),
        worth_tokens=0.0,
        least_worth_tokens=0.0,
    )
    variance = float((weight_Q[known_R, None] * centred_QN[known_R] ** 2).mean())
    return Fitted(predictor=predictor, score_SN=foretold[best], error=errors[best], variance=variance)


def _rarity(known_R: npt.NDArray[np.int64], prompts: TokenLists, buckets: int) -> Floats:
    """Log of how few prompts fill a bucket, float64 [F], as float16 keeps it; 0 where none does."""
    filled_F = np.zeros(buckets)
    for q in known_R.tolist():
        for column, _, _ in gram_counts(prompts.list_of(q), buckets):
            filled_F[column] += 1
    idf_F = np.where(filled_F > 0, np.log((len(known_R) + 1) / (np.minimum(filled_F, len(known_R)) + 1)), 0.0)
    return idf_F.astype(np.float16).astype(np.float64)


def _examples(
    q: int, prompts: TokenLists, answers: TokenLists, labels: Mapping[str, str], idf_F: Floats
) -> list[Example]:
    prompt, label = prompt_features(prompts.list_of(q), idf_F), label_features(labels, len(idf_F))
    found: list[Example] = [(q, PROMPT, *prompt)]
    if labels:
        both = [np.concatenate(pair) for pair in zip(prompt, label, strict=True)]
        found += [(q, LABELLED, both[0], both[1]), (q, LABELS, *label)]
    answer = answers.list_of(q)
    for first in range(0, len(answer), PIECE_TOKENS):
        found.append((q, PIECE, *prompt_features(answer[first : first + PIECE_TOKENS], idf_F)))
    return found


def _ridge(examples: list[Example], centred_QN: Floats, weight_Q: Floats, buckets: int, penalty: float) -> Floats:
    """Weights of the features, float64 [F, N]: least squares (LSQR, Paige and Saunders 1982) with that penalty."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.linalg import lsqr

    owner_X = np.array([one[0] for one in examples])
    weight_X = np.sqrt(np.array([one[1] for one in examples]) * weight_Q[owner_X])
    begins = np.cumsum([0, *(len(one[2]) for one in examples)])
    values = np.concatenate([one[3] * weight for one, weight in zip(examples, weight_X, strict=True)])
    rows = csr_matrix((values, np.concatenate([one[2] for one in examples]), begins), shape=(len(examples), buckets))
    aims_XN = centred_QN[owner_X] * weight_X[:, None]
    return np.stack([lsqr(rows, aim, damp=penalty**0.5, iter_lim=100)[0] for aim in aims_XN.T], axis=1)
