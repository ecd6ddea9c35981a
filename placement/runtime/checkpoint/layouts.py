"""How checkpoints name the weights of experts: which tensor is what of which expert in which layer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from placement.errors import InputError
from placement.runtime.checkpoint.safetensors_file import SafetensorsFile
from placement.support.tensor_file import Tensor

_BEFORE = r"^(?P<before>(?:.+\.)?layers\.(?P<layer>\d{1,5})\.(?:.+\.)?experts)\."
_EXPERTS = re.compile(r"(?:^|\.)experts\.")
_SHOWN = 8
MOST_EXPERTS = 65_536  # most experts of a layer


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """`keys` are the projections that every expert has; what follows them (`.weight`, scales, biases) is free."""

    name: str
    families: str
    keys: tuple[str, ...]
    stacked: bool

    @property
    def pattern(self) -> re.Pattern[str]:
        keys = "|".join(self.keys)
        if self.stacked:
            return re.compile(rf"{_BEFORE}(?P<part>(?P<key>{keys})(?:_[a-z_]+)?)$")
        return re.compile(rf"{_BEFORE}(?P<expert>\d{{1,5}})\.(?P<part>(?P<key>{keys})\.[\w.]+)$")

    @property
    def example(self) -> str:
        return f"experts.{self.keys[0]} [E, ...]" if self.stacked else f"experts.<e>.{self.keys[0]}.weight"


LAYOUTS = (
    Layout(
        name="per-expert",
        families="OLMoE, Qwen2-MoE, Qwen3-MoE, DeepSeek-V2, DeepSeek-V3",
        keys=("gate_proj", "up_proj", "down_proj"),
        stacked=False,
    ),
    Layout(name="w123", families="Mixtral, Phi-MoE", keys=("w1", "w2", "w3"), stacked=False),
    Layout(name="stacked", families="GPT-OSS, fused Qwen", keys=("gate_up_proj", "down_proj"), stacked=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPart:
    """One tensor of every expert of a layer.

    name      without the expert's number; in a rank's file its shape is [S, *shape], one row a slot
    shape     of one expert
    spans     file, begin and end of each expert's bytes
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int
    item_bytes: int
    spans: tuple[tuple[SafetensorsFile, int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertWeights:
    """What a checkpoint has of experts: for each layer its parts, in the order in which rank files have them.

    names  of each layer's tensors in the checkpoint
    """

    layout: str
    layers: Mapping[int, tuple[TensorPart, ...]]
    names: Mapping[int, frozenset[str]]

    def num_experts(self, layer: int) -> int:
        return len(self.layers[layer][0].spans)

    def expert_bytes(self, layer: int) -> int:
        return sum(part.num_bytes for part in self.layers[layer])


def part_order(item_bytes: int, name: str) -> tuple[int, str]:
    """As the safetensors library orders tensors: wide types first, so that all are aligned."""
    return -item_bytes, name


def find_experts(files: Iterable[SafetensorsFile], folder: Path) -> ExpertWeights:
    """Recognise the layout and check that every expert has all of its tensors, all alike. Raises InputError."""
    tensors = [(tensor, file) for file in files for tensor in file.tensors]
    inside = [(tensor, file) for tensor, file in tensors if _EXPERTS.search(tensor.name)]
    for layout in LAYOUTS:
        pattern = layout.pattern
        found = [(match, tensor, file) for tensor, file in inside if (match := pattern.match(tensor.name))]
        if found:
            break
    if not inside or not found or len(found) < len(inside):
        known = {tensor.name for _, tensor, _ in found} if inside else set()
        odd = [tensor.name for tensor, _ in (inside or tensors) if tensor.name not in known]
        raise InputError(f"{folder} has experts in no known layout: it has {_shown(odd)}; known are {_known()}")
    by_layer: dict[int, dict[str, dict[int | None, tuple[Tensor, SafetensorsFile]]]] = {}
    keys: dict[int, set[str]] = {}
    names: dict[int, set[str]] = {}
    for match, tensor, file in found:
        layer, expert = int(match["layer"]), None if layout.stacked else int(match["expert"])
        part = by_layer.setdefault(layer, {}).setdefault(f"{match['before']}.{match['part']}", {})
        if expert in part:
            raise InputError(f"{folder} has tensor {tensor.name} twice")
        part[expert] = (tensor, file)
        keys.setdefault(layer, set()).add(match["key"])
        names.setdefault(layer, set()).add(tensor.name)
    for layer, has in keys.items():
        if missing := [key for key in layout.keys if key not in has]:
            raise InputError(
                f"{folder}: layer {layer} has no {', '.join(missing)} of its experts; fetch all of its files"
            )
        if len({name.rpartition("experts.")[0] for name in by_layer[layer]}) > 1:
            raise InputError(f"{folder}: layer {layer} has several sets of experts ({_shown(by_layer[layer])})")
    return ExpertWeights(
        layout=layout.name,
        layers={layer: _parts(by_layer[layer], layer, folder) for layer in sorted(by_layer)},
        names={layer: frozenset(held) for layer, held in names.items()},
    )


def _parts(
    by_name: dict[str, dict[int | None, tuple[Tensor, SafetensorsFile]]], layer: int, folder: Path
) -> tuple[TensorPart, ...]:
    parts = [
        _stacked(name, *sources[None]) if None in sources else _single(name, sources, folder)
        for name, sources in by_name.items()
    ]
    if len(sizes := {len(part.spans) for part in parts}) > 1:
        raise InputError(f"{folder}: tensors of layer {layer} are of {sorted(sizes)} experts; all must have as many")
    return tuple(sorted(parts, key=lambda part: part_order(part.item_bytes, part.name)))


def _stacked(name: str, tensor: Tensor, file: SafetensorsFile) -> TensorPart:
    if not tensor.shape or not tensor.shape[0]:
        raise InputError(f"{file.path}: {name} has shape {list(tensor.shape)}; experts come first in it, [E, ...]")
    if tensor.shape[0] > MOST_EXPERTS or tensor.num_bytes % tensor.shape[0]:
        raise InputError(
            f"{file.path}: {name} has {tensor.num_bytes} bytes for {tensor.shape[0]} experts; all have as many, and at "
            f"most {MOST_EXPERTS} experts are allowed"
        )
    size = tensor.num_bytes // tensor.shape[0]
    return TensorPart(
        name=name,
        dtype=tensor.dtype,
        shape=tensor.shape[1:],
        num_bytes=size,
        item_bytes=tensor.item_bytes,
        spans=tuple((file, tensor.begin + e * size, tensor.begin + (e + 1) * size) for e in range(tensor.shape[0])),
    )


def _single(name: str, sources: Mapping[int | None, tuple[Tensor, SafetensorsFile]], folder: Path) -> TensorPart:
    experts = [e for e in sources if e is not None]
    if missing := sorted(set(range(max(experts) + 1)) - set(experts)):
        raise InputError(
            f"{folder}: {name} is missing for experts {missing[:_SHOWN]}; fetch all files of the checkpoint"
        )
    first = sources[0][0]
    for e in experts:
        tensor = sources[e][0]
        if (tensor.dtype, tensor.shape) != (first.dtype, first.shape):
            raise InputError(
                f"{folder}: {tensor.name} is {tensor.dtype} {list(tensor.shape)} and {first.name} is {first.dtype} "
                f"{list(first.shape)}; experts of a layer must be alike to be moved"
            )
    return TensorPart(
        name=name,
        dtype=first.dtype,
        shape=first.shape,
        num_bytes=first.num_bytes,
        item_bytes=first.item_bytes,
        spans=tuple((sources[e][1], sources[e][0].begin, sources[e][0].end) for e in range(len(experts))),
    )


def _shown(names: Iterable[str]) -> str:
    """Names with numbers as *, each once."""
    kinds = sorted({re.sub(r"\b\d+\b", "*", name) for name in names})
    more = f" and {len(kinds) - _SHOWN} more" if len(kinds) > _SHOWN else ""
    return ", ".join(kinds[:_SHOWN]) + more if kinds else "no tensors"


def _known() -> str:
    return "; ".join(f"{layout.name} ({layout.example}: {layout.families})" for layout in LAYOUTS)
