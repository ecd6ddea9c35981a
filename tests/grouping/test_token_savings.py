"""Single tokens: what they save adds up to what requests save, and teaches the predictor what whole requests do not."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

from placement import Cluster, Placement, Trace, open_trace
from placement.core.model import Model
from placement.grouping.features import gram_counts, token_buckets
from placement.grouping.fit_predictor import fit_predictor
from placement.grouping.home_costs import home_costs
from placement.grouping.requests import Requests, requests_of
from placement.grouping.token_savings import TokenSavings, token_savings
from placement.pipeline.source_gains import saved_of
from placement.traces.format import RequestEntry
from placement.traces.prompts import TokenLists
from placement.traces.storage.shard_writer import TokenPiece
from placement.traces.write import write_trace

NODES = 4


class Case(NamedTuple):
    """A trace whose tokens have ids, but those of the last request, and a map."""

    trace: Trace
    requests: Requests
    placement: Placement
    cluster: Cluster
    token_T: npt.NDArray[np.int32]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    rng = np.random.default_rng(0)
    folder, request_T = tmp_path_factory.mktemp("t"), np.repeat(np.arange(5, dtype=np.int32), 60)
    token_T = np.where(request_T < 4, rng.integers(0, 30, 300), -1).astype(np.int32)
    ids_LTK = np.argsort(rng.random((2, 300, 8)), axis=2)[:, :, :2]
    piece = TokenPiece(
        ids_LTK=ids_LTK,
        request_T=request_T,
        position_T=np.tile(np.arange(60, dtype=np.int32), 5),
        phase_T=np.ones(300, np.uint8),
        token_T=token_T,
    )
    model = Model(name="m", layer_ids=(0, 1), num_experts=8, top_k=2)
    write_trace(folder, iter([piece]), model=model, requests=tuple(RequestEntry(id=f"r{q}") for q in range(5)))
    trace = open_trace(folder)
    rows = np.stack([rng.permutation(8) for _ in range(2)]).astype(np.int32)
    placement = Placement(model=trace.model, num_nodes=NODES, gpus_per_node=1, slots_per_gpu=2, phy2log_LP=rows)
    cluster = Cluster(num_nodes=NODES, gpus_per_node=1, slots_per_gpu=2)
    return Case(trace=trace, requests=requests_of(trace), placement=placement, cluster=cluster, token_T=token_T)


def test_tokens_add_up_to_their_requests(case: Case) -> None:
    """The mean over a request's tokens is what the request saves; tokens without ids are left out."""
    found = token_savings(case.trace, case.requests, case.placement, case.cluster)
    assert found.token_T.tolist() == case.token_T[case.token_T >= 0].tolist()
    costs = home_costs(case.trace, case.requests, case.placement, case.cluster)
    saved_QN = np.zeros((4, NODES))
    np.add.at(saved_QN, found.request_T, found.saved_TN)
    assert saved_QN / 60 == pytest.approx(saved_of(costs)[:4])
    assert found.saved_TN.any()


def test_no_more_tokens_than_asked_for(case: Case) -> None:
    whole, some = (
        token_savings(case.trace, case.requests, case.placement, case.cluster, most=most) for most in (300, 100)
    )
    assert some.token_T.tolist() == whole.token_T[::3].tolist()
    assert some.saved_TN.tolist() == whole.saved_TN[::3].tolist()


def test_buckets_are_means_of_their_tokens() -> None:
    saved_TN = np.array([[3.0, -3], [1, -1], [5, -5], [2, -2], [9, -9]])
    token_T = np.array([7, 8, 7, 7, 8], np.int32)
    savings = TokenSavings(request_T=np.array([0, 0, 0, 1, 2], np.int32), token_T=token_T, saved_TN=saved_TN)
    bucket = token_buckets(np.array([7, 8]), 1024)
    rare_F = np.zeros(1024)
    rare_F[bucket[0]] = 1.0
    found = savings.by_bucket(np.array([True, True, False]), rare_F)
    assert found.owner_X.tolist() == [0, 1]
    assert found.bucket_X.tolist() == [bucket[0]] * 2
    assert found.share_X == pytest.approx([2 / 3, 1])
    assert found.saved_XN.tolist() == [[4, -4], [2, -2]]
    assert [next(gram_counts(np.array([one]), 1024))[0].tolist() for one in (7, 8)] == bucket[:, None].tolist()


def test_tokens_teach_what_requests_do_not() -> None:
    """Every request has as much of four kinds of tokens, so requests save the same everywhere; tokens do not."""
    rng = np.random.default_rng(1)
    kinds, requests = 4, 12
    lists = [np.concatenate([100 * kind + rng.integers(0, 5, 6) for kind in range(kinds)]) for _ in range(requests)]
    answers = TokenLists.of(np.concatenate(lists).astype(np.int32), np.full(requests, 24))
    prompts = TokenLists.of(np.concatenate([one[::2] for one in lists]).astype(np.int32), np.full(requests, 12))
    saved_TN = np.eye(NODES)[answers.token_P // 100] - 1 / NODES
    tokens = TokenSavings(
        request_T=np.repeat(np.arange(requests, dtype=np.int32), 24), token_T=answers.token_P, saved_TN=saved_TN
    )
    labels: list[dict[str, str]] = [{} for _ in range(requests)]
    without, fitted = (
        fit_predictor(
            np.zeros((requests, NODES)), np.full(requests, 24), prompts, answers, labels, seed=0, tokens=known
        )
        for known in (None, tokens)
    )
    assert without is not None and fitted is not None
    for kind in range(kinds):
        prompt = [100 * kind + one for one in (0, 1, 2, 3, 4)]
        assert not without.predictor.saved(prompt).any()
        assert fitted.predictor.saved(prompt).argmax() == kind
