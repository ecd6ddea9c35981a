"""What maps cost in steps of few tokens equals a plain replay."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import steps_reference as plain
from evaluation_cases import RELAXED, Case, cases
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_steps import NAMES, QUICK, reference

from placement import Placement, evaluate, evaluate_steps, open_trace
from placement.core.topology import Topology
from placement.cost.choices import REPLICA_CHOICES
from placement.cost.steps.spread import Spread
from placement.errors import OptionError
from placement.traces import server_order


@settings(RELAXED, max_examples=250)
@given(case=cases(speeds=True, wasted=0.3), data=st.data())
def test_equals_a_plain_replay(case: Case, data: st.DataObject, write_trace: Any) -> None:
    """Every figure, the number of steps and what is left out: maps with and without copies, phases, drafts, selections,
    given homes, short sets, windows of a shard or more, GPUs that share load, every transport and replica choice."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    alone = [name for name in REPLICA_CHOICES if name != "min-nodes-step"]  # that one: test_step_flow.py
    choice = data.draw(st.sampled_from(alone))
    gbps = tuple(rng.uniform(100, 400, case.cluster.num_nodes).tolist())
    cluster = replace(
        case.cluster,
        topology=Topology(node_gbps=gbps),
        expert_bytes=data.draw(st.sampled_from([10**5, 10**7])),
        copy_us=data.draw(st.sampled_from([0.0, 3.0])),
        latency_us=data.draw(st.sampled_from([0.0, 40.0])),
        memory_gbps=data.draw(st.sampled_from([200.0, 50_000.0])),
    )
    case = replace(case, choice=choice, cluster=cluster)
    times = -(-6 * case.cluster.num_ranks // len(case.request_T))  # enough for some steps
    drawn_T = rng.integers(0, len(case.request_T), times * len(case.request_T))
    case = replace(case, ids_LTK=case.ids_LTK[:, drawn_T], request_T=case.request_T[drawn_T])
    phase_T = rng.choice(
        [0, 1, 2], p=data.draw(st.sampled_from([(0, 0.8, 0.2), (0.5, 0.4, 0.1), (1, 0, 0)])), size=len(case.request_T)
    )
    transport = data.draw(st.sampled_from(["node", "rank", "assignment", "allgather"]))
    if transport != "rank" and data.draw(st.booleans()):
        case = replace(case, cluster=replace(case.cluster, run_time_balance="node"))
    size, most = data.draw(st.sampled_from([1, 2, 3])), data.draw(st.sampled_from([1, 40, 10**6]))
    seed = data.draw(st.integers(0, 2**63 - 1))
    wanted = reference(case, phase_T, transport, size, most, seed)
    with (
        tempfile.TemporaryDirectory() as folder,
        QUICK,
        mock.patch.object(server_order, "window_tokens", lambda most_step: most),
    ):
        write_trace(
            folder,
            ids_LTK=case.ids_LTK,
            num_experts=case.num_experts,
            request_T=case.request_T,
            requests=case.num_requests,
            num_shards=case.num_shards,
            short=0.0 if case.signed else None,
            phase_T=phase_T,
        )
        trace = open_trace(folder)
        trace = trace if case.selected_Q is None else trace.select(case.selected_Q)

        def replayed(executor: Any = None) -> Any:
            (rows,) = evaluate_steps(
                trace,
                [case.placement()],
                step_tokens=[size],
                cluster=case.cluster,
                replica_choice=choice,
                transport=transport,
                home_Q=case.home_Q,
                seed=seed,
                executor=executor,
            )
            return rows

        held = {phase: left + steps * size * case.cluster.num_ranks for phase, (steps, left, _) in wanted.items()}
        if max(held.values(), default=0) < size * case.cluster.num_ranks:
            with pytest.raises(OptionError, match="no step is full"):
                replayed()
            return
        rows = replayed()
        with ThreadPoolExecutor(3) as executor:
            assert replayed(executor) == rows
    assert [row.phase for row in rows] == list(wanted)
    for row in rows:
        steps, left_out, over = wanted[row.phase]
        assert (row.tokens_per_gpu, row.steps, row.left_out) == (size, steps, left_out)
        if over is None:
            assert row.figures is None
            continue
        for name in NAMES:
            mean, p99 = over[name]
            told = getattr(row.figures, name)
            assert told.mean == pytest.approx(mean, rel=1e-9)
            assert told.p99 == pytest.approx(p99, rel=3e-4)
        assert row.figures.terms_us == pytest.approx(over["terms"], rel=1e-9)
        assert sum(row.figures.governed) == pytest.approx(1)
        assert (np.array(row.figures.governed) <= over["most"] + 1e-9).all()
        split, gpu = row.figures.best_split, row.figures.busiest_gpu
        assert split.mean <= gpu.mean and split.p99 <= gpu.p99
        if case.cluster.num_slots == case.num_experts:
            assert split == gpu


def test_another_seed_gives_another_order(write_trace: Any, tmp_path: Any) -> None:
    """The seed decides which tokens are of a step; in steps of one size the sums over all full ones stay near."""
    trace = open_trace(write_trace(tmp_path, tokens=400, requests=20).folder)
    maps = [
        Placement(
            model=trace.model,
            num_nodes=2,
            gpus_per_node=1,
            slots_per_gpu=4,
            phy2log_LP=np.tile(np.arange(8, dtype=np.int32), (2, 1)),
        )
    ]
    with QUICK:
        first, again, other = (evaluate_steps(trace, maps, step_tokens=[4], seed=seed) for seed in (1, 1, 2))
    assert first == again and first[0][0].figures != other[0][0].figures


def test_a_step_of_the_whole_trace_has_its_totals(write_trace: Any, tmp_path: Any) -> None:
    """With homes given and without copies, one step of all tokens has what `evaluate` tells, the busiest link too."""
    trace = open_trace(write_trace(tmp_path, tokens=400, requests=20).folder)
    row = np.tile(np.arange(8, dtype=np.int32), (2, 1))
    maps = [Placement(model=trace.model, num_nodes=2, gpus_per_node=2, slots_per_gpu=2, phy2log_LP=row)]
    home_Q = np.array([0, 0, 1, 0] * 5, dtype=np.int32)
    with QUICK:
        ((step,),) = evaluate_steps(trace, maps, step_tokens=[100], home_Q=home_Q)
    (whole,) = evaluate(trace, maps, home_Q=home_Q)
    link_L = np.maximum(whole.busiest_in_L(), whole.busiest_out_L())
    assert (step.steps, step.left_out) == (1, 0)
    assert step.figures is not None
    assert step.figures.busiest_gpu.mean == pytest.approx(whole.rank_imbalance_L().mean(), rel=1e-9)
    assert step.figures.sends.mean == pytest.approx(whole.sends_L.mean(), rel=1e-9)
    assert step.figures.busiest_link.mean == pytest.approx(link_L.mean(), rel=1e-9)
    assert step.figures.busiest_sends.mean == pytest.approx((whole.sends_L * link_L).mean(), rel=1e-9)


def test_maps_of_different_shapes_have_steps_of_their_own(write_trace: Any, tmp_path: Any) -> None:
    """A map is measured as if the others were not there."""
    trace = open_trace(write_trace(tmp_path, tokens=300, requests=20).folder)
    row = np.tile(np.arange(8, dtype=np.int32), (2, 1))
    shapes = ((2, 1, 4), (2, 2, 2), (1, 8, 1))
    maps = [
        Placement(model=trace.model, num_nodes=n, gpus_per_node=g, slots_per_gpu=s, phy2log_LP=row)
        for n, g, s in shapes
    ]
    with QUICK:
        together = evaluate_steps(trace, maps, step_tokens=[2, 16])
        assert together == [evaluate_steps(trace, [one], step_tokens=[2, 16])[0] for one in maps]


@given(values=st.lists(st.floats(0, 1e12), min_size=1, max_size=300), cuts=st.lists(st.integers(0, 300)))
def test_a_spread_is_that_of_all_its_pieces(values: list[float], cuts: list[int]) -> None:
    """The mean is exact, the 99th percentile is to 0.03%, however the figures came."""
    spread = Spread()
    for part in np.split(np.array(values), sorted(min(cut, len(values)) for cut in cuts)):
        spread.add(part)
    told = spread.over_steps()
    mean, p99 = plain.over_steps(values)
    assert told.mean == pytest.approx(mean, rel=1e-9)
    assert told.p99 == pytest.approx(p99, rel=3e-4, abs=1e-300)
