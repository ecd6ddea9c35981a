"""Fitting the predictor: training requests with a prompt or labels, and what each saved at every home.

A request is several examples: its prompt alone, with its labels, its labels alone, and pieces of its answer, whose
tokens visit experts as those of prompts do. Each of its tokens is one more, with what the token itself saved. One ridge
regression over all, so that whatever is known can be asked.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.grouping.features import gram_counts, label_features, prompt_features
from placement.grouping.predictor import Predictor, buckets_for
from placement.grouping.token_savings import TokenSavings
from placement.traces.prompts import TokenLists

log = logging.getLogger("placement")

FEWEST_REQUESTS = 8  # with fewer nothing is learned
MOST_REQUESTS = 8192  # drawn where there are more
PIECE_TOKENS = 96
PROMPT, LABELLED, LABELS, PIECE = 1.0, 0.5, 0.2, 0.3  # what examples weigh; labels as a prompt where there is none
TOKENS = 0.3  # what all tokens of a request weigh together, one by one
TOKEN_VALUE = 2.0  # times how rare it is: among others in a prompt a token has a tenth of it or less
PENALTIES = (0.03, 0.1, 0.3, 1.0)
FOLDS = 4

Floats = npt.NDArray[np.float64]
Features = tuple[npt.NDArray[np.int64], Floats]  # buckets, values
Example = tuple[int, float, npt.NDArray[np.int64], Floats]  # request, weight, buckets, values


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Examples:
    """All examples, each times the root of its weight.

    owner_X  int64 [X], the request of each
    rows     sparse [X, F], their features
    aims_XN  float64 [X, N], what they saved at each home
    """

    owner_X: npt.NDArray[np.int64]
    rows: Any
    aims_XN: Floats

    def fit(self, penalty: float, among_X: npt.NDArray[np.bool_] | None = None) -> Floats:
        """Weights of the features, float64 [F, N]: least squares (LSQR, Paige and Saunders 1982) with that penalty."""
        from scipy.sparse.linalg import lsqr

        rows, aims_XN = self.rows, self.aims_XN
        if among_X is not None:
            rows, aims_XN = rows[among_X], aims_XN[among_X]
        return np.stack([lsqr(rows, aim_X, damp=penalty**0.5, iter_lim=100)[0] for aim_X in aims_XN.T], axis=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """The predictor; what it foretells of training requests that it was not fitted on, from the best that is known.

    score_SN      float64 [S, N]
    tokens_S      int64 [S], of these requests
    prompt_error  mean square error from prompts, `labels_error` from labels alone; `variance` is that of what all
                  requests have in common, and stands for what no request has
    """

    predictor: Predictor
    score_SN: Floats
    tokens_S: npt.NDArray[np.int64]
    prompt_error: float
    labels_error: float
    variance: float

    def with_worth(self, noise: float) -> Fitted:
        """The same where a request's own n first tokens tell what it saves with the mean square error `noise / n`."""
        errors = [min(error, self.variance) for error in (self.prompt_error, self.labels_error, self.variance)]
        prompt, labels, least = (round(noise / max(error, 1e-12), 3) for error in errors)
        predictor = replace(self.predictor, worth_tokens=prompt, labels_worth_tokens=labels, least_worth_tokens=least)
        return replace(self, predictor=predictor)


def fit_predictor(
    saved_QN: Floats,
    tokens_Q: npt.NDArray[np.int64],
    prompts: TokenLists,
    answers: TokenLists,
    labels: Sequence[Mapping[str, str]],
    *,
    seed: int,
    tokens: TokenSavings | None = None,
) -> Fitted | None:
    """The predictor of requests with tokens and a prompt or labels; None where these are fewer than FEWEST_REQUESTS.

    saved_QN  what the requests save per token and layer at each home, beside the mean home
    tokens_Q  training tokens of each; 0: not one of training
    tokens    what single tokens of training save, where their ids are known
    """
    labelled_Q = np.array([bool(one) for one in labels])
    known_R = np.flatnonzero((tokens_Q > 0) & ((prompts.length_Q > 0) | labelled_Q))
    if len(known_R) < FEWEST_REQUESTS:
        log.info("%d training requests have a prompt or labels: too few to foretell homes", len(known_R))
        return None
    rng = np.random.default_rng(np.random.SeedSequence([seed & (2**63 - 1), 0x7E11]))
    if len(known_R) > MOST_REQUESTS:
        known_R = np.sort(rng.choice(known_R, MOST_REQUESTS, replace=False))
    buckets = buckets_for(saved_QN.shape[1])
    idf_F = _rarity(known_R, prompts, buckets)
    weight_Q = tokens_Q / tokens_Q[known_R].mean()
    mean_N = (weight_Q[known_R, None] * saved_QN[known_R]).sum(axis=0) / weight_Q[known_R].sum()
    centred_QN = saved_QN - mean_N
    whole = [one for q in known_R.tolist() for one in _examples(q, prompts, answers, labels[q], idf_F)]
    examples = _weighted(whole, tokens, weight_Q, centred_QN, mean_N, idf_F)
    fold_Q = rng.integers(0, FOLDS, len(tokens_Q))
    from_prompt = {q: prompt_features(prompts.list_of(q), idf_F) for q in known_R.tolist() if prompts.length_Q[q]}
    from_labels = {q: label_features(labels[q], buckets) for q in known_R.tolist() if labelled_Q[q]}
    told = from_labels | from_prompt  # of each request what tells most
    folds = [fold_Q[examples.owner_X] != fold for fold in range(FOLDS)]
    tried = []
    for penalty in PENALTIES:
        weight_XFN = [examples.fit(penalty, others_X) for others_X in folds]
        tried.append((_error(_scores(told, weight_XFN, fold_Q), centred_QN, weight_Q), penalty, weight_XFN))
    _, penalty, weight_XFN = min(tried, key=itemgetter(0))
    weight_FN = examples.fit(penalty)
    score = _scores(told, weight_XFN, fold_Q)
    predictor = Predictor(
        idf_F=idf_F.astype(np.float16),
        weight_NF=np.ascontiguousarray(weight_FN.T.astype(np.float16)),
        mean_N=mean_N.round(6),
        worth_tokens=0.0,
        labels_worth_tokens=0.0,
        least_worth_tokens=0.0,
    )
    return Fitted(
        predictor=predictor,
        score_SN=np.stack([score[q] for q in known_R.tolist()]) + mean_N,
        tokens_S=tokens_Q[known_R],
        prompt_error=_error(_scores(from_prompt, weight_XFN, fold_Q), centred_QN, weight_Q),
        labels_error=_error(_scores(from_labels, weight_XFN, fold_Q), centred_QN, weight_Q),
        variance=_error(dict.fromkeys(known_R.tolist(), np.zeros(len(mean_N))), centred_QN, weight_Q),
    )


def _scores(
    told: Mapping[int, Features], weight_XFN: Sequence[Floats], fold_Q: npt.NDArray[np.int64]
) -> dict[int, Floats]:
    """What each request saves at every home, foretold by the fit of the other folds."""
    return {q: value @ weight_XFN[fold_Q[q]][column] for q, (column, value) in told.items()}


def _error(score: Mapping[int, Floats], centred_QN: Floats, weight_Q: Floats) -> float:
    """Mean square error of what is foretold, infinite of nothing; requests weigh as their tokens."""
    if not score:
        return np.inf
    mine = np.array(list(score))
    wrong_RN = np.stack(list(score.values())) - centred_QN[mine]
    return float((weight_Q[mine] @ (wrong_RN**2).mean(axis=1)) / weight_Q[mine].sum())


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
    found: list[Example] = []
    if prompts.length_Q[q]:
        found.append((q, PROMPT, *prompt))
    if prompts.length_Q[q] and labels:
        both = [np.concatenate(pair) for pair in zip(prompt, label, strict=True)]
        found.append((q, LABELLED, both[0], both[1]))
    if labels:
        found.append((q, LABELS if prompts.length_Q[q] else PROMPT, *label))
    answer = answers.list_of(q)
    pieces = (answer[first : first + PIECE_TOKENS] for first in range(0, len(answer), PIECE_TOKENS))
    return found + [(q, PIECE, *prompt_features(piece, idf_F)) for piece in pieces]


def _weighted(
    whole: list[Example],
    tokens: TokenSavings | None,
    weight_Q: Floats,
    centred_QN: Floats,
    mean_N: Floats,
    idf_F: Floats,
) -> Examples:
    """The examples of whole requests and pieces, and those of single tokens: one for each bucket of a request."""
    from scipy.sparse import csr_matrix

    owner_X = np.array([one[0] for one in whole])
    weight_X = np.array([one[1] for one in whole])
    length_X = np.array([len(one[2]) for one in whole])
    column_P, value_P = (np.concatenate([one[part] for one in whole]) for part in (2, 3))
    aims_XN = centred_QN[owner_X]
    if tokens is not None and len(tokens.token_T):
        single = tokens.by_bucket(np.isin(np.arange(len(weight_Q)), owner_X), idf_F)
        owner_X, column_P = np.append(owner_X, single.owner_X), np.append(column_P, single.bucket_X)
        weight_X = np.append(weight_X, TOKENS * single.share_X)
        length_X = np.append(length_X, np.ones(len(single.owner_X), np.int64))
        value_P = np.append(value_P, TOKEN_VALUE * idf_F[single.bucket_X])
        aims_XN = np.concatenate([aims_XN, single.saved_XN - mean_N])
    root_X = np.sqrt(weight_X * weight_Q[owner_X])
    begins = np.concatenate([[0], np.cumsum(length_X)])
    rows = csr_matrix((value_P * np.repeat(root_X, length_X), column_P, begins), shape=(len(owner_X), len(idf_F)))
    return Examples(owner_X=owner_X, rows=rows, aims_XN=aims_XN * root_X[:, None])
