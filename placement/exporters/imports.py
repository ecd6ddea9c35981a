"""From what an engine's file says to a sound map: everything that engines fail to check is checked here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.core.model import Model
from placement.core.placement import NO_SLOT, Placement, spans
from placement.core.shape import Shape
from placement.errors import InputError, MapError, OptionError
from placement.exporters.base import FileMap
from placement.support.text_files import parse_json


def imported(
    file: FileMap,
    *,
    name: str,
    top_k: int,
    num_nodes: int,
    gpus_per_node: int | None = None,
    rank_hosts: tuple[int, ...] = (),
    num_experts: int | None = None,
    layer_ids: tuple[int, ...] | None = None,
    num_hidden_layers: int | None = None,
) -> Placement:
    """The map of a file and what only its user knows. Raises MapError, OptionError.

    num_experts  E; by default what the file says, else the highest id and one
    layer_ids    absolute numbers of the MoE layers; by default the file's, else 0 and up
    rank_hosts   node of each of the engine's ranks, where these are not numbered node by node
    """
    layer_ids, rows = _chosen_rows(file, layer_ids)
    experts = file.num_experts or max(int(row.max(initial=0)) for row in rows) + 1
    if num_experts is not None:
        if file.num_experts not in (None, num_experts):
            raise OptionError(f"--num-experts {num_experts} is not what the file says, {file.num_experts}")
        experts = num_experts
    if num_nodes < 1 or (gpus_per_node is not None and gpus_per_node < 1):
        raise OptionError(f"--nodes {num_nodes} and --gpus-per-node {gpus_per_node} must be at least 1")
    if gpus_per_node is None:
        if file.num_ranks is None:
            raise OptionError("the file does not say which slots make a GPU; give --gpus-per-node")
        gpus_per_node = file.num_ranks // num_nodes
    num_ranks = num_nodes * gpus_per_node
    if file.num_ranks not in (None, num_ranks):
        raise OptionError(
            f"the file is for {file.num_ranks} GPUs, not for {num_nodes} x {gpus_per_node} = {num_ranks}; give other "
            "--nodes and --gpus-per-node"
        )
    for layer, row in zip(layer_ids, rows, strict=True):
        if len(row) % num_ranks:
            raise MapError(
                f"{len(row)} slots of layer {layer} cannot be shared evenly by {num_ranks} GPUs; for {experts} "
                f"experts, {-experts % num_ranks} redundant ones are the least that can be"
            )
        for slot in np.flatnonzero(row < 0)[:1].tolist():  # which would stand for no slot
            raise MapError(f"layer {layer}: slot {slot} holds id {row[slot]}; ids from 0 to {experts - 1} are allowed")
    slots = max(map(len, rows)) // num_ranks
    phy2log_LGS = np.full((len(rows), num_ranks, slots), NO_SLOT)
    for layer, row in enumerate(rows):
        phy2log_LGS[layer, :, : len(row) // num_ranks] = row.reshape(num_ranks, -1)
    if file.hidden and num_hidden_layers not in (None, len(file.rows)):
        raise MapError(
            f"the file has {len(file.rows)} rows; one for each of {num_hidden_layers} hidden layers is needed"
        )
    hidden = len(file.rows) if file.hidden else num_hidden_layers
    try:
        model = Model(name=name, layer_ids=layer_ids, num_experts=experts, top_k=top_k, num_hidden_layers=hidden)
    except InputError as error:
        raise MapError(str(error)) from None
    sizes: dict[str, Any] = {"num_nodes": num_nodes, "gpus_per_node": gpus_per_node}
    shape = Shape(**sizes, slots_per_gpu=slots, rank_hosts=rank_hosts)
    shape.settle_hosts()
    return Placement(
        model=model,
        **shape.sizes(),
        phy2log_LP=shape.from_engine(phy2log_LGS.reshape(len(rows), -1)),  # Placement checks the ids, then narrows them
    )


def _chosen_rows(
    file: FileMap, layer_ids: tuple[int, ...] | None
) -> tuple[tuple[int, ...], Sequence[npt.NDArray[np.int64]]]:
    rows = file.rows
    if not len(rows) or not all(map(len, rows)):
        raise MapError("the file has no rows; one for each layer is needed")
    if file.every_layer:
        if layer_ids is None:
            raise OptionError("the file has one row for all layers; give --moe-layers, as 0-57")
        return layer_ids, [rows[0]] * len(layer_ids)
    if layer_ids is None:
        return file.layer_ids or tuple(range(len(rows))), rows
    numbers = file.layer_ids or (tuple(range(len(rows))) if file.hidden else layer_ids)
    missing = [layer for layer in layer_ids if layer not in numbers]
    if missing or len(numbers) != len(rows):
        what = f"no row for layer {missing[0]}" if missing else f"{len(rows)} rows for {len(numbers)} layers"
        raise MapError(f"the file has {what}; give other --moe-layers")
    return layer_ids, [rows[numbers.index(layer)] for layer in layer_ids]


def json_value(content: bytes) -> Any:
    """Raises MapError on what is not JSON."""
    try:
        return parse_json(content)
    except ValueError as error:
        raise MapError(f"it is not JSON: {error}") from None


def only_keys(value: Any, *keys: str) -> dict[str, Any]:
    """A mapping that has all of these keys and no other: engines stop at others, or read past them."""
    if not isinstance(value, dict):
        raise MapError(f"it holds a {type(value).__name__}; a mapping with {', '.join(keys)} is needed")
    missing, extra = [key for key in keys if key not in value], [str(key) for key in value if key not in keys]
    if missing or extra:
        told = f"{', '.join(missing)} is missing" if missing else f"{', '.join(extra)} is not allowed"
        raise MapError(f"{told}; it must have {', '.join(keys)} and no other key")
    return value


def whole_rows(value: Any, what: str, *, even: bool = True) -> list[npt.NDArray[np.int64]]:
    """A list of lists of whole numbers as int64 [P] each, `even`: of one length. Raises MapError on anything else."""
    if not isinstance(value, list) or not value or not all(isinstance(row, list) for row in value):
        raise MapError(f"{what} must be a list of rows of slots")
    for number, row in enumerate(value):
        bad = [entry for entry in row if type(entry) is not int or abs(entry) >= 2**31]
        if bad:
            raise MapError(f"{what}: row {number} holds {str(bad[0])[:20]!r}; ids that are whole numbers are needed")
    lengths = np.array([len(row) for row in value])
    if even and len(set(lengths)) > 1:
        told = "; ".join(
            f"{n} in {spans(np.flatnonzero(lengths == n).tolist())}" for n in sorted(set(lengths), reverse=True)
        )
        raise MapError(f"{what}: rows differ in slots ({told}); the engine needs as many in all")
    return [np.array(row, dtype=np.int64) for row in value]


def check_even_ranks(experts_LG: list[list[int]]) -> None:
    """Refuse a file whose ranks differ in slots within a layer: a placement has no such maps.

    Args:
        experts_LG: How many experts each rank holds in each layer. Layers may have different numbers of ranks.

    Raises:
        MapError: A rank holds no expert, or not as many as rank 0 does of the layer, or a layer has other ranks.
    """
    ranks = len(experts_LG[0])
    for layer, experts_G in enumerate(experts_LG):
        if len(experts_G) != ranks:
            raise MapError(f"layer {layer} has {len(experts_G)} ranks, layer 0 has {ranks}; all need as many")
        for rank, experts in enumerate(experts_G):
            if experts != experts_G[0] or not experts:
                raise MapError(
                    f"rank {rank} holds {experts} experts of layer {layer}, rank 0 holds {experts_G[0]}; all ranks "
                    "need as many of a layer"
                )


def whole_array(array: npt.NDArray[Any], what: str, ndim: int = 2) -> npt.NDArray[np.int64]:
    """An array of whole numbers with `ndim` axes as int64. Raises MapError on anything else."""
    if array.dtype.kind not in "iu" or array.ndim != ndim or not array.size:
        raise MapError(f"{what} is {array.dtype} {list(array.shape)}; whole numbers with {ndim} axes are needed")
    if not -(2**31) < int(array.min()) <= int(array.max()) < 2**31:
        raise MapError(f"{what} holds ids beyond 2^31")
    return array.astype(np.int64)
