"""What a study tells of traces of which the answer is known, and of parts that lack what they need."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from study_traces import planted, relabel, studied, study_of

from placement.analysis.info.study_measures import foretelling
from placement.workload.counts_file import read_counts


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


def test_flat_parts_are_left_out_of_foretelling() -> None:
    """A part that visits all experts alike has no correlation with anything."""
    first_QE, second_QE = np.array([[1.0, 1, 1], [3, 2, 1]]), np.array([[1.0, 2, 3], [3, 2, 1]])
    own, same, other = foretelling(first_QE, second_QE, np.array([0, 1]))
    assert own == pytest.approx(1) and same is None and other is None
