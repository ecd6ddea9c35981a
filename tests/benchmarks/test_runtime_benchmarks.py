"""The runtime's benchmarks: bytes counted at shaped links, loads of stragglers, and models under capacity."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from placement import Cluster, Placement, open_trace
from placement.cost.step_time import Term

torch = pytest.importorskip("torch", reason="torch is not installed")

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks" / "runtime"))

network: Any = import_module("network")
network_plan: Any = import_module("network_plan")
network_model: Any = import_module("network_model")
shaped_network: Any = import_module("shaped_network")
straggler: Any = import_module("straggler")

HIDDEN, TOP_K, EXPERTS = 1024, 4, 8
WIRE = network_plan.Wire(hidden=HIDDEN, dtype=torch.bfloat16, width=TOP_K)


def namespaces() -> str:
    return subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout


def shaped() -> None:
    if reason := shaped_network.why_not():
        pytest.skip(reason)


def test_a_network_is_taken_down() -> None:
    """Nodes reach one another while it stands; after an error in the middle none of its namespaces is left."""
    shaped()
    before = namespaces()
    with pytest.raises(ZeroDivisionError), shaped_network.shaped_network(2, 100) as made:
        assert all(name in namespaces() for name in made.namespaces)
        send = "import socket; socket.create_connection(('10.77.0.2', 7000), 5).sendall(b'x')"
        take = "import socket; s = socket.create_server(('10.77.0.2', 7000)); print(s.accept()[0].recv(1))"
        taker = made.start(1, [sys.executable, "-c", take], {})
        try:
            for _ in range(50):
                sender = made.start(0, [sys.executable, "-c", send], {})
                if not sender.wait(10):
                    break
            assert taker.wait(10) == 0
        finally:
            taker.kill()
            taker.wait()
        raise ZeroDivisionError
    assert namespaces() == before


def test_a_shaped_replay_counts_the_predicted_bytes(tmp_path: Path, write_trace: Any) -> None:
    """Two nodes, two maps: the interfaces count what the cost model says, and no faster than the link allows."""
    shaped()
    written = write_trace(
        tmp_path / "trace", num_layers=2, num_experts=EXPERTS, top_k=TOP_K, tokens=1500, requests=30, seed=1
    )
    trace, mbit, nodes = open_trace(written.folder), 100, 2
    cluster = Cluster(
        num_nodes=nodes, gpus_per_node=1, slots_per_gpu=4,
        dispatch_bytes=WIRE.row_bytes, combine_bytes=WIRE.return_bytes,
    )  # fmt: skip
    args = argparse.Namespace(
        nodes=nodes, gpus_per_node=1, hidden=HIDDEN, intermediate=32, hops="flat", with_experts=True, layers=2, steps=2
    )
    rank_Q = network_plan.deal(trace.tokens_Q(), np.full(len(trace.requests), -1), cluster)
    rows = {"linear, 0 redundant": np.arange(EXPERTS), "even, 0 redundant": np.arange(EXPERTS).reshape(4, 2).T.ravel()}
    ways = {}
    for name, row in rows.items():
        placement = Placement(
            model=trace.model, num_nodes=nodes, gpus_per_node=1, slots_per_gpu=4, phy2log_LP=np.tile(row, (2, 1))
        )
        ways[name] = network_plan.replay(trace, rank_Q, placement, cluster, args, tmp_path / name[:4])
    measured = network.run(tmp_path, ways, args, mbit)
    for name, way in ways.items():
        sent = sum(one["bytes"] for rank in measured for one in rank[name])
        assert sent == pytest.approx(way.predicted_bytes, rel=0.02)
        spans = [[one["comm"] for one in step] for step in zip(*(rank[name] for rank in measured), strict=True)]
        seconds = sum(max(end for _, end in step) - min(start for start, _ in step) for step in spans)
        free = 4 * 4 * 131072  # a bucket of 128 kB a link in each of four steps, there and back
        assert seconds > (way.predicted_bytes / nodes - free) * 8 / (mbit * 1e6)
        busiest, _ = network.links([[one["copies_N"] for one in rank[name]] for rank in measured], 1)
        modelled = sum(network_model.counts_of(step)[Term.NETWORK] for step in way.steps)
        assert modelled == pytest.approx(busiest)
    lines = network.table(ways, measured)
    assert len(lines) == 4 and "| 1.000 |" in lines[2]
    told = network_model.model_lines(ways, network.step_times_us(ways, measured, 2), mbit)
    assert len(told) == 6 and told[2].startswith("| linear, 0 redundant | ")


def test_deal() -> None:
    """Requests keep their homes; where none is given, ranks get equal shares up to the shortest request."""
    cluster = Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=2)
    tokens_Q = np.random.default_rng(0).integers(1, 100, 60)
    home_Q = np.random.default_rng(1).integers(0, 2, 60)
    assert (network_plan.deal(tokens_Q, home_Q, cluster) // 2 == home_Q).all()
    load_G = np.bincount(network_plan.deal(tokens_Q, np.full(60, -1), cluster), tokens_Q)
    assert np.ptp(load_G) <= tokens_Q.min()


def test_straggler_loads() -> None:
    """At one expert a rank: without a limit loads are the experts' own; halving gamma leaves half of the largest."""
    rng = np.random.default_rng(0)
    ids = torch.from_numpy(np.argsort(rng.gumbel(size=(400, EXPERTS)) + np.linspace(0, 2, EXPERTS))[:, :2].copy())
    weights = torch.from_numpy(np.sort(rng.random((400, 2), dtype=np.float32))[:, ::-1].copy())
    batch = straggler.Batch(ids=ids, weights=weights, scores=torch.zeros(400, EXPERTS).scatter(1, ids, weights))
    model = straggler.Model(name="m", layer_ids=(0,), num_experts=EXPERTS, top_k=2)
    args = argparse.Namespace(hidden=16, intermediate=16, rounds=2, device="cpu")
    load_E = torch.bincount(ids.flatten(), minlength=EXPERTS)
    ranks = straggler.emulate(model, EXPERTS, batch, straggler.CapacityPolicy(), args)
    assert [rank.load for rank in ranks] == load_E.tolist()
    half = -(-int(load_E.max()) // 2)
    policy = straggler.CapacityPolicy(mode="drop", gamma=half / float(load_E.float().mean()))
    ranks = straggler.emulate(model, EXPERTS, batch, policy, args)
    assert [rank.load for rank in ranks] == load_E.clamp(max=half).tolist()
    lines = straggler.table(model, EXPERTS, batch, policy.gamma, args)
    assert len({line.count("|") for line in lines}) == 1 and f"| {half} |" in lines[3]


def test_quality_without_a_limit_is_the_models_own() -> None:
    """A model whose experts run in the runtime has the losses that it had before; a tight limit drops and changes."""
    transformers = pytest.importorskip("transformers", minversion="5", reason="transformers 5 is not installed")
    quality: Any = import_module("quality")
    torch.manual_seed(0)
    config = transformers.OlmoeConfig(
        vocab_size=50, hidden_size=32, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_experts=EXPERTS, num_experts_per_tok=2, norm_topk_prob=True, pad_token_id=0,
    )  # fmt: skip
    model = transformers.OlmoeForCausalLM(config).eval()
    rows = {name: list(torch.randint(0, 50, (3, 17))) for name in ("a", "b")}
    for how, count in (("mixed", 3), ("one-domain", 4)):
        batches = list(quality.batched(rows, how, 0))
        assert len(batches) == count and sum(map(len, batches)) == 6
    with torch.no_grad():
        logits = model(input_ids=torch.stack(rows["a"])[:, :-1]).logits.transpose(1, 2)
    own = torch.nn.functional.cross_entropy(logits, torch.stack(rows["a"])[:, 1:], reduction="none").flatten()
    limited = quality.LimitedExperts(model, 4)
    batches = list(quality.batched(rows, "one-domain", 0))
    losses = limited.losses(batches, quality.CapacityPolicy())
    assert torch.allclose(losses["a"], own, atol=1e-5) and not limited.dropped
    policy = quality.CapacityPolicy(gamma=0.5, **quality.NAMES["Score"])
    assert not torch.allclose(limited.losses(batches, policy)["a"], own, atol=1e-3)
    assert 0.4 < limited.dropped / limited.routed < 0.8


def test_ranks_write_what_one_process_writes() -> None:
    """Prompts of unequal length, read by length and continued together, without padding, get the answers of
    `generate`; the noise of a row is its own, and no answer ends early."""
    transformers = pytest.importorskip("transformers", minversion="5", reason="transformers 5 is not installed")
    alike: Any = import_module("alike_answers")
    homes_model: Any = import_module("homes_model")
    torch.manual_seed(0)
    config = transformers.OlmoeConfig(
        vocab_size=50, hidden_size=32, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_experts=EXPERTS, num_experts_per_tok=2, norm_topk_prob=True, pad_token_id=0,
        eos_token_id=0, bos_token_id=None,
    )  # fmt: skip
    model = transformers.OlmoeForCausalLM(config).eval()
    prompts = [torch.randint(1, 50, (size,)).tolist() for size in (9, 3, 6, 9)]
    sampling = alike.Sampling(new_tokens=7, temperature=0.8, seed=3)
    with tempfile.TemporaryDirectory() as folder:
        own = homes_model.own_answers(model, prompts, sampling, Path(folder) / "trace", "m")
        assert open_trace(Path(folder) / "trace").tokens_Q().sum() == 27 + 4 * 6
    assert all(len(one) == 7 and 0 not in one for one in own)
    joined: list[int] = []
    mine = [0, 2, 3]
    assert alike.forwards([len(prompts[q]) for q in mine]) == 2
    answers = alike.answer(
        model, [prompts[q] for q in mine], sampling.noise(mine, 50), sampling,
        most=4, join=lambda: joined.append(1), read=lambda: joined.append(0),
    )  # fmt: skip
    assert answers == [own[q] for q in mine]
    assert joined == [1, 1, 0]
    nothing = alike.answer(
        model, [], sampling.noise([], 50), sampling, most=2, join=lambda: joined.append(1), read=lambda: None
    )
    assert nothing == [] and joined[3:] == [1] * (2 + 6)
