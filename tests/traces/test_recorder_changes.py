"""The recorder under a library that changes: what it cannot read for certain stops it, and no wrong trace is written.

A model is changed between its own code and the hooks of the recorder, as a later version of transformers would be.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from placement.errors import InputError, TraceError
from placement.traces.trace import open_trace

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", minversion="5", reason="transformers 5 is not installed")

from placement.traces.recorder import record  # noqa: E402

Given = dict[str, Any]
NEW = 4


def make_model() -> Any:
    torch.manual_seed(0)
    config = transformers.OlmoeConfig(
        vocab_size=60, hidden_size=32, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_experts=8, num_experts_per_tok=3, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = transformers.OlmoeForCausalLM(config).eval()
    model.generation_config.eos_token_id = None
    return model


IDS = torch.randint(3, 60, (2, 6), generator=torch.Generator().manual_seed(1))
MASK = torch.ones_like(IDS)
PADDED = torch.ones_like(IDS)
PADDED[0, :2] = 0


def name_of_cache(model: Any) -> str:
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def change(module: Any, sent: Callable[[Given], Given], parameters: str = "", *, by_position: bool = False) -> None:
    """From now on `module` is called with what `sent` makes of its arguments, under these names; it works as before."""
    inner, names = module.forward, parameters.split()
    own = list(inspect.signature(inner).parameters)
    latest: list[Given] = []

    def call(_module: Any, args: tuple[Any, ...], kwargs: Given) -> tuple[tuple[Any, ...], Given]:
        latest[:] = [dict(zip(own, args, strict=False)) | kwargs]
        given = sent(dict(latest[0]))
        return (tuple(given[name] for name in names), {}) if by_position else ((), given)

    def forward(*_args: Any, **_kwargs: Any) -> Any:
        return inner(**latest[0])

    if names:
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        forward.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in names])  # type: ignore[attr-defined]
    else:
        forward.__signature__ = inspect.signature(inner)  # type: ignore[attr-defined]
    module.register_forward_pre_hook(call, with_kwargs=True)
    module.forward = forward


def change_output(model: Any, change_it: Callable[[Any], Any]) -> None:
    """What the decoder gives back looks to the recorder as `change_it` makes it, and to the model as before."""
    kept: list[Any] = []

    def before(_m: Any, _a: Any, output: Any) -> Any:
        kept[:] = [output]
        return change_it(output)

    model.model.register_forward_hook(before)
    head = model.model.__class__.__call__

    class Changed(type(model.model)):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            head(self, *args, **kwargs)
            return kept[0]

    model.model.__class__ = Changed


def generate(model: Any, folder: Path, mask: Any = MASK, **options: Any) -> dict[tuple[str, int], tuple[Any, ...]]:
    """Phase and ids of each token, by request and position, of two prompts with names and domains and what followed."""
    with record(model, folder) as recorder:
        recorder.requests(["a", "b"], domain=["x", "y"])
        options = {"max_new_tokens": NEW, "do_sample": False} | options
        model.generate(input_ids=IDS * mask, attention_mask=mask, **options)
    return rows(folder)


def rows(folder: Path) -> dict[tuple[str, int], tuple[Any, ...]]:
    trace, found = open_trace(folder), {}
    for block in trace.blocks():
        columns = zip(block.request_T, block.column_T("position"), block.column_T("phase"), strict=True)
        for at, (request, position, phase) in enumerate(columns):
            key = (trace.requests[request].id, int(position))
            assert key not in found
            ids = [block.ids_TK(layer)[at].tolist() for layer in range(2)]
            found[key] = (trace.requests[request].domain, int(phase), ids)
    return found


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], tuple[Any, ...]]:
    found = generate(make_model(), tmp_path_factory.mktemp("plain") / "t")
    assert sorted(found) == [(name, at) for name in "ab" for at in range(6 + NEW - 1)]
    return found


def stops(model: Any, folder: Path, words: str, mask: Any = MASK, **options: Any) -> None:
    """A TraceError of one line that names the library's version; what was written has the right names and positions."""
    with pytest.raises(TraceError, match=words) as error:
        generate(model, folder, mask, **options)
    assert "\n" not in str(error.value)
    if (folder / "trace.json").exists():
        assert all(name in ("a", "b") and domain for (name, _), (domain, *_) in rows(folder).items())


def without(*names: str) -> Callable[[Given], Given]:
    return lambda given: {name: value for name, value in given.items() if name not in names}


@pytest.mark.parametrize("by_position", [False, True])
def test_a_cache_under_another_name_is_read(by_position: bool, tmp_path: Path, plain: Any) -> None:
    """Renamed again, or given by position in another order: the same trace."""
    model = make_model()
    name = name_of_cache(model)
    takes = "kv_store use_cache attention_mask input_ids inputs_embeds position_ids"

    def sent(given: Given) -> Given:
        return {one: given.get(name if one == "kv_store" else one) for one in takes.split()}

    change(model.model, sent, takes, by_position=by_position)
    assert generate(model, tmp_path / "t") == plain


@pytest.mark.parametrize("hides", ["object", "list", "tensor"])
def test_what_may_be_a_cache_stops(hides: str, tmp_path: Path) -> None:
    """An argument that is not known, whatever holds the cache; the message says its name and the version."""
    model = make_model()
    name = name_of_cache(model)
    wrap = {
        "object": lambda one: SimpleNamespace(held=one),
        "list": lambda one: [one],
        "tensor": lambda _: torch.ones(2),
    }
    change(model.model, lambda given: without(name)(given) | {"kv_store": wrap[hides](given.get(name))})
    version = transformers.__version__
    stops(model, tmp_path / "t", rf"transformers {version} .*gives the model kv_store .*leave it out, or record with")


def test_two_caches_stop(tmp_path: Path) -> None:
    """Which of them is used cannot be told."""
    model = make_model()
    change(model.model, lambda given: given | {"kv_store": given[name_of_cache(model)]})
    stops(model, tmp_path / "t", "2 caches, .*kv_store")


def test_a_cache_that_says_no_length_stops(tmp_path: Path) -> None:
    """A cache of a kind that fails at `get_seq_length`."""
    model = make_model()
    name = name_of_cache(model)

    class Silent:
        def get_seq_length(self) -> int:
            raise ValueError("no attention layers")

    change(model.model, lambda given: given | {name: Silent()})
    stops(model, tmp_path / "t", "Silent of transformers .* does not say how many tokens it holds: no attention")


@pytest.mark.parametrize("hidden", ["cache", "cache, positions", "cache, positions, output"])
def test_a_cache_that_is_not_seen_stops(hidden: str, tmp_path: Path) -> None:
    """Kept within the model: positions tell, else the cache that comes out, else a token that comes alone."""
    model = make_model()
    name = name_of_cache(model)
    gone = [name, "attention_mask", *(["position_ids", "cache_position"] if "positions" in hidden else [])]
    change(model.model, without(*gone))
    if "output" in hidden:
        change_output(model, lambda output: type(output)(last_hidden_state=output.last_hidden_state))
    words = {
        "cache": "(position_ids begin|cache_position begins) at 6, and the cache that .* holds 0 tokens",
        "cache, positions": "cache holds 7 tokens after a forward of 1 on top of 0",
        "cache, positions, output": "fed one token a row and showed no cache",
    }
    stops(model, tmp_path / "t", words[hidden])


def test_a_mask_tells_of_a_cache_that_is_not_seen(tmp_path: Path) -> None:
    """It is wider than the tokens."""
    model = make_model()
    change(model.model, without(name_of_cache(model), "position_ids", "cache_position"))
    stops(model, tmp_path / "t", r"7 columns says that 6 tokens came before, and the cache .* holds 0", PADDED)


def test_without_a_mask(tmp_path: Path, plain: Any) -> None:
    """Nothing is lost where nothing is padded; where something is, positions that stand still give it away."""
    model = make_model()
    change(model.model, without("attention_mask"))
    assert generate(model, tmp_path / "t") == plain
    stops(model, tmp_path / "u", "position_ids (do not go up by one|begin at 1)", PADDED)


def test_feeding_again_is_known_by_the_tokens(tmp_path: Path, plain: Any) -> None:
    """Without a cache, even where the argument that says so has another name."""
    model = make_model()
    change(model.model, lambda given: without("use_cache")(given) | {"caching": given.get("use_cache")})
    assert generate(model, tmp_path / "t", use_cache=False) == plain


def test_the_experts_arguments_in_another_order(tmp_path: Path, plain: Any) -> None:
    """Ids and weights are told apart by name."""
    model = make_model()
    order = "top_k_weights hidden_states top_k_index"
    for layer in model.model.layers:
        change(layer.mlp.experts, dict, order, by_position=True)
    assert generate(model, tmp_path / "t") == plain


def test_the_experts_arguments_under_other_names(tmp_path: Path, plain: Any) -> None:
    """One matrix of whole numbers and one of weights beside it can be nothing else; two stop."""
    model = make_model()
    new = {"top_k_index": "chosen", "top_k_weights": "gates", "hidden_states": "x"}
    for layer in model.model.layers:
        change(layer.mlp.experts, lambda given: {new[key]: value for key, value in given.items()}, "x gates chosen")
    assert generate(model, tmp_path / "t") == plain
    model = make_model()
    for layer in model.model.layers:
        change(
            layer.mlp.experts,
            lambda given: {new[key]: value for key, value in given.items()} | {"extra": given["top_k_index"]},
            "x gates chosen extra",
        )
    stops(
        model,
        tmp_path / "u",
        r"calls experts with .*chosen \[12, 3\], .*extra \[12, 3\]; one matrix of ids, top_k_index",
    )


def test_ids_that_are_none_stop(tmp_path: Path) -> None:
    """Floats, or another shape than the weights."""
    for wrong in (lambda ids: ids.float(), lambda ids: ids[:, :2]):
        model = make_model()
        for layer in model.model.layers:
            change(layer.mlp.experts, lambda given, w=wrong: given | {"top_k_index": w(given["top_k_index"])})
        stops(model, tmp_path / str(id(model)), "one matrix of ids, top_k_index")


class Experts(torch.nn.Module):
    """As those of transformers before they had a flag."""

    num_experts = 8

    def forward(self, hidden_states: Any, top_k_index: Any, top_k_weights: Any) -> Any:
        return hidden_states


class Decoder(torch.nn.Module):
    config = SimpleNamespace(model_type="like a Hugging Face model")

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([Experts(), Experts()])

    def forward(self, input_ids: Any) -> None:
        ids = torch.stack([input_ids.reshape(-1) % 8, (input_ids.reshape(-1) + 1) % 8], dim=1)
        for experts in self.layers:
            experts(ids.float(), top_k_weights=ids / 8, top_k_index=ids)


def test_experts_are_found_without_the_librarys_flag(tmp_path: Path) -> None:
    """By what they are called with; without both there is nothing to record, which is said before anything runs."""
    model = Decoder()
    with record(model, tmp_path / "t"):
        model(IDS)
    assert rows(tmp_path / "t")["request-1", 3] == (None, 0, [[int(IDS[1, 3]) % 8, int(IDS[1, 3] + 1) % 8]] * 2)
    for one in model.layers:
        change(one, dict, "x y z")
    version = transformers.__version__
    with pytest.raises(InputError, match=f"no expert layers that are understood by transformers {version}"):
        generate(model, tmp_path / "u")
    del Experts.num_experts
    with pytest.raises(InputError, match="has experts without num_experts"):
        generate(Decoder(), tmp_path / "v")
    Experts.num_experts = 8


def test_rows_of_beam_search_stop(tmp_path: Path) -> None:
    """A row's tokens would be those of several beams, with a cache and without."""
    for folder, beams in (("t", {"num_beams": 2}), ("u", {"num_beams": 4, "use_cache": False})):
        model = make_model()
        with pytest.raises(TraceError, match=r"rows change(d)? places"), record(model, tmp_path / folder) as recorder:
            recorder.requests([f"{row}" for row in range(2 * beams["num_beams"])])
            model.generate(input_ids=IDS, attention_mask=MASK, max_new_tokens=12, **beams)


def test_tokens_that_are_taken_back_stop(tmp_path: Path) -> None:
    """Assisted generation: what was rejected is cut from the cache, and was recorded."""
    model = make_model()
    with (
        pytest.raises(TraceError, match=r"changed between two forwards .*assisted generation"),
        record(model, tmp_path / "t"),
    ):
        prompt = torch.tensor([[5, 6, 7, 5, 6, 7, 5, 6]])
        model.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, prompt_lookup_num_tokens=3
        )


def test_rows_that_leave_a_cache_stop(tmp_path: Path) -> None:
    """Which rows are left cannot be told, until they are named again."""
    model = make_model()
    with record(model, tmp_path / "t") as recorder, torch.no_grad():
        cache = model(input_ids=IDS)[name_of_cache(model)]
        cache.batch_select_indices(torch.tensor([1]))
        with pytest.raises(
            TraceError, match=r"2 x 6 tokens was changed .* 1 x 6.*name the batch with recorder.requests"
        ):
            model(input_ids=IDS[:1, :1], **{name_of_cache(model): cache})
        recorder.requests(["b"])
        model(input_ids=IDS[:1, :1], **{name_of_cache(model): cache})
    assert [key for key in rows(tmp_path / "t") if key[0] == "b"] == [("b", 6)]


def test_a_cache_of_the_same_length_is_not_mistaken(tmp_path: Path) -> None:
    """Two chats as long as each other: tokens go to neither's request by mistake; those with names stop."""
    model = make_model()
    name = name_of_cache(model)
    with record(model, tmp_path / "t") as recorder, torch.no_grad():
        first = model(input_ids=IDS[:1])[name]
        second = model(input_ids=IDS[1:])[name]
        model(input_ids=IDS[:1, :1], **{name: first})
        with pytest.raises(
            TraceError, match="a cache that the recorder has not seen holds as many rows and tokens, 1 x 7"
        ):
            model(input_ids=IDS[:1, :1], **{name: copy.deepcopy(first)})
        recorder.requests(["named"])
        third = model(input_ids=IDS[:1])[name]
        model(input_ids=IDS[:1, :2], **{name: second})
        with pytest.raises(TraceError, match="a cache of requests that have names goes on after other requests"):
            model(input_ids=IDS[:1, :1], **{name: third})
    assert open_trace(tmp_path / "t").tokens_Q().tolist() == [6, 6, 1, 6, 2]


def test_a_prompt_that_was_cached_before_goes_on(tmp_path: Path) -> None:
    """`generate` with a copy of it for each question: each is a request that begins where the prompt ends."""
    model = make_model()
    name = name_of_cache(model)
    with torch.no_grad():
        prompt = model(input_ids=IDS[:1])[name]
    with record(model, tmp_path / "t") as recorder:
        for question in "ab":
            recorder.requests([question], domain="x")
            whole = torch.cat([IDS[:1], IDS[1:, :3]], dim=1)
            given = {name: copy.deepcopy(prompt)}
            model.generate(
                input_ids=whole, attention_mask=torch.ones_like(whole), max_new_tokens=3, do_sample=False, **given
            )
    assert sorted(rows(tmp_path / "t")) == [(name, at) for name in "ab" for at in range(6, 11)]


def test_requests_that_are_packed_into_a_row_stop(tmp_path: Path) -> None:
    """As positions that begin again, as a mask that counts, as lengths that attention is given."""
    model = make_model()
    packed = {
        "several requests are packed": {"position_ids": torch.tensor([[0, 1, 2, 0, 1, 2]])},
        "other values than 0 and 1": {"attention_mask": torch.tensor([[1, 1, 1, 2, 2, 2]])},
        "cu_seq_lens_q": {"cu_seq_lens_q": torch.tensor([0, 3, 6])},
    }
    with record(model, tmp_path / "t"), torch.no_grad():
        for words, given in packed.items():
            with pytest.raises(TraceError, match=words):
                model(input_ids=IDS[:1], **given)
        model(input_ids=IDS[:1], position_ids=torch.arange(6)[None])
    assert open_trace(tmp_path / "t").tokens_Q().tolist() == [6]


def test_unknown_ends_stop(tmp_path: Path) -> None:
    """Padding behind the end of a row would be recorded."""
    model = make_model()
    model.generation_config.__dict__.pop("eos_token_id")
    model.generation_config.__class__ = type("Renamed", (), {})
    with (
        pytest.raises(TraceError, match=r"does not say which tokens end a request.*no eos_token_id"),
        record(model, tmp_path / "t"),
    ):
        model(input_ids=IDS)


@pytest.mark.parametrize("how", [{"prefill_chunk_size": 4}, {"num_return_sequences": 2, "do_sample": True}])
def test_other_ways_to_generate(how: Given, tmp_path: Path) -> None:
    """Prompts in pieces, and several answers to each."""
    model, copies = make_model(), how.get("num_return_sequences", 1)
    with record(model, tmp_path / "t") as recorder:
        recorder.requests([f"{row}" for row in range(2 * copies)])
        model.generate(input_ids=IDS * PADDED, attention_mask=PADDED, max_new_tokens=NEW, **how)
    assert open_trace(tmp_path / "t").tokens_Q().tolist() == [6 + NEW - 3] * copies + [6 + NEW - 1] * copies


def test_groups_under_another_name_are_refused(tmp_path: Path) -> None:
    """A router that chooses by groups, whose number would be lost."""
    model = make_model()
    model.config.topk_group = 2
    with pytest.raises(InputError, match="chooses experts by groups and has no n_group"), record(model, tmp_path / "t"):
        pass
