"""Synthetic traces that resemble real routing: `--like` a pair file, a trace, counts; and what no pair file may say."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from placement import count, open_trace
from placement.documents.pair_file import read_pairs
from placement.errors import TraceError
from placement.traces.synth import write_synthetic
from placement.traces.synthetic.likeness import Likeness, pair_share, strong_pairs, strong_pairs_L
from placement.traces.synthetic.presets import TraceShape

EXPERTS, TOP_K, TOKENS = 48, 4, 12_000


def drawn(seed: int) -> np.ndarray:
    """Top-k sets of a layer of unequal loads and six groups of experts that go together, made without the library."""
    rng = np.random.default_rng(seed)
    popular_E = rng.gamma(1.0, size=EXPERTS) + 0.02
    group_E = rng.permutation(np.arange(EXPERTS) % 6)
    rows = []
    for group in rng.integers(6, size=TOKENS):
        logit_E = np.log(popular_E) + 3.0 * (group_E == group) + rng.gumbel(size=EXPERTS)
        rows.append(np.argsort(-logit_E)[:TOP_K])
    return np.array(rows)


@pytest.fixture(scope="module")
def real() -> list[np.ndarray]:
    return [drawn(1), drawn(2)]


def pairs_of(ids_TK: np.ndarray) -> np.ndarray:
    """Tokens that visit both, int [E, E], counted pair by pair."""
    coact_EE = np.zeros((EXPERTS, EXPERTS), dtype=np.int64)
    for a in range(TOP_K):
        for b in range(TOP_K):
            if a != b:
                np.add.at(coact_EE, (ids_TK[:, a], ids_TK[:, b]), 1)
    return coact_EE


def pair_file(real: list[np.ndarray], **changed: Any) -> dict[str, Any]:
    """What mbolt would write: loads, the pairs seen 5 times or more at a lift of 1.5 or more, and its own findings."""
    layers = []
    for number, ids_TK in enumerate(real):
        heat_E = np.bincount(ids_TK.ravel(), minlength=EXPERTS)
        coact_EE = pairs_of(ids_TK)
        rows = []
        for a, b in zip(*np.triu_indices(EXPERTS, 1), strict=True):
            lift = coact_EE[a, b] * TOKENS / max(heat_E[a] * heat_E[b], 1)
            if coact_EE[a, b] >= 5 and lift >= 1.5:
                rows.append([int(a), int(b), int(coact_EE[a, b]), round(float(lift), 2)])
        rows.sort(key=lambda row: -row[2])
        layers.append({"layer": 3 * number + 1, "heat": heat_E.tolist(), "pairs": rows, "clusters": [[0, 1]]})
    whole = {"model": "tiny", "quant": "Q4", "n_expert_per_layer": EXPERTS, "k": TOP_K, "n_decode_tokens": TOKENS}
    return whole | {"layers": layers} | changed


def write_pairs(path: Path, document: dict[str, Any]) -> Path:
    path.write_text(json.dumps(document))
    return path


def resemble(ids_TK: np.ndarray, like: np.ndarray) -> tuple[float, float, float, float]:
    """(total variation of loads, share of the strong pairs of `like` against theirs there, correlation of their
    counts, lift of its own strong pairs against that there)."""
    load_E, like_E = (np.bincount(one.ravel(), minlength=EXPERTS) / one.size for one in (ids_TK, like))
    mine, theirs = pairs_of(ids_TK), pairs_of(like)
    chance_EE = np.outer(like_E, like_E) * len(like) * TOP_K**2
    strong = np.triu((theirs >= 5) & (theirs >= 1.5 * chance_EE), 1)
    chance_of_mine = np.outer(load_E, load_E) * len(ids_TK) * TOP_K**2
    own = np.triu((mine >= 5) & (mine >= 1.5 * chance_of_mine), 1)
    share = (mine[strong].sum() / mine.sum()) / (theirs[strong].sum() / theirs.sum())
    lift = [
        float((count[which] * count[which] / chance[which]).sum() / count[which].sum())
        for count, which, chance in ((mine, own, chance_of_mine), (theirs, strong, chance_EE))
    ]
    together = np.corrcoef(mine[strong], theirs[strong])[0, 1]
    return float(np.abs(load_E - like_E).sum() / 2), float(share), float(together), lift[0] / lift[1]


def layers_of(folder: Path) -> list[np.ndarray]:
    trace = open_trace(folder)
    return [
        np.concatenate([block.ids_TK(layer) for block in trace.blocks()]) for layer in range(trace.model.num_layers)
    ]


def test_like_a_pair_file(real: list[np.ndarray], tmp_path: Path, run_cli: Any) -> None:
    """Every expert has its load, and the same pairs go together as often; what is not in the file is said."""
    path = write_pairs(tmp_path / "pairs.json", pair_file(real))
    options = ("--tokens", TOKENS, "--requests", 200, "--seed", 3)
    result = run_cli("traces", "synth", "-o", tmp_path / "t", "--like", path, *options)
    assert result.code == 0, result.stderr
    assert "pairs of experts are those of" in result.stdout and "requests" in result.stdout
    trace = open_trace(tmp_path / "t")
    assert (trace.model.name, trace.model.layer_ids, trace.model.num_experts) == ("tiny", (1, 4), EXPERTS)
    assert trace.extras["synthetic"]["like"] == "tiny"
    for made, was in zip(layers_of(tmp_path / "t"), real, strict=True):
        apart, share, together, lift = resemble(made, was)
        assert apart < 0.07
        assert share == pytest.approx(1.0, abs=0.05)
        assert together > 0.95
        assert lift == pytest.approx(1.0, abs=0.1)


def test_like_a_trace_of_its_own(real: list[np.ndarray], tmp_path: Path, write_trace: Any, run_cli: Any) -> None:
    """A trace has pairs, too: the answer resembles it as it resembles its pair file."""
    folder = write_trace(
        tmp_path / "real", ids_LTK=np.stack(real), num_experts=EXPERTS, requests=40, layer_ids=[1, 4]
    ).folder
    result = run_cli("traces", "synth", "-o", tmp_path / "t", "--like", folder, "--tokens", TOKENS, "--requests", 200)
    assert result.code == 0, result.stderr
    for made, was in zip(layers_of(tmp_path / "t"), real, strict=True):
        apart, share, together, _ = resemble(made, was)
        assert apart < 0.07 and together > 0.95
        assert share == pytest.approx(1.0, abs=0.05)


def test_like_counts(real: list[np.ndarray], tmp_path: Path, run_cli: Any) -> None:
    """Counts know loads alone, from a file of counts or a pair file without pairs."""
    count_LE = np.stack([np.bincount(ids_TK.ravel(), minlength=EXPERTS) for ids_TK in real])
    np.savez(tmp_path / "counts.npz", counts=count_LE)
    document = pair_file(real)
    for layer in document["layers"]:
        del layer["pairs"]
    path = write_pairs(tmp_path / "heat.json", document)
    for like, more in ((tmp_path / "counts.npz", ("--top-k", TOP_K)), (path, ())):
        folder = tmp_path / f"t-{like.stem}"
        options = ("--tokens", TOKENS, "--requests", 200, *more)
        result = run_cli("traces", "synth", "-o", folder, "--like", like, *options)
        assert result.code == 0, result.stderr
        assert "0 pairs" in result.stdout
        for made, was in zip(layers_of(folder), real, strict=True):
            assert resemble(made, was)[0] < 0.07


def test_same_bytes_whatever_the_workers(real: list[np.ndarray], tmp_path: Path) -> None:
    like = Likeness.of(read_pairs(write_pairs(tmp_path / "pairs.json", pair_file(real))))
    shape = TraceShape(model=like.model)
    with ThreadPoolExecutor(3) as executor:
        write_synthetic(tmp_path / "a", shape, num_tokens=900, num_requests=9, like=like, executor=executor)
    write_synthetic(tmp_path / "b", shape, num_tokens=900, num_requests=9, like=like)
    for name in ("trace.json", "shard-00000.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_an_expert_that_no_token_visits(real: list[np.ndarray], tmp_path: Path) -> None:
    """Loads of 0 are no reason to break, nor are layers without a pair or models of one expert a token."""
    document = pair_file(real)
    heat = document["layers"][0]["heat"]
    quiet = int(np.argmin(heat))
    document["layers"][0]["pairs"] = [row for row in document["layers"][0]["pairs"] if quiet not in row[:2]]
    heat[quiet] = 0
    document["layers"][1]["pairs"] = []
    like = Likeness.of(read_pairs(write_pairs(tmp_path / "a.json", document)))
    write_synthetic(tmp_path / "a", TraceShape(model=like.model), num_tokens=4000, num_requests=50, like=like)
    assert np.bincount(layers_of(tmp_path / "a")[0].ravel(), minlength=EXPERTS)[quiet] < 20
    one = [{"layer": 0, "heat": [60, 30, 10], "pairs": []}]
    top_1 = {"n_expert_per_layer": 3, "k": 1, "n_decode_tokens": 100, "layers": one}
    like = Likeness.of(read_pairs(write_pairs(tmp_path / "b.json", top_1)))
    assert like.pairs_L is None
    write_synthetic(tmp_path / "b", TraceShape(model=like.model), num_tokens=4000, num_requests=50, like=like)
    share_E = np.bincount(layers_of(tmp_path / "b")[0].ravel()) / 4000
    assert share_E == pytest.approx([0.6, 0.3, 0.1], abs=0.06)


def test_strong_pairs_of_counts_are_those_of_the_file(real: list[np.ndarray], write_trace: Any, tmp_path: Path) -> None:
    """By the rule of pair files, the pairs of a counted trace are the listed ones, with their shares and lifts."""
    folder = write_trace(tmp_path / "real", ids_LTK=np.stack(real), num_experts=EXPERTS, requests=40).folder
    counted = count(open_trace(folder))
    found_L = strong_pairs_L(counted.coact_LEE, counted.load_LE, counted.num_tokens, TOP_K)
    assert found_L is not None
    for found, layer, ids_TK in zip(found_L, pair_file(real)["layers"], real, strict=True):
        listed = {(a, b): (n, lift) for a, b, n, lift in layer["pairs"]}
        assert set(map(tuple, found.pair_M2.tolist())) == set(listed)
        for pair, share, lift in zip(found.pair_M2.tolist(), found.share_M, found.lift_M, strict=True):
            assert share * TOKENS * 6 == pytest.approx(listed[tuple(pair)][0])
            assert lift == pytest.approx(listed[tuple(pair)][1], abs=0.006)
        assert pair_share(ids_TK, found.pair_M2, EXPERTS) == pytest.approx(found.share)


def test_short_sets_keep_their_loads_in_proportion(write_trace: Any, tmp_path: Path, run_cli: Any) -> None:
    """A synthetic trace has full sets: loads are those of the short ones in proportion, shares are of the pairs that
    are there, and the command says how many experts tokens had."""
    real = write_trace(tmp_path / "real", ids_LTK=drawn(1)[None], num_experts=EXPERTS, requests=40, short=0.5).folder
    (ids_TK,) = layers_of(real)
    size = (ids_TK >= 0).sum() / TOKENS
    counted = count(open_trace(real))
    (found,) = strong_pairs_L(counted.coact_LEE, counted.load_LE, counted.num_tokens, TOP_K) or ()
    all_pairs = sum(n * (n - 1) // 2 for n in (ids_TK >= 0).sum(axis=1).tolist())
    together = [sum({a, b} <= set(row) for row in ids_TK.tolist()) for a, b in found.pair_M2.tolist()]
    assert len(together) > 10
    assert found.share_M == pytest.approx(np.array(together) / all_pairs)
    made = run_cli("traces", "synth", "-o", tmp_path / "t", "--like", real, "--tokens", TOKENS, "--requests", 100)
    assert f"4 experts in every layer, there {size:.2f} on average" in made.stdout
    load_E, real_E = (np.bincount(one[one >= 0], minlength=EXPERTS) for one in (layers_of(tmp_path / "t")[0], ids_TK))
    assert load_E.sum() == TOKENS * TOP_K
    assert np.corrcoef(load_E, real_E)[0, 1] > 0.95


def test_vectors_give_the_lifts_back() -> None:
    """Two groups of two that never mix are two dimensions: the products of vectors are the logarithms of the lifts."""
    pair_M2, load_E = np.array([[0, 1], [2, 3]]), np.array([100, 100, 100, 100])
    pairs = strong_pairs(pair_M2, np.array([80, 60]), load_E, 400, 400)
    assert pairs.lift_M == pytest.approx([3.2, 2.4])
    vectors_RE = pairs.vectors_RE(4)
    assert float(vectors_RE[:, 0] @ vectors_RE[:, 2]) == pytest.approx(0.0, abs=1e-6)
    assert float(vectors_RE[:, 0] @ vectors_RE[:, 1]) == pytest.approx(np.log(3.2) / 2, rel=1e-5)


BAD = {
    "not JSON": ("{", "JSON"),
    "a list": ("[]", "dictionary"),
    "no experts": ({"n_expert_per_layer": 0}, "n_expert_per_layer"),
    "no tokens": ({"n_decode_tokens": 0}, "n_decode_tokens"),
    "no layers": ({"layers": []}, "layers"),
    "top_k above the experts": ({"k": EXPERTS + 1}, "top_k"),
    "fewer tokens than heat": ({"n_decode_tokens": TOKENS // 2}, "heat"),
    "another number of experts": ({"n_expert_per_layer": EXPERTS + 1}, "heat has 48 experts"),
}
BAD_PAIRS = {
    "expert out of range": ([0, EXPERTS, 1], "0 to 47"),
    "with itself": ([1, 1, 1], "two of the experts"),
    "negative": ([0, -1, 1], "no row"),
    "half an expert": ([0, 1.5, 1], "no row"),
    "no count": ([0, 1], "no row"),
    "too often": ([0, 1, 10**9], "more than the heat"),
    "infinite": ([0, 1, 1e400], "no row"),
}


@pytest.mark.parametrize("name", [*BAD, *BAD_PAIRS, "twice", "layers twice", "no loads", "hotter than all"])
def test_bad_pair_files(name: str, real: list[np.ndarray], tmp_path: Path, run_cli: Any) -> None:
    """Refused in one line that says what is wrong; nothing is written."""
    document: Any = pair_file(real)
    if name in BAD:
        change, told = BAD[name]
        document = document | change if isinstance(change, dict) else change
    elif name in BAD_PAIRS:
        row, told = BAD_PAIRS[name]
        document["layers"][1]["pairs"].append(row)
    elif name == "twice":
        first = document["layers"][1]["pairs"][0]
        document["layers"][1]["pairs"].append([first[1], first[0], first[2]])
        told = "there twice"
    elif name == "layers twice":
        document["layers"][1]["layer"] = 1
        told = "ascending"
    elif name == "no loads":
        document["layers"][0] |= {"heat": [0] * EXPERTS, "pairs": []}
        told = "heat sums to 0"
    else:
        document["layers"][0] |= {"heat": [TOKENS + 1] + [0] * (EXPERTS - 1), "pairs": []}
        told = "expert 0 has heat"
    path = tmp_path / "pairs.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    with pytest.raises(TraceError):
        read_pairs(path)
    result = run_cli("traces", "synth", "-o", tmp_path / "t", "--like", path)
    assert result.code == 2 and told in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "t").exists()


def test_like_says_what_the_model_is(real: list[np.ndarray], tmp_path: Path, run_cli: Any) -> None:
    path = write_pairs(tmp_path / "pairs.json", pair_file(real))
    for options in (("--preset", "olmoe"), ("--layers", 2), ("--experts", 8), ("--top-k", 2)):
        result = run_cli("traces", "synth", "-o", tmp_path / "t", "--like", path, *options)
        assert result.code == 2 and "leave" in result.stderr
    missing = run_cli("traces", "synth", "-o", tmp_path / "t", "--like", tmp_path / "none.json")
    assert missing.code == 2 and "No such file" in missing.stderr
