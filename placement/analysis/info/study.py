"""The study: what grouping and maps by domain rest on, and what of it a trace does not allow."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from placement.analysis.info import domains
from placement.analysis.info import study_measures as layers
from placement.analysis.info.domains import FOLDS, Accuracy, Similarity, Telling
from placement.analysis.info.facts import TraceInfo
from placement.analysis.info.findings import HomeFindings, LayerStudy, Study
from placement.analysis.info.measures import domain_drift
from placement.analysis.info.reading import Reading
from placement.analysis.info.sample import QUARTER, STEPS, Sample, in_order
from placement.core.choices import STUDIES
from placement.core.model import Model
from placement.errors import OptionError
from placement.support.parallel import run_tasks

PLURAL = {"domain": "domains", "category": "categories"}
NODES = 4
MOST_DOMAINS = 40
LISTED = 6

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyOptions:
    """What to study.

    Attributes:
        by: Key of the requests that names their kind: one of `STUDIES`.
        num_nodes: Nodes of the cluster; None: 4, or as many as there are experts.
        gpus_per_node: Ranks of a node.
        seed: Seed of the folds of the classifier.
    """

    by: str = "domain"
    num_nodes: int | None = None
    gpus_per_node: int = 1
    seed: int = 0

    def checked_nodes(self, model: Model) -> int:
        """The number of nodes.

        Raises:
            OptionError: An option is out of range for the model.
        """
        if self.by not in STUDIES:
            raise OptionError(f"by={self.by!r} is unknown; choose one of {', '.join(STUDIES)}")
        if not 0 <= self.seed < 2**63:
            raise OptionError(f"seed={self.seed} must be from 0 to 2^63 - 1")
        nodes = min(NODES, model.num_experts) if self.num_nodes is None else self.num_nodes
        if nodes < 1 or self.gpus_per_node < 1 or nodes * self.gpus_per_node > model.num_experts:
            raise OptionError(
                f"num_nodes={nodes} with gpus_per_node={self.gpus_per_node} cannot share the {model.num_experts} "
                f"experts of a layer; give at least 1 of each, and no more GPUs than experts"
            )
        return nodes


def study_of(
    info: TraceInfo, found: Reading, sample: Sample, options: StudyOptions, nodes: int, executor: Executor | None
) -> Study:
    """The study of a reading whose facts are known."""
    model, by = found.model, options.by
    whole_Q = sample.whole_Q()
    names, label_Q, missing = _labels(sample, whole_Q, by)
    answers = run_tasks(
        lambda layer: _layer(info, found, sample, label_Q, layer, nodes, options.gpus_per_node),
        range(model.num_layers),
        executor,
    )
    alike = domains.similarity(sample.count_LQHE.sum(axis=2), label_Q, names) if names else None
    return Study(
        model=model,
        by=by,
        num_tokens=found.num_tokens,
        num_requests=sample.num_requests,
        sampled_requests=len(sample.label_Q),
        num_nodes=nodes,
        gpus_per_node=options.gpus_per_node,
        seed=options.seed,
        first_part=sample.first_part,
        layers=tuple(answers),
        similarity=alike,
        telling=_telling(sample, label_Q, alike, options.seed) if alike else None,
        homes=_homes(found, sample, label_Q, whole_Q, nodes, executor) if np.count_nonzero(whole_Q) > 1 else None,
        missing=(*missing, *_missing(sample, whole_Q, found.pairs)),
    )


def _labels(found: Sample, whole_Q: npt.NDArray[np.bool_], by: str) -> tuple[list[str], Labels, list[str]]:
    """Domains with enough requests (that have both parts) to be told, those with most first; the index of each
    request's, int64 [Q], or -1; and what is to be said of the others. No names where fewer than two are left."""
    label_Q = [label if whole else None for label, whole in zip(found.label_Q, whole_Q.tolist(), strict=True)]
    counted = Counter(label for label in label_Q if label is not None)
    ordered = sorted(counted, key=lambda label: (-counted[label], label))
    names = [label for label in ordered if counted[label] >= FOLDS][:MOST_DOMAINS]
    told = []
    unnamed = sum(label is None for label in found.label_Q)
    if unnamed == len(found.label_Q):
        told.append(f"no request has a {by}: how {PLURAL[by]} differ and are told apart is unknown")
    elif len(names) < 2:
        told.append(
            f"{len(names)} of {len(counted)} {PLURAL[by]} have {FOLDS} or more requests; two are needed to compare them"
        )
        names = []
    else:
        if len(names) < len(counted):
            few = len(names) < MOST_DOMAINS
            why = f"with fewer than {FOLDS} requests" if few else f"beyond the {MOST_DOMAINS} largest"
            rest = ordered[len(names) :]
            listed = ", ".join(rest[:LISTED]) + (", ..." if len(rest) > LISTED else "")
            told.append(f"{len(rest)} of {len(counted)} {PLURAL[by]}, {why}, are left out: {listed}")
        if unnamed:
            told.append(f"no {by} for {unnamed} of {len(label_Q)} requests: they are left out where it matters")
    number = {name: index for index, name in enumerate(names)}
    return names, np.array([-1 if label is None else number.get(label, -1) for label in label_Q], dtype=np.int64), told


def _missing(found: Sample, whole_Q: npt.NDArray[np.bool_], pairs: int) -> list[str]:
    told = []
    size = len(found.label_Q)
    if size < found.num_requests:
        told.append(f"{found.num_requests - size} of {found.num_requests} requests are not in the sample")
    if found.first_part is None:
        told.append("counts without tokens: overlap of tokens, sends, and what a first part foretells are unknown")
        return told
    if found.first_part == QUARTER:
        told.append("no phases recorded: the first quarter of each request is compared with the rest")
    lacking = size - int(np.count_nonzero(whole_Q))
    if lacking:
        told.append(
            f"{lacking} of {size} requests lack one of both parts: they are left out of all but load and overlap"
        )
    if np.count_nonzero(whole_Q) < 2:
        told.append("fewer than two requests have both parts: what homes can do is unknown")
    if not pairs:
        told.append("no two consecutive tokens in a shard: their overlap is unknown")
    return told


def _layer(
    info: TraceInfo, found: Reading, sample: Sample, label_Q: Labels, layer: int, nodes: int, gpus: int
) -> LayerStudy:
    known, load_E, ranks = info.layers[layer], found.load_LE[layer], nodes * gpus
    part_QHE = sample.count_LQHE[layer].astype(np.float64)
    count_QE = part_QHE.sum(axis=1)
    drift = domain_drift(sample.count_LQHE[layer].sum(axis=1)[:, None], label_Q)
    size = float(found.size_L[layer])
    shared = layers.shared_with_others(count_QE, label_Q, size) if sample.exact else (None, None, None)
    foretold = layers.foretelling(part_QHE[:, 0], part_QHE[:, 1], label_Q)
    balance = layers.balance_by_domain(count_QE, label_Q, ranks)
    return LayerStudy(
        layer_id=known.layer_id,
        load_skew=known.load_skew,
        balancedness=float(load_E.mean() / load_E.max()),
        load_gini=layers.gini(load_E),
        load_cv=known.load_cv,
        top_share=layers.top_share(load_E),
        rank_imbalance=layers.group_imbalance(load_E, in_order(len(load_E), ranks), ranks),
        node_imbalance=layers.group_imbalance(load_E, in_order(len(load_E), nodes), nodes),
        drift=None if drift is None else float(drift[0][0]),
        drift_chance=None if drift is None else float(drift[1][0]),
        overlap_next=known.overlap,
        overlap_request=shared[0],
        overlap_domain=shared[1],
        overlap_other=shared[2],
        overlap_chance=known.overlap_chance,
        own=foretold[0],
        same_domain=foretold[1],
        other_domain=foretold[2],
        balance_shared=None if balance is None else balance[0],
        balance_own=None if balance is None else balance[1],
    )


def _telling(found: Sample, label_Q: Labels, alike: Similarity, seed: int) -> Telling:
    known = np.flatnonzero(label_Q >= 0)
    label_K = label_Q[known]
    fold_K = domains.folds_of(label_K, seed)
    kinds = domains.kinds_of(alike)
    kind_K = np.array(kinds)[label_K]
    apart = 1 < len(set(kinds)) < len(kinds)

    def tell(count_LQE: npt.NDArray[np.uint32]) -> Labels:
        return domains.told_labels(domains.gram(count_LQE[:, known]), label_K, fold_K)

    first_KK = domains.gram(found.count_LQHE[:, known, 0])
    told_K = domains.told_labels(first_KK, label_K, fold_K)
    confusion_DD = np.zeros((len(kinds), len(kinds)), dtype=np.int64)
    np.add.at(confusion_DD, (label_K, told_K), 1)
    steps: list[Accuracy] = []
    seen_LQE = np.zeros_like(found.step_LQSE[:, :, 0])
    for step, tokens in enumerate(STEPS):
        seen_LQE += found.step_LQSE[:, :, step]
        reached = float((found.length_Q[known] >= tokens).mean())
        if reached >= 0.5:
            steps.append(domains.accuracy(tell(seen_LQE), label_K, f"first {tokens} tokens", tokens, reached))
    return Telling(
        domains=alike.domains,
        requests=len(known),
        folds=FOLDS,
        majority=float(np.bincount(label_K).max() / len(known)),
        first=domains.accuracy(told_K, label_K, str(found.first_part), None, 1.0),
        whole=domains.accuracy(tell(found.count_LQHE.sum(axis=2)), label_K, "all tokens", None, 1.0),
        steps=tuple(steps),
        confusion=tuple(map(tuple, confusion_DD.tolist())),
        kinds=kinds if apart else None,
        kind_accuracy=float((domains.told_labels(first_KK, kind_K, fold_K) == kind_K).mean()) if apart else None,
        kind_majority=float(np.bincount(kind_K).max() / len(known)) if apart else None,
    )


def _homes(
    reading: Reading,
    found: Sample,
    label_Q: Labels,
    whole_Q: npt.NDArray[np.bool_],
    nodes: int,
    executor: Executor | None,
) -> HomeFindings:
    """On the requests that have both parts, and a domain where there are domains."""
    labelled = bool((label_Q[whole_Q] >= 0).any())
    model = reading.model
    held = max(model.num_experts // nodes, 1)
    mine = np.flatnonzero(whole_Q & (label_Q >= 0)) if labelled else np.flatnonzero(whole_Q)

    def served(layer: int) -> npt.NDArray[np.float64]:
        part_QHE = found.count_LQHE[layer, mine].astype(np.float64)
        return layers.favourites(part_QHE[:, 0], part_QHE[:, 1], label_Q[mine], held)

    second_assignments = float(found.count_LQHE[:, mine, 1].sum(dtype=np.int64))
    shares = np.sum(run_tasks(served, range(model.num_layers), executor), axis=0) / second_assignments
    touched_QHN = found.touched_LQHN[:, mine].sum(axis=0)
    tokens = second_assignments / float(reading.size_L.mean())  # of all layers together
    reach, rows = float(touched_QHN[:, 1].sum()), np.arange(len(mine))
    first_home_Q = touched_QHN[:, 0].argmax(axis=1)
    return HomeFindings(
        requests=len(mine),
        held=held,
        chance=1 / nodes,
        all=float(shares[0]),
        domain=float(shares[1]) if labelled else None,
        first=float(shares[2]),
        best=float(shares[3]),
        sends_random=reach * (1 - 1 / nodes) / tokens,
        sends_first=(reach - float(touched_QHN[rows, 1, first_home_Q].sum())) / tokens,
        sends_best=(reach - float(touched_QHN[:, 1].max(axis=1).sum())) / tokens,
    )
