"""Capacity through `attach` is the founding paper's, on whole models: prompts with padding, decode, images and text."""

from __future__ import annotations

import copy
import inspect
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from models import FAMILIES, layer_ids, make_model
from moe import torch
from paper import Paper
from served_models import SHAPE, make_map

from placement.errors import OptionError
from placement.runtime import CapacityPolicy, Lockstep, Mesh, attach
from placement.runtime.decision import RankCapacity
from placement.runtime.router_scores import scales_weights

RANKS, ROWS, LENGTH, STEPS = 4, 2, 9, 3
SIGMOID, NORMALIZED = ("deepseek_v3",), ("mixtral", "qwen3_moe", "deepseek_v3")
PADS = torch.tensor([0, 3, 1, 0, 5, 0, 2, 0])


def model_of(family: str) -> Any:
    """Qwen3 as it is released: weights of a top-k set add up to 1."""
    model = make_model(family)
    if family == "qwen3_moe":
        model.config.norm_topk_prob = True
        for layer in model.model.layers:
            layer.mlp.gate.norm_topk_prob = True
    return model


def placement_of(model: Any) -> Any:
    """Two experts a rank, no copies, in the order of a random map."""
    return make_map(layer_ids(model), slots=2)


@torch.no_grad()
def serve(model: Any, tokens: Any, mask: Any) -> list[Any]:
    """Logits of all tokens of the prompt but padding, then of greedy decoding with the cache."""
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    found, cache = [], None
    for _ in range(1 + STEPS):
        out = model(input_ids=tokens, attention_mask=mask, use_cache=True, **{name: cache})
        found.append(out.logits.masked_fill(mask[:, -tokens.shape[1] :, None] == 0, 0.0))
        tokens, cache = out.logits[:, -1:].argmax(dim=-1), out[name]
        mask = torch.cat([mask, torch.ones(len(mask), 1, dtype=mask.dtype)], dim=1)
    return found


def batch() -> tuple[Any, Any]:
    """Prompts of all ranks with padding on the left, and their mask."""
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(3, 64, (RANKS * ROWS, LENGTH), generator=generator)
    mask = (torch.arange(LENGTH) >= PADS[:, None]).long()
    return tokens * mask, mask


Kept = list[list[list[set[int]]]]  # rank, layer of a forward, token: experts


@pytest.fixture
def kept_G(monkeypatch: pytest.MonkeyPatch) -> Kept:
    """What the runtime decides, on every rank."""
    kept_G: Kept = [[] for _ in range(RANKS)]
    decide = RankCapacity.decide

    def seen(self: RankCapacity, *args: Any, **kwargs: Any) -> Any:
        decision = decide(self, *args, **kwargs)
        rows = decision.slots.tolist()
        kept_G[self._world.rank].append([{self._map.logical_P[slot] for slot in row if slot >= 0} for row in rows])
        return decision

    monkeypatch.setattr(RankCapacity, "decide", seen)
    return kept_G


def compare(kept_G: Kept, reference: Paper) -> tuple[int, int]:
    """(sets of experts of a token in a layer that were compared, experts that are in one set and not in the other)."""
    found = [[token for rank in layer for token in rank] for layer in zip(*kept_G, strict=True)]
    pairs = [
        (mine, theirs)
        for layer, want in zip(found, reference.kept, strict=True)
        for mine, theirs in zip(layer, want, strict=True)
        if theirs is not None
    ]
    return len(pairs), sum(len(mine ^ theirs) for mine, theirs in pairs)


def held_of(placement: Any, layer: int = 0) -> list[list[int]]:
    return placement.phy2log_LP[layer].reshape(RANKS, -1).tolist()


@pytest.mark.parametrize(
    ("mode", "keep", "gamma"),
    [("drop", "score", 1.0), ("drop", "first", 1.0), ("drop", "last", 1.0), ("expanded", "score", 1.0)],
)
@pytest.mark.parametrize("family", ["mixtral", "olmoe", "deepseek_v3", "qwen3_moe"])
def test_logits_are_the_papers(
    family: str, mode: str, keep: str, gamma: float, kept_G: Kept, record_property: Any
) -> None:
    """Four ranks with two padded prompts each: the same experts of every token in every layer, the same weights; decode
    is spared. Where a model scales the weights of a token's set, drops by weight would give other logits on this draw.
    """
    model, (tokens, mask) = model_of(family), batch()
    placement = placement_of(model)
    placement = replace(placement, phy2log_LP=placement.phy2log_LP[:1].repeat(len(placement.phy2log_LP), axis=0))

    def paper(keep: str) -> tuple[Paper, list[Any]]:
        reference = Paper(
            model=copy.deepcopy(model),
            held=held_of(placement),
            gamma=gamma,
            expanded=mode == "expanded",
            sigmoid=family in SIGMOID,
            normalized=family in NORMALIZED,
            keep=keep,
        )
        return reference, serve(reference.model, tokens, mask)

    reference, wanted = paper(keep)
    if keep == "score" and mode == "drop" and family in NORMALIZED:
        assert float((paper("weight")[1][0] - wanted[0]).abs().max()) > 1e-2
    policy = CapacityPolicy(mode=mode, gamma=gamma, keep=keep)

    def program(mesh: Mesh) -> tuple[list[Any], list[int]]:
        mine, rows, dropped = copy.deepcopy(model), slice(mesh.rank * ROWS, (mesh.rank + 1) * ROWS), []
        attached = attach(mine, placement, mesh, capacity=policy)
        mine.register_forward_hook(lambda *_: dropped.append(int(attached.stats[-1].dropped)))
        return serve(mine, tokens[rows], mask[rows]), dropped

    results = Lockstep(*SHAPE).run(program)
    assert [sum(step) for step in zip(*(dropped for _, dropped in results), strict=True)] == reference.dropped
    assert reference.dropped[0] > 0 == sum(reference.dropped[1:])
    compared, unlike = compare(kept_G, reference)
    record_property("sets compared, differences", (compared, unlike))
    assert compared > 4 * RANKS * ROWS and not unlike
    for rank, (got, _) in enumerate(results):
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b[rank * ROWS : (rank + 1) * ROWS], rtol=0, atol=2e-5)


def test_images_go_first_in_generate(kept_G: Kept, record_property: Any) -> None:
    """A prompt of image and text embeddings, marked once around `generate`: text is dropped last, decode is spared."""
    model, (tokens, mask) = model_of("mixtral"), batch()
    placement = placement_of(model)
    generator = torch.Generator().manual_seed(1)
    text = torch.rand(tokens.shape, generator=generator) < 0.4
    image = torch.randn(*tokens.shape, 32, generator=generator) * 0.3
    fed = torch.where(text[:, :, None], model.get_input_embeddings()(tokens), image).detach()
    how: dict[str, Any] = {"max_new_tokens": STEPS, "do_sample": False, "output_scores": True}
    how |= {"return_dict_in_generate": True, "eos_token_id": None}

    def scores_of(model: Any, rows: slice) -> Any:
        return torch.stack(model.generate(inputs_embeds=fed[rows], attention_mask=mask[rows], **how).scores)

    def reference(marked: bool) -> tuple[Paper, Any]:
        held = held_of(placement)
        text_or_none = text if marked else None
        whole = Paper(copy.deepcopy(model), held, 0.75, False, False, True, text=text_or_none)
        return whole, scores_of(whole.model, slice(None))

    def program(mesh: Mesh) -> Any:
        mine, rows = copy.deepcopy(model), slice(mesh.rank * ROWS, (mesh.rank + 1) * ROWS)
        policy = CapacityPolicy(mode="drop", gamma=0.75)
        attached = attach(mine, placement, mesh, capacity=policy)
        with attached.marked(priority=text[rows]):
            return scores_of(mine, rows)

    whole, wanted = reference(True)
    assert float((wanted - reference(False)[1]).abs().max()) > 1e-3
    got = torch.cat(Lockstep(*SHAPE).run(program), dim=1)
    torch.testing.assert_close(got, wanted, rtol=0, atol=2e-5)
    compared, unlike = compare(kept_G, whole)
    record_property("sets compared, differences", (compared, unlike))
    assert compared > 4 * RANKS * ROWS and not unlike


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_has_scores_and_a_way_to_weigh(family: str) -> None:
    """A limit that binds nothing changes nothing, so scores are found; weights are scaled as they are in the model."""
    model = model_of(family)
    seen: list[Any] = []
    experts = next(one for name, one in model.named_modules() if name.endswith(".experts"))
    with torch.no_grad():
        hook = experts.register_forward_pre_hook(lambda _m, args: seen.append(args[2].sum(dim=1)))
        wanted = serve(model, *(one[:2] for one in batch()))
        hook.remove()
    assert bool(float(seen[0].std()) < 1e-5) == scales_weights(model)
    placement = make_map(layer_ids(model), num_nodes=1, gpus=1, slots=8)

    def program(mesh: Mesh) -> list[Any]:
        mine = copy.deepcopy(model)
        attach(mine, placement, mesh, capacity=CapacityPolicy(mode="drop", gamma=100.0))
        return serve(mine, *(one[:2] for one in batch()))

    for a, b in zip(Lockstep(1, 1).run(program)[0], wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5)


def test_a_model_that_is_not_known_to_scale() -> None:
    """Told in one line."""
    unknown = SimpleNamespace(config=SimpleNamespace(model_type="new_moe"))
    with pytest.raises(OptionError, match="whether new_moe scales the weights of its top-k sets is not known"):
        scales_weights(unknown)
