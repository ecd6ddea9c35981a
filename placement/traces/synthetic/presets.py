"""Shapes of well-known models, for synthetic traces."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from placement.core.model import MOST_LAYERS, Model
from placement.errors import OptionError
from placement.traces.synthetic.strengths import Strengths

# as fitted on recordings; what each was fitted to, and how near it comes, is in docs/traces.md
GPT_OSS_20B = Strengths()
QWEN3_30B = Strengths(load_cv=1.1, rank_growth=0.0)
QWEN3_NEXT = Strengths(load_cv=0.97, rank_growth=0.0, domain=2.4, category=0.7, request=6.0, process=7.0, token=3.9)
GLM_52 = Strengths(
    load_cv=0.8,
    load_tail="lognormal",
    domain=1.1,
    category=0.3,
    request=2.8,
    process=3.3,
    token=1.1,
    context_rank=20,
    token_rank=8,
    rank_growth=0.0,
    features=3,
    memory=0.75,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceShape:
    """What the router of a model may choose.

    groups_per_token  groups of experts that one token may visit; only where `model.num_groups` is set
    strengths         how much domains, requests and tokens decide
    """

    model: Model
    groups_per_token: int | None = None
    strengths: Strengths = field(default_factory=Strengths)

    def __post_init__(self) -> None:
        groups, allowed = self.model.num_groups, self.groups_per_token
        if (groups is None) != (allowed is None):
            raise OptionError(f"groups_per_token={allowed} and num_groups={groups} must be given both or neither")
        if groups is None or allowed is None:
            return
        if not 1 <= allowed <= groups:
            raise OptionError(f"groups_per_token={allowed} is out of range: 1 to num_groups={groups} are allowed")
        room = allowed * (self.model.num_experts // groups)
        if room < self.model.top_k:
            raise OptionError(f"groups_per_token={allowed} leaves {room} experts, fewer than top_k={self.model.top_k}")

    def without_group_limit(self) -> TraceShape:
        return replace(self, model=replace(self.model, num_groups=None), groups_per_token=None)


def _shape(
    name: str,
    layers: range,
    num_experts: int,
    top_k: int,
    groups: tuple[int, int] | None = None,
    strengths: Strengths = GPT_OSS_20B,
) -> TraceShape:
    num_groups, per_token = groups or (None, None)
    model = Model(name=name, layer_ids=tuple(layers), num_experts=num_experts, top_k=top_k, num_groups=num_groups)
    return TraceShape(model=model, groups_per_token=per_token, strengths=strengths)


PRESETS = {
    shape.model.name: shape
    for shape in (
        _shape("olmoe", range(16), 64, 8),
        _shape("mixtral", range(32), 8, 2),
        _shape("gpt-oss-20b", range(24), 32, 4),
        _shape("gpt-oss-120b", range(36), 128, 4, strengths=replace(GLM_52, load_cv=0.85, load_tail="gamma")),
        _shape("qwen3-30b", range(48), 128, 8, strengths=QWEN3_30B),
        _shape("qwen3-235b", range(94), 128, 8, strengths=QWEN3_30B),
        _shape("qwen3-next", range(48), 512, 10, strengths=QWEN3_NEXT),
        _shape("gemma-4-26b", range(30), 128, 8, strengths=replace(QWEN3_30B, load_cv=1.42)),
        # layers 0 to 2 are dense
        _shape("glm-5.2", range(3, 78), 256, 8, strengths=GLM_52),
        _shape("deepseek-v3", range(3, 61), 256, 8, (8, 4), replace(GLM_52, context_rank=14)),
        _shape("kimi-k2", range(1, 61), 384, 8, strengths=GLM_52),  # layer 0 is dense
        # approximate: every layer is MoE, but layers 0 to 2 route by a hash of the token, which is not modelled
        _shape("deepseek-v4-pro", range(61), 384, 6, strengths=GLM_52),
    )
}


def preset(name: str) -> TraceShape:
    """The shape of that name. Raises OptionError. "deepseek-v4-pro" is approximate (its hash-routed layers are not)."""
    if name not in PRESETS:
        raise OptionError(f"preset {name!r} is unknown; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


def custom_shape(num_layers: int, num_experts: int, top_k: int) -> TraceShape:
    """A shape of these sizes with layers 0, 1, ... and no group limit. Raises InputError."""
    if not 1 <= num_layers <= MOST_LAYERS:
        raise OptionError(f"num_layers={num_layers} is out of range: 1 to {MOST_LAYERS} are allowed")
    return _shape(f"synthetic-{num_layers}x{num_experts}-top{top_k}", range(num_layers), num_experts, top_k)
