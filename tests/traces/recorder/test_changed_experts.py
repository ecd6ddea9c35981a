"""Experts, requests and ways to generate in forms that the recorder does not know are read right, or stop it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from changed_models import IDS, MASK, NEW, PADDED, Given, change, generate, make_model, rows, stops, torch, transformers

from placement.errors import InputError, TraceError
from placement.traces.recorder import record
from placement.traces.trace import open_trace


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
