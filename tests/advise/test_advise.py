"""Advice: its figures are those of `solve`, and planted truths are told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted import FAR, NEAR, OTHER, plant

from placement import Cluster, Options, solve
from placement.analysis.advise import advise
from placement.analysis.advise.map_cost import EPLB, LINEAR, SOLVED, Figures
from placement.analysis.advise.redundancy import SLOT_PRICE, Redundancy, Redundant, clusters
from placement.cost.transports import TRANSPORTS
from placement.errors import OptionError
from placement.pipeline.by_class import solve_by
from placement.pipeline.with_homes import solve_grouped
from placement.report.advice.advice_text import answers
from placement.workload.counts_file import read_counts

NODES = Cluster(num_nodes=4, gpus_per_node=1, slots_per_gpu=2)
QUICK = Options(work_limit=500)


def test_figures_are_those_of_solve(tmp_path: Path) -> None:
    """Worth, transports and redundancy say what `solve` says with the same options, split and cluster."""
    trace = plant(tmp_path, [("a", FAR, OTHER), ("b", NEAR, FAR)])
    advice = advise(trace, NODES, QUICK)

    def solved(cluster: Cluster, transport: str) -> dict[str, Figures]:
        options = Options(work_limit=500, objective="time", bound="none", transport=transport)
        held_out = solve(trace, cluster, options).held_out
        return {name: Figures.of(held_out[key]) for name, key in ((LINEAR, LINEAR), (EPLB, EPLB), (SOLVED, "auto"))}

    assert advice.measured_on == "held-out"
    assert advice.worth.maps == solved(NODES, "node")
    assert [one.transport for one in advice.transports] == list(TRANSPORTS)
    for one in advice.transports:
        assert one.maps == solved(NODES, one.transport)
    assert [row.redundant for row in advice.redundancy.rows] == [0, 4, 8, 16]
    for row in advice.redundancy.rows:
        known = solved(Cluster(num_nodes=4, gpus_per_node=1, slots_per_gpu=row.slots_per_gpu), "node")
        assert row.maps == {EPLB: known[EPLB], SOLVED: known[SOLVED]}
        assert row.weights_bytes == row.slots_per_gpu * 2 * NODES.expert_bytes
        assert row.given_up_bytes == row.weights_bytes - advice.redundancy.rows[0].weights_bytes


def test_even_traffic_whose_pairs_are_together_is_not_worth_it(tmp_path: Path) -> None:
    """The map in order of ids is the best there is: nothing to gain, and it is said so."""
    advice = advise(plant(tmp_path, [(None, NEAR, NEAR)]), NODES, QUICK)
    assert advice.worth.verdict == "hardly"
    assert answers(advice)["worth"][0].startswith("Hardly:")


def test_pairs_that_lie_apart_are_worth_it(tmp_path: Path) -> None:
    """Every token of linear goes to two nodes; the solved map needs one for each: half of the bytes at random homes."""
    advice = advise(plant(tmp_path, [(None, FAR, FAR)]), NODES, QUICK)
    assert advice.worth.verdict == "much"
    by = {one.transport: one for one in advice.transports}
    assert by["node"].saved == pytest.approx(0.5)
    assert answers(advice)["worth"][0].startswith("Yes:")


def test_what_no_map_changes_is_said(tmp_path: Path) -> None:
    """All-gather always; one copy an assignment only while experts have one slot each."""
    trace = plant(tmp_path, [(None, FAR, FAR)])
    single = advise(trace, NODES, QUICK)
    fixed = {one.transport: one.fixed for one in single.transports}
    assert fixed == {"node": False, "rank": False, "assignment": True, "allgather": True}
    for one in single.transports:
        if one.fixed:
            assert len({figures.bytes_per_token for figures in one.maps.values()}) == 1
    assert any("vLLM's default" in said and "no map changes" in said for said in answers(single)["transports"])
    double = advise(trace, Cluster(num_nodes=4, gpus_per_node=1, slots_per_gpu=4), QUICK)
    assert [one.fixed for one in double.transports] == [False, False, False, True]


def test_maps_by_phase(tmp_path: Path) -> None:
    """Decode with pairs of its own wants a map of its own; decode like prefill does not."""
    alike = advise(plant(tmp_path, [(None, FAR, FAR)]), NODES, QUICK).phases
    assert alike is not None and alike.verdict == "one"
    apart = advise(plant(tmp_path, [(None, FAR, OTHER)]), NODES, QUICK).phases
    assert apart is not None and apart.verdict == "own"
    for phase in apart.phases:
        assert phase.maps["own"].sends == pytest.approx(0.75)  # one node a token, at home for a quarter
        assert phase.own_gain > 0.02


def test_phases_and_grouping_are_those_of_their_solves(tmp_path: Path) -> None:
    """The maps of `solve_by` with phase, and the routed homes of `solve_grouped`, on the same requests."""
    trace = plant(tmp_path, [("a", FAR, OTHER), ("b", NEAR, FAR)])
    advice = advise(trace, NODES, QUICK)
    options = Options(work_limit=500, objective="time", bound="none")
    by_phase = solve_by(trace, NODES, options, by="phase")
    assert advice.phases is not None and advice.grouping is not None
    for phase, known in zip(advice.phases.phases, by_phase.classes, strict=True):
        assert phase.name == known.name
        assert phase.maps == {name: Figures.of(one) for name, one in known.solution.held_out.items()}
    grouped = solve_grouped(trace, NODES, options)
    gains = {"linear": "linear", "eplb": "eplb", "solved": "auto", "joint + homes": "joint + homes"}
    for name, known_as in (gains | {"solved + homes": "auto + homes"}).items():
        gain = grouped.gain(known_as)
        assert advice.grouping.maps[name] == Figures.of(gain.routed or gain.held_out)


def test_pools_of_requests_are_worth_grouping_and_few_requests_are_not(tmp_path: Path) -> None:
    """A domain whose tokens all visit the experts of one node belongs there; of few requests nothing is told."""
    pools = [(f"d{pair}", [pair], [pair]) for pair in FAR]
    grouping = advise(plant(tmp_path, pools), NODES, QUICK).grouping
    assert grouping is not None and grouping.verdict == "much"
    # but for held-out requests beyond the share of their node
    assert grouping.maps[grouping.best].sends < grouping.maps["solved"].sends / 4
    few = advise(plant(tmp_path, [(None, FAR, FAR)], requests=20), NODES, QUICK)
    assert few.grouping is None and "20 requests are too few" in few.absent["grouping"]


def test_without_holdout_all_is_measured_on_what_was_fitted(tmp_path: Path) -> None:
    advice = advise(plant(tmp_path, [(None, FAR, FAR)]), NODES, QUICK, holdout=0)
    assert advice.measured_on == "training" and advice.holdout == 0
    assert advice.worth.maps[SOLVED].tokens == advice.num_tokens == 24 * 40


def test_gain_is_lost_when_traffic_shifts(tmp_path: Path) -> None:
    """Domain b never visits the pairs of domain a: the map of a is there no better than linear."""
    advice = advise(plant(tmp_path, [("a", FAR, FAR), ("b", OTHER, OTHER)], requests=120), NODES, QUICK)
    by = {one.by: one for one in advice.drift}
    domains, windows = by["domain"], by["windows:4"]
    assert domains.names == ("a", "b")
    assert domains.kept(0, 0) == 1.0
    assert domains.kept(0, 1) == pytest.approx(0, abs=0.1) and domains.kept(1, 0) == pytest.approx(0, abs=0.1)
    # windows 1 and 2 are of domain a, 3 and 4 of b
    assert windows.kept(0, 1) == pytest.approx(1, abs=0.1) and windows.kept(0, 2) == pytest.approx(0, abs=0.1)
    assert domains.mean_kept == pytest.approx((domains.kept(0, 1) + domains.kept(1, 0)) / 2)
    steady = {one.by: one for one in advise(plant(tmp_path, [("a", FAR, FAR), ("b", FAR, FAR)]), NODES, QUICK).drift}
    assert steady["domain"].kept(0, 1) == pytest.approx(1, abs=0.1)


def test_nothing_to_keep_is_no_share(tmp_path: Path) -> None:
    """Where solving anew gains hardly anything, a share of it would be noise."""
    (windows,) = advise(plant(tmp_path, [(None, NEAR, NEAR)], requests=48), NODES, QUICK).drift
    assert windows.shifts() == [] and windows.mean_kept is None


def row(further: int, step_us: float, kv_share: float | None = None) -> Redundant:
    figures = Figures(tokens=1, sends=1.0, bytes_per_token=1.0, imbalance=1.0, worst_imbalance=1.0, step_us=step_us)
    return Redundant(
        redundant=8 * further,
        slots_per_gpu=4 + further,
        further=further,
        weights_bytes=1,
        given_up_bytes=further,
        kv_share=kv_share,
        maps={EPLB: figures, SOLVED: figures},
    )


@pytest.mark.parametrize(
    ("steps", "best"),
    [
        ((100, 100.0, 100.0), 0),
        ((100, 98.0, 98.0), 1),
        ((100, 100.5, 90.0), 2),  # the second slot pays for a first that brings nothing
        ((100, 99.2, 98.5), 0),  # each saves less than its price
    ],
)
def test_the_knee(steps: tuple[float, ...], best: int) -> None:
    """A further slot of a GPU has to save SLOT_PRICE of the first step, wherever it stands."""
    rows = tuple(row(further, step) for further, step in enumerate(steps))
    assert SLOT_PRICE == 0.01
    assert Redundancy(rows=rows).recommended is rows[best]


def test_rows_without_room_for_a_kv_cache_are_not_recommended() -> None:
    rows = (row(0, 100, 0.0), row(1, 90, 0.6), row(2, 50, 1.2))
    assert Redundancy(rows=rows).recommended is rows[1]


def test_counts_answer_what_loads_tell(tmp_path: Path) -> None:
    """Imbalance, redundancy and capacity; the rest is absent, with the reason."""
    count_QLE = np.random.default_rng(0).integers(0, 50, (12, 2, 8))
    count_QLE[:, :, :2] += 200  # the two hot experts are on one node
    np.savez(tmp_path / "c.npz", counts=count_QLE, top_k=2)
    advice = advise(read_counts(tmp_path / "c.npz"), NODES, QUICK)
    assert advice.worth.verdict == "much" and advice.worth.maps[SOLVED].step_us is None
    assert (advice.transports, advice.phases, advice.drift) == (None, None, ())
    assert set(advice.absent) == {"transports", "phases", "grouping", "drift", "steps"}
    assert len(advice.redundancy.rows) == 4 and set(advice.capacity.steps) == {"trace"}


def test_nodes_that_could_hold_every_expert_are_not_tried() -> None:
    """Where GPUs of a node share load, no node is given more slots than there are experts."""
    cluster = Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=2)
    assert [one.slots_per_gpu for one in clusters(cluster, 8)] == [2, 3, 4, 6]
    assert [one.slots_per_gpu for one in clusters(replace(cluster, run_time_balance="node"), 8)] == [2, 3, 4]


def test_step_tokens_are_those_of_each_gpu(tmp_path: Path) -> None:
    """As in `evaluate`: 4 tokens on each of 4 GPUs are a step of 16, and the answer says so in words."""
    trace = plant(tmp_path, [(None, FAR, OTHER)])
    advice = advise(trace, NODES, QUICK, step_tokens=4)
    assert advice.capacity.step_tokens == 16
    steps = advice.capacity.steps["mixed"]
    assert steps == int(trace.tokens_Q().sum()) // 16
    assert any(f"{steps} steps of 4 tokens a GPU" in said for said in answers(advice)["capacity"])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"holdout": 1.0}, "holdout=1.0"),
        ({"step_tokens": 0}, "step_tokens has 0"),
        ({"most_dropped": -0.1}, "most_dropped=-0.1"),
        ({"most_dropped": float("nan")}, "most_dropped=nan"),
        ({"kv_cache_bytes": 0.0}, "kv_cache=0.0"),
        ({"options": Options(max_moves=3)}, "max_moves"),
    ],
    ids=str,
)
def test_wrong_options_are_refused(given: dict[str, Any], told: str, tmp_path: Path) -> None:
    options = given.pop("options", QUICK)
    with pytest.raises(OptionError, match=told):
        advise(plant(tmp_path, [(None, FAR, FAR)]), NODES, options, **given)
