"""The recorder: every token that a Hugging Face model sees, once, under its request and position."""

from __future__ import annotations

import gc
import inspect
import json
import re
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from placement.errors import InputError, OutputError, TraceError
from placement.traces.trace import Trace, open_trace

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", minversion="5", reason="transformers 5 is not installed")

from placement.traces.recorder import record  # noqa: E402

SMALL = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 16,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DEEPSEEK = {
    "n_routed_experts": 8,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_shared_experts": 1,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "olmoe": {"num_experts": 8},
    "mixtral": {"num_local_experts": 8},
    "qwen2_moe": {"num_experts": 8, "shared_expert_intermediate_size": 16},
    "qwen3_moe": {"num_experts": 8, "head_dim": 16},
    "deepseek_v2": DEEPSEEK | {"topk_method": "group_limited_greedy"},
    "deepseek_v3": DEEPSEEK,
    "gpt_oss": {"num_local_experts": 8, "head_dim": 16, "sliding_window": 4},
}


def tiny(family: str = "olmoe", **changes: Any) -> Any:
    """A model with random weights; `eos_token_id` is none, so that `generate` runs as long as it is told."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **(SMALL | FAMILIES[family] | changes))
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for name, weight in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(weight, std=0.3)
    model.generation_config.eos_token_id = None
    return model


def cache_name(model: Any) -> str:
    """What this version of transformers calls the cache, given and returned."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def cache_of(model: Any, output: Any) -> dict[str, Any]:
    """The argument that makes a forward go on from `output`."""
    return {cache_name(model): output[cache_name(model)]}


def prompts() -> tuple[Any, Any]:
    """Three prompts of 5, 8 and 7 tokens, padded on the left."""
    ids = torch.randint(3, 60, (3, 8), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :3] = mask[2, :1] = 0
    return ids * mask, mask


def rows(trace: Trace) -> dict[tuple[str, int], tuple[int, list[list[int]], list[list[float]]]]:
    """Phase, ids and weights of every token in all layers, by request and position; each may be there once."""
    found: dict[tuple[str, int], tuple[int, list[list[int]], list[list[float]]]] = {}
    layers = range(trace.model.num_layers)
    for block in trace.blocks():
        ids = np.stack([block.ids_TK(layer) for layer in layers], axis=1)
        weights = np.stack([block.weights_TK(layer) for layer in layers], axis=1)
        for at, (request, position, phase) in enumerate(
            zip(block.request_T, block.column_T("position"), block.column_T("phase"), strict=True)
        ):
            key = (trace.requests[request].id, int(position))
            assert key not in found
            found[key] = (int(phase), ids[at].tolist(), weights[at].tolist())
    return found


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


def test_an_exception_leaves_no_hooks_and_keeps_what_was_recorded(tmp_path: Path) -> None:
    """The block fails after one forward."""
    model = tiny()
    ids, _ = prompts()
    with pytest.raises(ZeroDivisionError), record(model, tmp_path / "t"):
        model(input_ids=ids)
        raise ZeroDivisionError
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    model(input_ids=ids)
    assert open_trace(tmp_path / "t").num_tokens_stored == 24
    assert "recording" not in json.loads((tmp_path / "t" / "trace.json").read_text())


def test_what_was_flushed_is_readable_while_recording(tmp_path: Path) -> None:
    """Memory is bounded by a shard: tokens leave it as soon as one is full, or when told."""
    model = tiny()
    ids, _ = prompts()
    with record(model, tmp_path / "t", shard_tokens=16) as recorder:
        model(input_ids=ids)
        trace = open_trace(tmp_path / "t")
        assert (trace.num_tokens_stored, len(trace.requests)) == (16, 2)
        recorder.flush()
        assert open_trace(tmp_path / "t").num_tokens_stored == 24
    assert [shard.num_tokens for shard in open_trace(tmp_path / "t").shards] == [16, 8]


KILLED = """
import sys, torch
from types import SimpleNamespace
from placement.traces.recorder import record

class Experts(torch.nn.Module):
    num_experts, _is_expert_parallel = 300, False
    def forward(self, hidden, ids, weights):
        return hidden

class Layers(torch.nn.Module):
    config = SimpleNamespace(model_type="like a Hugging Face model")
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList([Experts(), Experts()])
    def forward(self, input_ids):
        ids = (input_ids.reshape(-1, 1) + torch.arange(4)) % 300
        for experts in self.layers:
            experts(None, ids, ids / 300)

model = Layers()
with record(model, sys.argv[1], shard_tokens=64):
    for number in range(10**9):
        model(torch.arange(number, number + 7)[None])
        if number % 100 == 99:
            print(number, flush=True)
"""


@pytest.fixture
def recording(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "t")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    yield process
    process.kill()
    process.communicate()


def test_a_trace_survives_sigkill(recording: subprocess.Popen[str], tmp_path: Path) -> None:
    """All whole shards but the last one at most are there, with the right tokens; nothing half-written is read."""
    assert recording.stdout is not None
    for _ in range(5):
        number = int(recording.stdout.readline())
    recording.send_signal(signal.SIGKILL)
    assert recording.wait(10) == -signal.SIGKILL
    trace = open_trace(tmp_path / "t")
    assert trace.num_tokens_stored >= 7 * number - 128
    for block in trace.blocks():
        first_T = block.request_T + block.column_T("position")
        assert np.array_equal(block.ids_TK(1), (first_T[:, None] + np.arange(4)) % 300)


def test_a_shard_beyond_the_manifest_is_ignored_while_recording_only(tmp_path: Path) -> None:
    """The moment between the two files: killed there, the trace ends where its manifest says."""
    model = tiny()
    ids, _ = prompts()
    folder = tmp_path / "t"
    with record(model, folder, shard_tokens=16):
        model(input_ids=ids)
    manifest = json.loads((folder / "trace.json").read_text()) | {"num_tokens": 16}
    (folder / "trace.json").write_text(json.dumps(manifest))
    with pytest.raises(TraceError, match="left over"):
        open_trace(folder)
    (folder / "trace.json").write_text(json.dumps(manifest | {"recording": True}))
    assert open_trace(folder).num_tokens_stored == 16


def test_what_cannot_be_recorded_is_one_clear_line(tmp_path: Path) -> None:
    """Dense models and things that are no models, folders that are taken, names that do not fit, odd masks."""
    dense = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=60, hidden_size=32, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
        )
    )
    for model in (dense, "a name"):
        with pytest.raises(InputError, match=r"OLMoE, Mixtral, .*GPT-OSS"), record(model, tmp_path / "t"):
            pass
    model = tiny()
    ids, mask = prompts()
    with pytest.raises(OutputError, match="nothing is overwritten"), record(model, tmp_path.parent):
        pass
    with record(model, tmp_path / "u") as recorder:
        recorder.requests(["a", "b"])
        with pytest.raises(TraceError, match="2 requests were named for a batch of 3 rows"):
            model(input_ids=ids)
        with pytest.raises(InputError, match="1 values of domain for 2 requests"):
            recorder.requests(["a", "b"], domain=["x"])
        with pytest.raises(TraceError, match="attention_mask of shape"):
            model(input_ids=ids, attention_mask=mask[:, None, None, :].bool())
        model(input_ids=ids)
    assert open_trace(tmp_path / "u").num_tokens_stored == 24
    with pytest.raises(TraceError, match="nothing was recorded"), record(model, tmp_path / "v"):
        pass


def test_the_recipe_of_the_documentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python block of the docs, with a tiny model where it says `path/to/model`."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = {letter: number for number, letter in enumerate([chr(code) for code in range(32, 92)])}
    plain = Tokenizer(models.WordLevel(letters, unk_token=" "))
    plain.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    folder = tmp_path / "path" / "to" / "model"
    transformers.PreTrainedTokenizerFast(tokenizer_object=plain, pad_token=" ").save_pretrained(folder)
    tiny().save_pretrained(folder)
    docs = Path(__file__).parents[2] / "docs"
    blocks = [b for page in docs.glob("*.md") for b in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)]
    (recipe,) = [block for block in blocks if "from placement.traces.recorder import record" in block]
    monkeypatch.chdir(tmp_path)
    exec(recipe, {})  # noqa: S102
    trace = open_trace("trace")
    assert [entry.domain for entry in trace.requests] == ["code", "code", "sums", "sums"]
    assert trace.tokens_Q().min() >= 15
