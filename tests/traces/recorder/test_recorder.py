"""Each token that a model computes is recorded once, with the experts that its router chose."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recorded_models import FAMILIES, cache_of, prompts, rows, tiny, torch, transformers

from placement.traces.recorder import record
from placement.traces.trace import open_trace


@pytest.mark.parametrize("family", FAMILIES)
def test_each_token_has_the_experts_that_its_router_chose(family: str, tmp_path: Path) -> None:
    """Prompts padded on the left and tokens generated with a cache, against the routers' own outputs when each whole
    sequence is run by itself: protects ids, weights, positions, phases, padding and the numbers of the layers."""
    model = tiny(family)
    ids, mask = prompts()
    with record(model, tmp_path / "t") as recorder:
        recorder.requests(["a", "b", "c"], domain=["x", "y", "x"], category="z")
        out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=5, do_sample=False)
    trace = open_trace(tmp_path / "t")
    assert trace.model.layer_ids == ((1, 2) if family.startswith("deepseek") else (0, 1, 2))
    assert (trace.model.num_experts, trace.model.top_k) == (8, 3)
    assert [(q.id, q.domain, q.category) for q in trace.requests] == [("a", "x", "z"), ("b", "y", "z"), ("c", "x", "z")]
    found = rows(trace)
    router = model.base_model._can_record_outputs["router_logits"].target_class
    chosen: list[tuple[Any, Any]] = []
    for module in model.modules():
        if isinstance(module, router):
            module.register_forward_hook(lambda _m, _a, out: chosen.append((out[-1], out[-2])))
    for row, name in enumerate("abc"):
        sequence = out[row, int((mask[row] == 0).sum()) : -1]
        chosen.clear()
        with torch.no_grad():
            model(input_ids=sequence[None])
        assert sorted(at for request, at in found if request == name) == list(range(len(sequence)))
        for at in range(len(sequence)):
            phase, ids_LK, weights_LK = found[name, at]
            assert phase == (at >= int(mask[row].sum()))
            assert ids_LK == [ids[at].tolist() for ids, _ in chosen]
            assert np.allclose(weights_LK, [w[at].detach().numpy() for _, w in chosen], atol=2e-3)


@pytest.mark.parametrize(
    ("family", "changes", "layer_ids", "hidden"),
    [
        ("deepseek_v3", {}, (1, 2), 3),
        ("deepseek_v3", {"num_hidden_layers": 4, "first_k_dense_replace": 3}, (3,), 4),
        ("qwen3_moe", {"num_hidden_layers": 6, "mlp_only_layers": [0, 2, 5]}, (1, 3, 4), 6),
        ("qwen2_moe", {"num_hidden_layers": 8, "decoder_sparse_step": 2}, (1, 3, 5, 7), 8),
    ],
)
def test_all_layers_of_the_model_are_counted(
    family: str, changes: dict[str, Any], layer_ids: tuple[int, ...], hidden: int, tmp_path: Path
) -> None:
    """Engines want a row for dense layers too, the last ones included: the trace knows how many there are."""
    model = tiny(family, **changes)
    with record(model, tmp_path / "t"), torch.no_grad():
        model(input_ids=torch.arange(3, 9)[None])
    trace = open_trace(tmp_path / "t")
    assert (trace.model.layer_ids, trace.model.num_hidden_layers) == (layer_ids, hidden)


def test_generation_without_a_cache_records_the_same(tmp_path: Path) -> None:
    """All tokens are fed again at each step; a token is recorded when it is fed first."""
    model = tiny()
    ids, mask = prompts()
    for cached in (True, False):
        with record(model, tmp_path / str(cached)):
            model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=5, do_sample=False, use_cache=cached)
    with_cache, without = (rows(open_trace(tmp_path / name)) for name in ("True", "False"))
    assert {key: row[:2] for key, row in with_cache.items()} == {key: row[:2] for key, row in without.items()}


def test_rows_that_ended_are_not_recorded_further(tmp_path: Path) -> None:
    """`generate` feeds padding to a row that has ended while others go on."""
    model = tiny()
    ids, mask = prompts()
    free = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=8, do_sample=False)
    end = int(free[0, 10])
    model.generation_config.eos_token_id = [end]
    with record(model, tmp_path / "t"):
        out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=8, do_sample=False)
    new_BS = out[:, 8:]
    assert (new_BS[:, :-1] == end).any()
    lengths = open_trace(tmp_path / "t").tokens_Q()
    for row in range(3):
        ends = torch.nonzero(new_BS[row] == end)
        fed = int(ends[0]) if len(ends) else new_BS.shape[1] - 1
        assert lengths[row] == int(mask[row].sum()) + fed


@pytest.mark.parametrize("told", ["argument", "configuration", "none"])
def test_ends_that_a_call_gives_are_those_that_count(told: str, tmp_path: Path) -> None:
    """`generate` takes them as an argument or in a configuration of its own; the model's own are then no ends."""
    model = tiny()
    ids, mask = prompts()
    free = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=8, do_sample=False)
    end, other = int(free[0, 10]), int(free[1, 9])
    model.generation_config.eos_token_id = other
    config = transformers.GenerationConfig(eos_token_id=[end], pad_token_id=0, max_new_tokens=8, do_sample=False)
    given = {"argument": {"eos_token_id": end}, "configuration": {"generation_config": config}}
    sizes = {} if told == "configuration" else {"max_new_tokens": 8, "do_sample": False}
    before = dict(vars(model))
    with record(model, tmp_path / "t"):
        out = model.generate(input_ids=ids, attention_mask=mask, **given.get(told, {"eos_token_id": None}), **sizes)
    assert vars(model).keys() == before.keys()
    new_BS = out[:, 8:]
    assert (new_BS[:, :-1] == end).any()
    lengths = open_trace(tmp_path / "t").tokens_Q()
    for row in range(3):
        ends = torch.nonzero(new_BS[row] == end) if told != "none" else []
        fed = int(ends[0]) if len(ends) else new_BS.shape[1] - 1
        assert lengths[row] == int(mask[row].sum()) + fed


def test_chats_with_caches_of_their_own_do_not_mix(tmp_path: Path) -> None:
    """Going back to the cache of another chat starts a request at the position where that cache ends."""
    model = tiny()
    ids, _ = prompts()
    with record(model, tmp_path / "t"), torch.no_grad():
        first = model(input_ids=ids[:1, :5])
        model(input_ids=ids[1:2])
        model(input_ids=ids[:1, 5:6], **cache_of(model, first))
    trace = open_trace(tmp_path / "t")
    assert trace.tokens_Q().tolist() == [5, 8, 1]
    assert rows(trace)["request-2", 5][0] == 1


def test_a_chat_that_ended_goes_on_with_its_next_turn(tmp_path: Path) -> None:
    """An end token that is fed back is no token of the request; the user's next message is."""
    model = tiny()
    model.generation_config.eos_token_id = 2
    ids, _ = prompts()
    with record(model, tmp_path / "t"), torch.no_grad():
        cache = cache_of(model, model(input_ids=ids[1:2]))
        model(input_ids=torch.tensor([[2]]), **cache)
        model(input_ids=ids[1:2, :3], **cache)
        model(input_ids=torch.tensor([[7]]), **cache)
    (block,) = open_trace(tmp_path / "t").blocks()
    assert block.column_T("position").tolist() == list(range(12))
    assert block.column_T("phase").tolist() == [0] * 11 + [1]


def test_batches_without_names_are_new_requests(tmp_path: Path) -> None:
    """Each forward from an empty cache starts requests of its own; a chat that goes on with its cache does not."""
    model = tiny()
    ids, _ = prompts()
    with record(model, tmp_path / "t", weights=False), torch.no_grad():
        model(ids)
        turn = model(input_ids=ids[:1])
        model(input_ids=ids[:1, :4], **cache_of(model, turn))
    trace = open_trace(tmp_path / "t")
    assert [q.id for q in trace.requests] == [f"request-{i}" for i in range(4)]
    assert trace.tokens_Q().tolist() == [8, 8, 8, 12]
    (block,) = trace.blocks()
    assert not block.shard.has_weights
    assert block.column_T("position")[-12:].tolist() == list(range(12))
    assert block.column_T("phase").tolist() == [0] * 36


def test_a_wrapper_that_generate_goes_around_does_not_hide_the_model(tmp_path: Path) -> None:
    """Adapters and multimodal models hold the language model inside of another module."""

    class Wrapper(torch.nn.Module):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner, self.config = inner, inner.config

        def forward(self, input_ids: Any) -> Any:
            return self.inner(input_ids=input_ids)

    wrapper = Wrapper(tiny())
    ids, mask = prompts()
    with record(wrapper, tmp_path / "t"):
        wrapper.inner.generate(input_ids=ids, attention_mask=mask, max_new_tokens=2, do_sample=False)
        wrapper(ids)
    assert open_trace(tmp_path / "t").tokens_Q().tolist() == [6, 9, 8, 8, 8, 8]


def test_training_with_checkpoints_records_each_token_once(tmp_path: Path) -> None:
    """The backward pass runs the layers again."""
    model = tiny().train()
    model.activation_checkpointing_enable()
    ids, _ = prompts()
    with record(model, tmp_path / "t"):
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    assert open_trace(tmp_path / "t").num_tokens_stored == 24


def test_the_graph_of_a_training_step_is_not_kept(tmp_path: Path) -> None:
    """Tokens wait some forwards until they are written; the activations they came from must not wait with them."""

    class Probe:
        def __call__(self, gradient: Any) -> None:
            return None

    model = tiny().train()
    ids, _ = prompts()
    with record(model, tmp_path / "t"):
        probes = [Probe()]
        alive = weakref.ref(probes[0])
        embedding = model.model.embed_tokens
        hook = embedding.register_forward_hook(lambda _m, _a, out: out.register_hook(probes[0]) and None)
        model(input_ids=ids, use_cache=False)
        hook.remove()
        probes.clear()
        gc.collect()
        assert alive() is None
