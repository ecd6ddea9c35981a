"""The study of a trace against brute force, planted truths, and what a trace may lack."""

from __future__ import annotations

import json
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.analysis.info import Study, StudyOptions, describe
from placement.analysis.info.domains import PENALTIES, folds_of, told_labels
from placement.analysis.info.kernels import pack_evenly
from placement.analysis.info.study_measures import foretelling, gini, group_imbalance, top_share
from placement.errors import OptionError
from placement.traces.trace import Trace, open_trace
from placement.workload.counts_file import ExpertCounts, read_counts

Array = np.ndarray


def planted(folder: Path, write_trace: Any, *, requests: int = 60, domains: int = 3, length: int = 40) -> Any:
    """Requests of `domains` domains that like experts of their own, 2 layers of 12 experts, top-3."""
    rng = np.random.default_rng(1)
    domain_Q = np.arange(requests) % domains
    likes_DLE = rng.normal(0, 2, (domains, 2, 12))
    request_T = np.repeat(np.arange(requests), length)
    logits = likes_DLE[domain_Q[request_T]].transpose(1, 0, 2) + rng.gumbel(size=(2, len(request_T), 12))
    ids_LTK = np.argsort(-logits, axis=2)[:, :, :3]
    trace = write_trace(folder, ids_LTK=ids_LTK, request_T=request_T, num_experts=12, requests=requests)
    relabel(trace, [f"d{domain}" for domain in domain_Q.tolist()])
    return trace


def relabel(trace: Any, labels: list[str | None]) -> None:
    entries = [{"id": f"r{q}"} | ({} if label is None else {"domain": label}) for q, label in enumerate(labels)]
    (trace.folder / "trace.json").write_text(json.dumps(trace.manifest | {"requests": entries}))


def study_of(trace: Any, **options: Any) -> Study:
    return studied(open_trace(trace.folder), **options)


def studied(source: Trace | ExpertCounts, executor: Executor | None = None, **options: Any) -> Study:
    study = describe(source, executor, study=StudyOptions(**options)).study
    assert study is not None
    return study


def first_part(trace: Any) -> Array:
    """The first quarter of each request, counted by hand, bool [T]."""
    span_Q = np.bincount(trace.request_T)
    return trace.position_T < span_Q[trace.request_T] // 4


@pytest.fixture
def small(tmp_path: Path, write_trace: Any) -> Any:
    """12 requests of two domains and of uneven length, small enough for loops over all pairs of tokens."""
    request_T = np.sort(np.random.default_rng(3).integers(0, 12, size=150))
    trace = write_trace(
        tmp_path / "t", tokens=150, num_experts=9, top_k=2, request_T=request_T, requests=12, num_shards=3
    )
    relabel(trace, ["a" if q % 2 else "b" for q in range(12)])
    return trace


def test_what_tokens_share_is_the_mean_over_all_pairs_of_tokens(small: Any) -> None:
    """Closed forms against a loop: same request, another request of the domain, another domain."""
    study = study_of(small)
    domain_T = small.request_T % 2
    for layer, ids_TK in enumerate(small.ids_LTK):
        common_TT = (ids_TK[:, None, :, None] == ids_TK[None, :, None, :]).sum(axis=(2, 3)) / 2
        same_TT = small.request_T[:, None] == small.request_T[None]
        near_TT = (domain_T[:, None] == domain_T[None]) & ~same_TT
        far_TT = domain_T[:, None] != domain_T[None]
        np.fill_diagonal(same_TT, False)
        for mask_TT, measure in ((same_TT, "request"), (near_TT, "domain"), (far_TT, "other")):
            by_token = [common_TT[t][mask_TT[t]].mean() for t in range(150) if mask_TT[t].any()]
            assert getattr(study.layers[layer], f"overlap_{measure}") == pytest.approx(np.mean(by_token))


def test_what_info_tells_too_is_told_alike(small: Any) -> None:
    """Skew, variation, drift and overlap are those of `placement traces info`."""
    study, info = study_of(small), describe(open_trace(small.folder))
    for mine, theirs in (
        ("load_skew", "load_skew"),
        ("load_cv", "load_cv"),
        ("drift", "domain_drift"),
        ("overlap_next", "overlap"),
        ("overlap_chance", "overlap_chance"),
    ):
        assert study.values(mine) == pytest.approx(info.values(theirs))


def test_foretelling_is_the_mean_of_plain_correlations(small: Any) -> None:
    """numpy's corrcoef for every pair of requests, of parts that were counted by hand."""
    study = study_of(small)
    first_T = first_part(small)
    for layer, ids_TK in enumerate(small.ids_LTK):
        parts = np.zeros((2, 12, 9))
        for t in range(150):
            parts[int(not first_T[t]), small.request_T[t], ids_TK[t]] += 1
        found: dict[str, list[float]] = {"own": [], "same_domain": [], "other_domain": []}
        for q in range(12):
            for r in range(12):
                kind = "own" if q == r else "same_domain" if (q - r) % 2 == 0 else "other_domain"
                found[kind].append(np.corrcoef(parts[0, q], parts[1, r])[0, 1])
        for kind, values in found.items():
            assert getattr(study.layers[layer], kind) == pytest.approx(np.mean(values))


def test_homes_are_those_of_loops_over_tokens(small: Any) -> None:
    """Shares served and sends of the second parts, with favourites and homes chosen request by request."""
    homes = study_of(small, num_nodes=3).homes
    assert homes is not None and homes.held == 3
    first_T = first_part(small)
    touched = np.zeros((2, 12, 3))
    counts = np.zeros((2, 2, 12, 9))
    for layer, ids_TK in enumerate(small.ids_LTK):
        for t in range(150):
            part, request = int(not first_T[t]), small.request_T[t]
            counts[layer, part, request, ids_TK[t]] += 1
            touched[part, request, sorted(set(ids_TK[t] // 3))] += 1
    assignments = counts[:, 1].sum()
    assert homes.best == pytest.approx(np.sort(counts[:, 1], axis=2)[:, :, -3:].sum() / assignments)
    served = 0.0
    for layer in range(2):
        for q in range(12):
            others = counts[layer].sum(axis=(0, 1)) - counts[layer, :, q].sum(axis=0)
            served += counts[layer, 1, q, np.argsort(-others, kind="stable")[:3]].sum()
    assert homes.all == pytest.approx(served / assignments)
    tokens = assignments / 2
    assert homes.sends_random == pytest.approx(touched[1].sum() * 2 / 3 / tokens)
    assert homes.sends_best == pytest.approx((touched[1].sum() - touched[1].max(axis=1).sum()) / tokens)
    at_first = touched[1][np.arange(12), touched[0].argmax(axis=1)].sum()
    assert homes.sends_first == pytest.approx((touched[1].sum() - at_first) / tokens)
    assert homes.sends_best <= min(homes.sends_first, homes.sends_random)
    assert homes.best >= max(homes.first, homes.all)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12).filter(any))
def test_gini_is_half_the_relative_mean_difference(loads: list[int]) -> None:
    load_E = np.array(loads)
    assert gini(load_E) == pytest.approx(np.abs(load_E[:, None] - load_E[None]).mean() / (2 * load_E.mean()), abs=1e-12)
    assert top_share(load_E) == sum(sorted(loads, reverse=True)[: (len(loads) + 9) // 10]) / sum(loads)


def test_planted_domains_are_told_and_differ(tmp_path: Path, write_trace: Any) -> None:
    """Domains with tastes of their own: nearly all requests are told, halves of a domain are more alike than domains,
    and a home with the experts of the domain is worth much."""
    study = study_of(planted(tmp_path / "t", write_trace))
    assert study.telling is not None and study.similarity is not None and study.homes is not None
    assert study.telling.first.accuracy > 0.95
    assert study.telling.majority == pytest.approx(1 / 3)
    assert np.sum(study.telling.confusion) == 60
    assert np.trace(np.array(study.telling.confusion)) == round(60 * study.telling.first.accuracy)
    alike = np.array(study.similarity.similarity)
    assert np.diag(alike).min() > 0.98 > alike[~np.eye(3, dtype=bool)].max()
    assert study.homes.domain is not None and study.homes.domain > study.homes.all + 0.1
    assert study.domain_share == pytest.approx(study.request_share, abs=0.02)
    assert study.mean("drift") > 3 * study.mean("drift_chance")
    assert study.mean("balance_own") < study.mean("balance_shared")


def test_labels_that_mean_nothing_are_told_as_badly_as_by_chance(tmp_path: Path, write_trace: Any) -> None:
    """The classifier never sees the request that it tells: dealt labels give no more than chance."""
    trace = planted(tmp_path / "t", write_trace, requests=90)
    accuracies = []
    for seed in range(4):
        dealt = np.random.default_rng(seed).permutation(np.arange(90) % 3)
        relabel(trace, [f"d{label}" for label in dealt.tolist()])
        study = study_of(trace)
        assert study.telling is not None
        accuracies.append(study.telling.first.accuracy)
    assert np.mean(accuracies) < 0.43
    assert study.domain_share == pytest.approx(0, abs=0.02)


def test_domains_that_load_cannot_part_are_one_kind(tmp_path: Path, write_trace: Any) -> None:
    """Four domains of which two and two have the same taste: they are told by kind, not by domain."""
    trace = planted(tmp_path / "t", write_trace, requests=120, domains=2)
    relabel(trace, [f"d{q % 2}{'ab'[q // 2 % 2]}" for q in range(120)])
    telling = study_of(trace).telling
    assert telling is not None and telling.kinds is not None
    kind_of = dict(zip(telling.domains, telling.kinds, strict=True))
    assert kind_of["d0a"] == kind_of["d0b"] != kind_of["d1a"] == kind_of["d1b"]
    assert telling.kind_accuracy is not None and telling.kind_accuracy > 0.95 > 0.75 > telling.first.accuracy


def test_a_request_that_never_changes_is_foretold_in_full(tmp_path: Path, write_trace: Any) -> None:
    """Each request repeats one top-k set: consecutive tokens share all, and its first quarter says all of the rest."""
    rng = np.random.default_rng(0)
    set_QK = np.array([rng.permutation(12)[:3] for _ in range(20)])
    request_T = np.repeat(np.arange(20), 16)
    trace = write_trace(
        tmp_path / "t", ids_LTK=set_QK[request_T][None], request_T=request_T, num_experts=12, requests=20
    )
    study = study_of(trace, num_nodes=4)
    for measure in ("overlap_next", "overlap_request", "own"):
        assert study.mean(measure) == pytest.approx(1)
    assert study.request_share == pytest.approx(1)
    assert study.homes is not None and study.homes.first == study.homes.best == 1


def test_independent_tokens_are_not_foretold_beyond_popularity(tmp_path: Path, write_trace: Any) -> None:
    """One distribution for all tokens: neighbours, requests and chance are alike."""
    study = study_of(write_trace(tmp_path / "t", tokens=6000, requests=30, spread=0.0, num_experts=16, top_k=4))
    for measure in ("overlap_next", "overlap_request"):
        assert study.mean(measure) == pytest.approx(study.mean("overlap_chance"), rel=0.03)
    assert study.request_share == pytest.approx(0, abs=0.01)


def test_recorded_phases_are_the_two_parts(tmp_path: Path, write_trace: Any) -> None:
    """Prefill at experts 0 to 3, decode at 4 to 7: nothing of the decode is foretold, and homes say so."""
    from safetensors.numpy import load_file, save_file

    request_T, rng = np.repeat(np.arange(10), 20), np.random.default_rng(0)
    decode_T = np.tile(np.arange(20) >= 8, 10)
    ids_LTK = np.array([[rng.permutation(4)[:2] + 4 * late for late in decode_T]])
    trace = write_trace(tmp_path / "t", ids_LTK=ids_LTK, request_T=request_T, requests=10)
    tensors = load_file(trace.shards[0])
    save_file(tensors | {"phase": decode_T.astype(np.uint8)}, trace.shards[0], metadata={"schema": "expert-trace/1"})
    study = study_of(trace, num_nodes=2)
    assert study.first_part == "prefill"
    assert study.mean("own") is not None and study.mean("own") < -0.7
    assert study.homes is not None and study.homes.first == 0 and study.homes.best == 1


def test_the_answer_does_not_depend_on_shards_order_or_workers(tmp_path: Path, write_trace: Any) -> None:
    """Tokens in any order, cut anywhere, counted by any number of threads: the same answer."""
    whole = planted(tmp_path / "a", write_trace, requests=30)
    order = np.random.default_rng(5).permutation(len(whole.request_T))
    from safetensors.numpy import load_file, save_file

    tensors = load_file(whole.shards[0])
    turned = {
        name: np.ascontiguousarray(value[:, order] if value.ndim == 3 else value[order])
        for name, value in tensors.items()
    }
    other = tmp_path / "b"
    other.mkdir()
    (other / "trace.json").write_bytes((whole.folder / "trace.json").read_bytes())
    save_file(turned, other / "shard-00000.safetensors", metadata={"schema": "expert-trace/1"})
    expected = study_of(whole).document()
    with ThreadPoolExecutor(3) as executor:
        assert studied(open_trace(other), executor).document() == expected


def test_ridge_is_that_of_the_normal_equations_with_explicit_leave_one_out() -> None:
    """Told labels against a primal ridge whose penalty was chosen by fitting without each request in turn."""
    rng = np.random.default_rng(2)
    label_Q = np.repeat([0, 1, 2], 8)
    x = rng.normal(size=(24, 5)) + 1.2 * np.eye(5)[label_Q]
    fold_Q = folds_of(label_Q, 0)

    def fit(rows: Array, penalty: float) -> tuple[Array, Array]:
        mean, target = x[rows].mean(axis=0), np.eye(3)[label_Q[rows]]
        centred = x[rows] - mean
        weight = np.linalg.solve(centred.T @ centred + penalty * np.eye(5), centred.T @ (target - target.mean(axis=0)))
        return weight, target.mean(axis=0) - mean @ weight

    told_Q = np.empty(24, dtype=int)
    for fold in range(5):
        train, test = np.flatnonzero(fold_Q != fold), np.flatnonzero(fold_Q == fold)
        centred = x[train] - x[train].mean(axis=0)
        scale = np.linalg.eigvalsh(centred @ centred.T).clip(0).mean()
        errors = []
        for penalty in PENALTIES * scale:
            missed = 0.0
            for row in train:
                weight, offset = fit(train[train != row], penalty)
                missed += ((np.eye(3)[label_Q[row]] - x[row] @ weight - offset) ** 2).sum()
            errors.append(missed)
        weight, offset = fit(train, PENALTIES[int(np.argmin(errors))] * scale)
        told_Q[test] = (x[test] @ weight + offset).argmax(axis=1)
    np.testing.assert_array_equal(told_labels(x @ x.T, label_Q, fold_Q), told_Q)


@given(st.integers(2, 9), st.integers(1, 9), st.integers(0, 99))
def test_packing_fills_ranks_evenly(num_experts: int, num_ranks: int, seed: int) -> None:
    """Every rank gets its room; with two experts a rank the heaviest goes with the lightest, which is the optimum."""
    num_ranks = min(num_ranks, num_experts)
    load_E = np.random.default_rng(seed).exponential(size=num_experts)
    rank_E = pack_evenly(load_E, num_ranks)
    room = np.bincount(rank_E, minlength=num_ranks)
    assert room.max() - room.min() <= 1 and room.sum() == num_experts
    if num_experts == 2 * num_ranks:
        heaviest = np.sort(load_E)[::-1]
        pairs = heaviest[:num_ranks] + heaviest[::-1][:num_ranks]
        assert group_imbalance(load_E, rank_E, num_ranks) == pytest.approx(pairs.max() / pairs.mean())


def test_parts_that_lack_what_they_need_say_so(tmp_path: Path, write_trace: Any) -> None:
    """No domains, one domain, one request, requests too short to part: no figure, a sentence, and valid JSON."""
    trace = planted(tmp_path / "t", write_trace, requests=12)
    for labels, told in (
        ([None] * 12, "no request has a domain"),
        (["x"] * 12, "1 of 1 domains have 5 or more requests"),
        ([f"x{q}" for q in range(12)], "0 of 12 domains"),
        (["x"] * 5 + ["y"] * 5 + ["z", None], "1 of 3 domains, with fewer than 5 requests, are left out"),
    ):
        relabel(trace, labels)
        study = study_of(trace)
        assert any(told in sentence for sentence in study.missing), study.missing
        assert (study.telling is None) == (labels[0] == labels[-1] or labels[1] == "x1")
        json.dumps(study.document(), allow_nan=False)
    one = study_of(write_trace(tmp_path / "one", tokens=9, requests=1))
    assert one.homes is None and one.telling is None and one.mean("own") is not None
    assert any("fewer than two requests" in sentence for sentence in one.missing)
    short = study_of(write_trace(tmp_path / "short", tokens=8, requests=8))
    assert short.mean("own") is None and short.mean("overlap_next") is None
    for study in (one, short):
        json.dumps(study.document(), allow_nan=False)


def test_counts_without_tokens_give_what_they_can(tmp_path: Path) -> None:
    """Load, and sharing within requests where counts are whole; what needs tokens is None and said to be unknown."""
    rng = np.random.default_rng(0)
    counts_QLE = rng.multinomial(40, rng.dirichlet(np.ones(8), size=(20, 3)))
    np.savez(tmp_path / "c.npz", counts=counts_QLE, top_k=2)
    study = studied(read_counts(tmp_path / "c.npz"), num_nodes=2)
    assert study.layers[1].load_skew == pytest.approx(counts_QLE[:, 1].sum(axis=0).max() / (40 * 20 / 8))
    assert (study.telling, study.homes, study.mean("own"), study.mean("overlap_next")) == (None,) * 4
    assert study.request_share is not None and study.request_share > 0
    assert any("counts without tokens" in sentence for sentence in study.missing)
    np.savez(tmp_path / "f.npz", frac=counts_QLE[0] / 40, top_k=2)
    assert studied(read_counts(tmp_path / "f.npz")).request_share is None


@pytest.mark.parametrize(
    "options", [{"by": "size"}, {"num_nodes": 0}, {"num_nodes": 5, "gpus_per_node": 2}, {"seed": -1}]
)
def test_options_out_of_range_are_refused(small: Any, options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        study_of(small, **options)


def test_flat_parts_are_left_out_of_foretelling() -> None:
    """A part that visits all experts alike has no correlation with anything."""
    first_QE, second_QE = np.array([[1.0, 1, 1], [3, 2, 1]]), np.array([[1.0, 2, 3], [3, 2, 1]])
    own, same, other = foretelling(first_QE, second_QE, np.array([0, 1]))
    assert own == pytest.approx(1) and same is None and other is None
