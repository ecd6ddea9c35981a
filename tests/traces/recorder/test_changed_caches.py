"""Caches and masks in forms that the recorder does not know stop it; it never takes a token for another."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from changed_models import (
    IDS,
    PADDED,
    Given,
    change,
    change_output,
    generate,
    make_model,
    name_of_cache,
    rows,
    stops,
    torch,
    transformers,
    without,
)

from placement.errors import TraceError
from placement.traces.recorder import record
from placement.traces.trace import open_trace


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
