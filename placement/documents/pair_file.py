"""Loads of experts and the pairs that tokens visit together, in the JSON form of mbolt (github.com/doramirdor/mbolt).

`layers` are the MoE layers: `heat`, the tokens that visit each expert, and `pairs`, rows of two experts, the tokens
that visit both, and the lift. Files of your own need no more than these, and may leave `pairs` out. Further keys are
left unread: what mbolt makes of the counts (clusters, an order of experts, lifts) follows from them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from placement.core.model import Model
from placement.documents.document import MOST_FAULTS, fault_list
from placement.errors import InputError, TraceError
from placement.support.text_files import parse_json

MOST_EXPERTS = 4096  # pairs are factored as a matrix of experts

MEND = "give a pair file as docs/traces.md describes it"

Count = Annotated[int, Field(ge=0, lt=2**53)]
Ints = npt.NDArray[np.int64]


class PairLayer(BaseModel):
    """One MoE layer of a pair file."""

    model_config = ConfigDict(extra="ignore", strict=True)

    layer: Count
    heat: list[Count]
    pairs: list[list[float]] | None = None

    def rows_M3(self) -> Ints:
        """Both experts of each pair and the tokens that visit both, int64 [M, 3]."""
        return np.array([row[:3] for row in self.pairs or ()], dtype=np.int64).reshape(-1, 3)


class PairFile(BaseModel):
    """What is read of a pair file."""

    model_config = ConfigDict(extra="ignore", strict=True)

    model: str = "model"
    n_expert_per_layer: int = Field(ge=1, le=MOST_EXPERTS)
    k: int = Field(ge=1)
    n_decode_tokens: int = Field(ge=1, lt=2**53)
    layers: list[PairLayer] = Field(min_length=1)

    def shape(self) -> Model:
        """The model. Raises InputError."""
        layer_ids = tuple(layer.layer for layer in self.layers)
        return Model(name=self.model, layer_ids=layer_ids, num_experts=self.n_expert_per_layer, top_k=self.k)

    def load_LE(self) -> Ints:
        """Tokens that visit each expert, int64 [L, E]."""
        return np.array([layer.heat for layer in self.layers], dtype=np.int64)

    def pairs_L(self) -> list[tuple[Ints, Ints]] | None:
        """(the two experts of each pair, int64 [M, 2]; tokens that visit both, int64 [M]) of every layer; None where no
        layer has pairs."""
        if all(layer.pairs is None for layer in self.layers):
            return None
        rows = [layer.rows_M3() for layer in self.layers]
        return [(rows_M3[:, :2], rows_M3[:, 2]) for rows_M3 in rows]


def read_pairs(path: str | Path) -> PairFile:
    """Read and check a pair file.

    Raises:
        TraceError: The file cannot be read, or its counts contradict each other.
    """
    try:
        document = parse_json(Path(path).read_bytes())
    except OSError as error:
        raise TraceError(f"cannot read {path}: {error.strerror}; {MEND}") from None
    except ValueError as error:
        raise TraceError(f"{path} is not JSON ({error}); {MEND}") from None
    try:
        file = PairFile.model_validate(document)
        file.shape()
    except ValidationError as error:
        faults = fault_list(error)
        more = f"; and {len(faults) - MOST_FAULTS} more" if len(faults) > MOST_FAULTS else ""
        raise TraceError(f"{path}: {'; '.join(faults[:MOST_FAULTS])}{more}; {MEND}", faults) from None
    except InputError as error:
        raise TraceError(f"{path}: {error}") from None
    for layer in file.layers:
        fault = _fault(file, layer)
        if fault is not None:
            raise TraceError(f"{path}: layer {layer.layer}: {fault}")
    return file


def _fault(file: PairFile, layer: PairLayer) -> str | None:
    """What contradicts itself in a layer."""
    experts, tokens = file.n_expert_per_layer, file.n_decode_tokens
    if len(layer.heat) != experts:
        return f"heat has {len(layer.heat)} experts; n_expert_per_layer={experts} are needed"
    if not 0 < sum(layer.heat) <= tokens * file.k:
        return f"heat sums to {sum(layer.heat)}; 1 to n_decode_tokens x k = {tokens * file.k} are possible"
    hottest = max(layer.heat)
    if hottest > tokens:
        return f"expert {layer.heat.index(hottest)} has heat {hottest}, more than n_decode_tokens={tokens}"
    for row in layer.pairs or ():
        if len(row) not in (3, 4) or not all(0 <= value < 2**53 and value == int(value) for value in row[:3]):
            return f"pair {str(row)[:80]} is no row of two experts, a count and perhaps a lift"
    rows_M3 = layer.rows_M3()
    low_M, high_M = rows_M3[:, :2].min(axis=1), rows_M3[:, :2].max(axis=1)
    heat_E = np.array(layer.heat, dtype=np.int64)
    for bad_M, told in (
        ((low_M == high_M) | (high_M >= experts), f"must name two of the experts 0 to {experts - 1}"),
        (_again(low_M * experts + high_M), "is there twice"),
    ):
        if bad_M.any():
            first, second, _ = rows_M3[bad_M.argmax()].tolist()
            return f"pair {first}, {second} {told}"
    often_M = rows_M3[:, 2] > heat_E[rows_M3[:, :2]].min(axis=1)
    if often_M.any():
        first, second, count = rows_M3[often_M.argmax()].tolist()
        return f"pair {first}, {second} has count {count}, more than the heat of one of the two"
    return None


def _again(key_M: Ints) -> npt.NDArray[np.bool_]:
    """True where the key was there before."""
    again_M = np.ones(len(key_M), dtype=bool)
    again_M[np.unique(key_M, return_index=True)[1]] = False
    return again_M
