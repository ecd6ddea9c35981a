"""What we know of the model whose experts are placed."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from placement.errors import InputError

MOST_LAYERS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A Mixture-of-Experts model as its router sees it.

    Attributes:
        name: Free text.
        layer_ids: Absolute index of each MoE layer, ascending: (3, 4, ..., 60) for DeepSeek-V3.
        num_experts: Logical experts of a layer, E.
        top_k: Experts that a token visits, K.
        num_groups: Groups of consecutive experts for group-limited routing (DeepSeek-V3: 8), else None.
        num_hidden_layers: Decoder layers with the dense ones and without those for multi-token prediction (MTP); None:
            unknown. The number of an MTP layer is `num_hidden_layers` or more: 61 for DeepSeek-V3.
    """

    name: str
    layer_ids: tuple[int, ...]
    num_experts: int
    top_k: int
    num_groups: int | None = None
    num_hidden_layers: int | None = None

    def __post_init__(self) -> None:
        if not self.layer_ids:
            raise InputError("layer_ids is empty: a model needs at least one MoE layer")
        if min(self.layer_ids) < 0 or any(a >= b for a, b in zip(self.layer_ids, self.layer_ids[1:], strict=False)):
            raise InputError(f"layer_ids={str(list(self.layer_ids))[:200]} must be non-negative and strictly ascending")
        if max(self.layer_ids[-1], self.num_hidden_layers or 0) > MOST_LAYERS:
            raise InputError(
                f"layer {max(self.layer_ids[-1], self.num_hidden_layers or 0)} is out of range: a model has at most "
                f"{MOST_LAYERS} layers"
            )
        if not 1 <= self.num_experts <= 65536:
            raise InputError(f"num_experts={self.num_experts} is out of range: 1 to 65536 are allowed")
        if not 1 <= self.top_k <= self.num_experts:
            raise InputError(f"top_k={self.top_k} is out of range: 1 to num_experts={self.num_experts} are allowed")
        if self.num_groups is not None and (self.num_groups < 1 or self.num_experts % self.num_groups):
            raise InputError(f"num_groups={self.num_groups} must divide num_experts={self.num_experts}")
        if self.num_hidden_layers is not None and self.num_hidden_layers <= self.layer_ids[0]:
            raise InputError(
                f"num_hidden_layers={self.num_hidden_layers} leaves out every MoE layer: the first is layer "
                f"{self.layer_ids[0]}; give the number of all decoder layers, dense ones included"
            )

    @property
    def layers_said(self) -> str:
        """The MoE layers in few words, as they are: 3 to 60, or 1, 3, 5, 7."""
        return ranges(self.layer_ids)

    @property
    def routing_said(self) -> str:
        """What must agree between traces and maps, in words."""
        layers = "1 layer" if self.num_layers == 1 else f"{self.num_layers} layers"
        return f"{layers} ({self.layers_said}) of {self.num_experts} experts, top-{self.top_k}"

    @property
    def num_layers(self) -> int:
        """MoE layers, L."""
        return len(self.layer_ids)

    @property
    def num_main_layers(self) -> int:
        """MoE layers without those for multi-token prediction, which come last; all where it is unknown."""
        return sum(self.num_hidden_layers is None or layer < self.num_hidden_layers for layer in self.layer_ids)

    def same_routing(self, other: Model) -> bool:
        """True if a trace of one describes the layers and experts of the other, whatever their names."""
        return (self.layer_ids, self.num_experts, self.top_k) == (other.layer_ids, other.num_experts, other.top_k)


def ranges(ids: Iterable[int], *, to: str = " to ", then: str = ", ") -> str:
    """Ascending numbers in few words: 0 to 2, 5."""
    runs: list[list[int]] = []
    for one in ids:
        if runs and one == runs[-1][-1] + 1:
            runs[-1].append(one)
        else:
            runs.append([one])
    return then.join(f"{run[0]}{to}{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def layers_named(layer_ids: Collection[int]) -> str:
    """`layer 3`, or `layers 3 to 5, 7`."""
    return f"{'layer' if len(layer_ids) == 1 else 'layers'} {ranges(layer_ids)}"
