"""Synthetic traces: shape, determinism, group limit, bounds."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from placement.errors import InputError, OptionError, OutputError
from placement.traces.synth import synthesize, write_synthetic
from placement.traces.synthetic.presets import PRESETS, TraceShape, custom_shape, preset
from placement.traces.synthetic.synth_requests import plan_requests
from placement.traces.trace import open_trace
from placement.traces.write import TokenPiece
from placement.workload.count import count


def few_layers(name: str, layers: int = 2) -> TraceShape:
    shape = preset(name)
    return replace(shape, model=replace(shape.model, layer_ids=shape.model.layer_ids[:layers]))


def whole(shape: TraceShape, tokens: int = 600, requests: int = 7, **options: object) -> TokenPiece:
    pieces = list(synthesize(shape, num_tokens=tokens, num_requests=requests, **options)[1])
    return TokenPiece(
        ids_LTK=np.concatenate([piece.ids_LTK for piece in pieces], axis=1),
        request_T=np.concatenate([piece.request_T for piece in pieces]),
        position_T=np.concatenate([piece.position_T for piece in pieces]),
        phase_T=np.concatenate([piece.phase_T for piece in pieces]),
        weights_LTK=None if pieces[0].weights_LTK is None else np.concatenate([p.weights_LTK for p in pieces], axis=1),
    )


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_makes_a_valid_trace_of_its_shape(tmp_path: Path, name: str) -> None:
    shape = few_layers(name)
    assert write_synthetic(tmp_path / "t", shape, num_tokens=300, num_requests=5) == 300
    trace = open_trace(tmp_path / "t")
    assert trace.model == shape.model
    assert trace.extras["source"] == "synthetic"
    assert count(trace).num_tokens == 300


def test_presets_have_the_published_shapes() -> None:
    sizes = {
        name: (shape.model.num_layers, shape.model.num_experts, shape.model.top_k) for name, shape in PRESETS.items()
    }
    assert sizes == {
        "olmoe": (16, 64, 8),
        "mixtral": (32, 8, 2),
        "gpt-oss-20b": (24, 32, 4),
        "gpt-oss-120b": (36, 128, 4),
        "qwen3-30b": (48, 128, 8),
        "qwen3-235b": (94, 128, 8),
        "qwen3-next": (48, 512, 10),
        "gemma-4-26b": (30, 128, 8),
        "glm-5.2": (75, 256, 8),
        "deepseek-v3": (58, 256, 8),
        "kimi-k2": (60, 384, 8),
        "deepseek-v4-pro": (61, 384, 6),
    }
    assert preset("deepseek-v3").model.layer_ids == tuple(range(3, 61))
    assert preset("glm-5.2").model.layer_ids == tuple(range(3, 78))


def test_the_same_seed_gives_the_same_bytes_whatever_the_workers_and_another_seed_other_ones(tmp_path: Path) -> None:
    shape = few_layers("deepseek-v3")
    with ThreadPoolExecutor(3) as executor:
        write_synthetic(tmp_path / "a", shape, num_tokens=20_000, num_requests=9, weights=True, executor=executor)
    write_synthetic(tmp_path / "b", shape, num_tokens=20_000, num_requests=9, weights=True)
    write_synthetic(tmp_path / "c", shape, num_tokens=20_000, num_requests=9, weights=True, seed=1)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["shard-00000.safetensors", "shard-00001.safetensors", "trace.json"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        assert (tmp_path / "a" / name).read_bytes() != (tmp_path / "c" / name).read_bytes()


def test_tokens_of_a_group_limited_model_stay_within_its_groups_and_without_the_limit_they_do_not() -> None:
    shape = few_layers("deepseek-v3")
    assert shape.model.num_groups == 8
    free = shape.without_group_limit()
    assert (free.model.num_groups, free.groups_per_token) == (None, None)
    limited, unlimited = (_most_groups(whole(each).ids_LTK // 32) for each in (shape, free))
    assert limited <= 4 < unlimited


def test_requests_are_contiguous_and_go_from_prompt_to_decode() -> None:
    piece = whole(few_layers("mixtral"), tokens=40_000, requests=30)
    for request in range(30):
        rows = np.flatnonzero(piece.request_T == request)
        assert np.array_equal(rows, np.arange(rows[0], rows[-1] + 1))
        assert np.array_equal(piece.position_T[rows], np.arange(len(rows)))
        assert piece.phase_T[rows[0]] == 0
        assert np.all(np.diff(piece.phase_T[rows].astype(int)) >= 0)
    assert 0.5 < piece.phase_T.mean() < 0.9


def test_weights_are_those_of_a_softmax_over_the_top_k_the_best_first() -> None:
    weights_LTK = whole(few_layers("olmoe"), weights=True).weights_LTK
    assert weights_LTK is not None
    np.testing.assert_allclose(weights_LTK.astype(np.float32).sum(axis=2), 1, atol=5e-3)
    assert np.all(np.diff(weights_LTK, axis=2) <= 0)


@pytest.mark.parametrize(("tokens", "requests"), [(1, 1), (5, 5), (1000, 1), (12345, 678)])
def test_lengths_are_positive_and_sum_to_the_tokens(tokens: int, requests: int) -> None:
    plan = plan_requests(np.random.default_rng(0), tokens, requests, 3, 2)
    assert plan.length_Q.sum() == tokens
    assert len(plan.length_Q) == requests
    assert plan.length_Q.min() >= 1
    assert np.all((plan.prompt_Q >= 1) & (plan.prompt_Q <= plan.length_Q))


def test_no_expert_of_a_large_model_takes_nearly_all_or_is_dead() -> None:
    """The bias is balanced as in training: without it a third of DeepSeek-V3's experts would see no token."""
    ids_LTK = whole(few_layers("deepseek-v3"), tokens=15_000, requests=300).ids_LTK
    for layer in ids_LTK:
        load_E = np.bincount(layer.ravel(), minlength=256)
        assert np.count_nonzero(load_E == 0) <= 5
        assert load_E.max() / load_E.mean() < 7


def test_a_single_expert_is_a_legal_shape() -> None:
    assert whole(custom_shape(1, 1, 1), tokens=3, requests=1).ids_LTK.tolist() == [[[0], [0], [0]]]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_tokens": 3, "num_requests": 4}, "tokens=3 must be at least requests=4"),
        ({"num_tokens": 3, "num_requests": 0}, "requests=0 must be at least 1"),
        ({"num_tokens": 2**31, "num_requests": 1}, "tokens=2147483648 is out of range"),
        ({"num_tokens": 3, "num_requests": 1, "seed": -1}, "seed=-1 must not be negative"),
        ({"num_tokens": 3, "num_requests": 1, "num_domains": 0}, "domains=0 must be at least 1"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, int], told: str) -> None:
    with pytest.raises(OptionError, match=told):
        synthesize(few_layers("mixtral"), **options)


def test_shapes_that_cannot_be_are_named() -> None:
    with pytest.raises(OptionError, match=r"preset 'gpt-5' is unknown; choose one of olmoe, "):
        preset("gpt-5")
    with pytest.raises(InputError, match="top_k=9 is out of range"):
        custom_shape(1, 8, 9)
    with pytest.raises(OptionError, match="num_layers=2147483648 is out of range"):  # before any list of them is made
        custom_shape(2**31, 8, 2)
    with pytest.raises(OptionError, match="num_layers=0"):
        custom_shape(0, 8, 2)
    model = preset("deepseek-v3").model
    with pytest.raises(OptionError, match="both or neither"):
        TraceShape(model=model)
    with pytest.raises(OptionError, match="groups_per_token=9 is out of range"):
        TraceShape(model=model, groups_per_token=9)
    with pytest.raises(OptionError, match="leaves 32 experts, fewer than top_k=40"):
        TraceShape(model=replace(model, top_k=40), groups_per_token=1)


def test_a_wrong_option_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(OptionError):
        write_synthetic(tmp_path / "t", few_layers("mixtral"), num_tokens=0, num_requests=1)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "t").write_text("x")
    with pytest.raises(OutputError):
        write_synthetic(tmp_path / "t", few_layers("mixtral"), num_tokens=1, num_requests=1)


def _most_groups(group_LTK: np.ndarray) -> int:
    return max(len(set(groups)) for groups in group_LTK.reshape(-1, group_LTK.shape[2]).tolist())
