"""Steps of a replay are those of a plain-Python replay, whatever the map, and what cannot be a step is refused."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import steps_reference as plain
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_evaluation import Case, cases

from placement import Placement, evaluate, evaluate_steps, open_trace
from placement.core.topology import Topology
from placement.cost.choices import REPLICA_CHOICES
from placement.cost.kernel_balanced import RunningLoad
from placement.cost.lookup_tables import layer_tables
from placement.cost.steps.given import parse_step_tokens
from placement.cost.steps.spread import Spread
from placement.cost.steps.uniform import draw_sets
from placement.errors import OptionError
from placement.traces import server_order

RELAXED = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
NAMES = ("busiest_gpu", "busiest_link", "busiest_sends", "sends", "step_us")
QUICK = mock.patch.multiple("placement.cost.steps.uniform", MOST_DRAWN=0, FEWEST_LAYERS=1)


def reference(case: Case, phase_T: np.ndarray, transport: str, size: int, most: int, seed: int) -> dict[str, Any]:
    """Figures by phase; None of a phase in which no step is full."""
    cluster = case.cluster
    shape = {"nodes": cluster.num_nodes, "gpus": cluster.gpus_per_node}
    facts = plain.Cluster(
        **shape,
        speeds=(np.array(cluster.gpu_speeds) / np.mean(cluster.gpu_speeds)).tolist(),
        fare=[
            [0.0 if a == b else cluster.inter_gbps / min(x, y) for b, y in enumerate(cluster.topology.node_gbps)]
            for a, x in enumerate(cluster.topology.node_gbps)
        ],
        copy_bits=8 * (cluster.dispatch_bytes + cluster.combine_bytes),
        inter_gbps=cluster.inter_gbps,
        intra_gbps=cluster.intra_gbps,
        expert_bytes=cluster.expert_bytes,
        gpu_tflops=cluster.gpu_tflops,
        memory_gbps=cluster.memory_gbps,
        copy_us=cluster.copy_us,
        latency_us=cluster.latency_us,
        slots=cluster.slots_per_gpu,
        shared=cluster.run_time_balance == "node",
    )
    request_of = case.request_T.tolist()
    shards = [part.tolist() for part in np.array_split(np.arange(len(request_of)), case.num_shards)]
    found: dict[str, Any] = {}
    for phase in ("prefill", "decode"):

        def kept(index: int, prefill: bool = phase == "prefill") -> bool:
            mine = case.selected_Q is None or case.selected_Q[request_of[index]]
            return bool(mine) and (phase_T[index] == 0) == prefill

        steps: list[list[plain.Token]] = []
        tokens = 0
        draw = Draw(case)
        rows: list[list[tuple[float, ...]]] = []
        for window in plain.windows(shards, kept, most):
            tokens += len(window)
            homes = None if case.home_Q is None else case.home_Q.tolist()
            order = plain.run_order(window, request_of, prefill=phase == "prefill", home_of=homes, seed=seed, **shape)
            served = [[draw(layer, token) for token in order] for layer in range(case.num_layers)]
            of_step = size * cluster.num_ranks
            for start in range(0, len(order) - of_step + 1, of_step):
                steps.append(order[start : start + of_step])
                rows.append(
                    [plain.layer_of_step(ranks[start : start + of_step], facts, transport, size) for ranks in served]
                )
        if not tokens:
            continue
        left_out = tokens - sum(map(len, steps))
        over = None
        if rows:
            sums = np.array([np.sum(row, axis=0) for row in rows])
            scale = np.array([case.num_layers] * 4 + [1])
            over = {
                name: plain.over_steps(column.tolist())
                for name, column in zip(NAMES, (sums[:, :5] / scale).T, strict=True)
            }
            terms = sums[:, 5:]
            largest = terms >= terms.max(axis=1, keepdims=True) * (1 - 1e-12)
            over |= {"terms": terms.mean(axis=0), "most": largest.mean(axis=0)}
        found[phase] = (len(steps), left_out, over)
    return found


class Draw:
    """The slots that serve a token, by the engine's own rule, asked token by token."""

    def __init__(self, case: Case) -> None:
        self.case, self.choice = case, REPLICA_CHOICES.make(case.choice)
        self.running: dict[tuple[int, int], RunningLoad] = {}

    def __call__(self, layer: int, token: plain.Token) -> tuple[int, list[int]]:
        case, cluster = self.case, self.case.cluster
        ids = case.ids_LTK[layer, token.index]
        slots = case.phy2log_LP[layer].tolist()
        if len(slots) == case.num_experts:
            chosen = [slots.index(e) for e in ids.tolist() if e >= 0]
        else:
            running = self.running.setdefault((layer, token.rank), RunningLoad.start(cluster))
            tables = layer_tables(case.phy2log_LP[layer], case.num_experts, cluster)
            slot_TK = np.empty((1, len(ids)), dtype=np.int32)
            self.choice.drawer(tables, token.rank, cluster)(ids[None].astype(np.int64), running, slot_TK)
            chosen = [slot for slot in slot_TK[0].tolist() if slot >= 0]
            assert [slots[slot] for slot in chosen] == [e for e in ids.tolist() if e >= 0]
        return token.rank, chosen


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


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "an empty place"),
        ("16,,64", "an empty place"),
        ("16,64,", "an empty place"),
        ("16, 64", "' 64'"),
        ("16 64", "'16 64'"),
        ("-4", "'-4'"),
        ("4.5", "'4.5'"),
        ("many", "'many'"),
        ("0,16", "has 0"),
        ("99999999999", "has 99999999999"),
        ("16,64,16", "16 twice"),
    ],
)
def test_sizes_that_are_none_are_refused(text: str, told: str) -> None:
    with pytest.raises(OptionError, match=told):
        parse_step_tokens(text)


def test_a_step_larger_than_the_trace_is_refused(write_trace: Any, tmp_path: Any) -> None:
    """The message says how many are allowed, and that many are."""
    phase_T = np.array([0] * 90 + [1] * 210)
    trace = open_trace(write_trace(tmp_path, tokens=300, requests=20, phase_T=phase_T).folder)
    maps = [
        Placement(
            model=trace.model,
            num_nodes=2,
            gpus_per_node=2,
            slots_per_gpu=2,
            phy2log_LP=np.tile(np.arange(8, dtype=np.int32), (2, 1)),
        )
    ]
    with pytest.raises(
        OptionError, match="90 of prefill and 210 of decode, so no step is full: at most 52 are allowed"
    ):
        evaluate_steps(trace, maps, step_tokens=[4, 53])
    with QUICK:
        ((prefill, decode),) = evaluate_steps(trace, maps, step_tokens=[52])
    assert (prefill.steps, prefill.left_out, prefill.figures) == (0, 90, None)
    assert (decode.steps, decode.left_out) == (1, 2)


@pytest.mark.parametrize(("experts", "top_k"), [(5, 2), (4, 4), (6, 1), (6, 3)])
def test_a_uniform_router_draws_every_set_alike(experts: int, top_k: int) -> None:
    """Chi-square of the sets that were drawn, at 5 standard deviations."""
    ids_TK = np.empty((60_000, top_k), dtype=np.int32)
    draw_sets(np.uint64(3), 0, experts, ids_TK)
    assert ids_TK.min() >= 0 and ids_TK.max() < experts
    ordered = np.sort(ids_TK, axis=1)
    assert (np.diff(ordered, axis=1) > 0).all()
    _, count = np.unique(ordered, axis=0, return_counts=True)
    mean = count.mean()
    freedom = len(count) - 1
    assert len(count) == {(5, 2): 10, (4, 4): 1, (6, 1): 6, (6, 3): 20}[experts, top_k]
    assert ((count - mean) ** 2 / mean).sum() <= freedom + 5 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("size", [2, 16])
def test_the_uniform_router_has_the_imbalance_of_chance(size: int, write_trace: Any, tmp_path: Any) -> None:
    """Against a simulation with numpy, of which this shares nothing: mean and 99th percentile of the busiest GPU."""
    written = write_trace(tmp_path, num_layers=3, num_experts=16, top_k=4, tokens=400, requests=20)
    trace = open_trace(written.folder)
    row = np.tile(np.arange(16, dtype=np.int32), (3, 1))
    maps = [Placement(model=trace.model, num_nodes=2, gpus_per_node=4, slots_per_gpu=2, phy2log_LP=row)]
    ((step,),) = evaluate_steps(trace, maps, step_tokens=[size])
    rng = np.random.default_rng(5)
    sets = rng.random((4000, size * 8, 16)).argsort(axis=2)[:, :, :4] // 2
    load = np.stack([(sets == rank).sum(axis=(1, 2)) for rank in range(8)], axis=1)
    peak = load.max(axis=1) / load.mean(axis=1)
    of_steps = rng.choice(peak, (4000, 3)).mean(axis=1)
    assert step.uniform.busiest_gpu.mean == pytest.approx(peak.mean(), rel=0.01)
    assert step.uniform.busiest_gpu.p99 == pytest.approx(np.quantile(of_steps, 0.99), rel=0.02)
    assert step.uniform.best_split == step.uniform.busiest_gpu  # no expert has copies
    assert step.uniform.step_us.mean == pytest.approx(sum(step.uniform.terms_us))
    assert step.uniform.sends.mean == pytest.approx(1 - _none_of(8, 16, 4), rel=0.01)


def _none_of(away: int, experts: int, top_k: int) -> float:
    """The chance that a set of `top_k` has none of `away` experts."""
    chance = 1.0
    for k in range(top_k):
        chance *= (experts - away - k) / (experts - k)
    return chance


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
