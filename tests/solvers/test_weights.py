"""One layer under many weights, against every map of tiny problems."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.errors import InfeasibleError, LimitError
from placement.pipeline.front_search import WEIGHTS, solve_weights, weights_with
from placement.solvers.problem import LayerProblem
from placement.testing.problems import all_maps, brute_force, tiny_problems

TINY = 1e-9


def limited(problem: LayerProblem, **options: object) -> LayerProblem:
    return replace(problem, options=replace(problem.options, work_limit=1000, **options))


def test_weights_of_a_front() -> None:
    """Ascending, each once, the default and the one asked for among them."""
    assert weights_with(1) == weights_with(1.5) == WEIGHTS == tuple(sorted(set(WEIGHTS)))
    assert weights_with(0.7) == tuple(sorted((*WEIGHTS, 0.7)))


@pytest.mark.parametrize("redundant", [False, True])
@settings(max_examples=12)
@given(data=st.data())
def test_maps_of_the_weights(redundant: bool, data: st.DataObject) -> None:
    """Sound maps with the scores they claim; imbalance never rises with the weight and paid sends never fall, none is
    better in both; bounds at the options' weight alone, and there the optimum where every map can be tried."""
    problem = limited(data.draw(tiny_problems(redundant=redundant)))
    own = problem.options.balance_weight
    weights = weights_with(own)
    answer = solve_weights(problem, 7, weights)
    assert answer.chosen is answer.picks[weights.index(own)]
    before = None
    for weight, pick in zip(weights, answer.picks, strict=True):
        score = limited(problem, balance_weight=weight).score(pick.point.phy2log_P)
        assert set(pick.point.phy2log_P.tolist()) == set(range(problem.num_experts))
        assert pick.report.objective == pytest.approx(score.objective)
        assert pick.report.layer_id == 7
        assert (pick.report.bound is None) == (weight != own)
        if before is not None:
            assert score.expected_imbalance <= before.expected_imbalance + TINY
            assert score.paid_sends >= before.paid_sends - TINY
            same = abs(score.paid_sends - before.paid_sends) < TINY
            assert same == (abs(score.expected_imbalance - before.expected_imbalance) < TINY)
        before = score
    lowest, _ = brute_force(problem)
    assert answer.chosen.report.objective >= lowest - TINY
    if not redundant:
        assert answer.chosen.report.objective == pytest.approx(lowest)


@settings(max_examples=12)
@given(data=st.data())
def test_the_cap_picks_few_sends(data: st.DataObject) -> None:
    """The chosen map keeps the cap with no more paid sends than any map of a weight that keeps it, nor fewer than
    possible; an error where no map can; the maps of the weights are those without a cap."""
    problem = limited(data.draw(tiny_problems()), bound="none")
    cluster, weights = problem.cluster, weights_with(problem.options.balance_weight)
    free = solve_weights(problem, 0, weights)
    known = [pick.point.score.imbalance for pick in free.picks]
    cap = data.draw(st.sampled_from([1.0, 1.3, *(max(value, 1.0) for value in known)]))
    capped = limited(problem, max_imbalance=cap)
    scores = [capped.score(row) for row in all_maps(problem.num_experts, cluster.num_ranks, cluster.slots_per_gpu)]
    possible = [score.paid_sends for score in scores if score.feasible]
    if not possible:
        with pytest.raises((InfeasibleError, LimitError)):
            solve_weights(capped, 0, weights)
        return
    answer = solve_weights(capped, 0, weights)
    assert [pick.point.score for pick in answer.picks] == [pick.point.score for pick in free.picks]
    chosen = capped.score(answer.chosen.point.phy2log_P)
    assert chosen.feasible and chosen.imbalance <= cap + TINY
    within = [pick.point.score.paid_sends for pick in free.picks if pick.point.score.imbalance <= cap]
    assert min(possible) - TINY <= chosen.paid_sends <= min(within, default=chosen.paid_sends) + TINY
