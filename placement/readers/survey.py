"""The first pass over a recording: which layers have experts, how many a token visits, and which rows are no tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from placement.core.model import Model, ranges
from placement.errors import InputError, OptionError, TraceError
from placement.readers import cleaning_kernels as kernels
from placement.readers.base import Batch, ReadOptions, Recording
from placement.readers.padding import Padding, Suspects
from placement.readers.recorded_sets import RecordedSets, SetSizes, check_sound

LARGEST_ID = 65535
MUCH = 0.25  # of the tokens
MOST_NAMED = 16  # layers whose top-k are told one by one


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What the first pass saw.

    layers   indices of the N layers with experts
    limit    ids from there on are left out of the sets; NEVER where there are none
    short    whether sets may have fewer than top-k experts
    padding  rows to leave out
    notes    what the user should know of the model, one line each
    """

    model: Model
    layers: npt.NDArray[np.int64]
    sizes: SetSizes
    limit: int
    short: bool
    weights: bool
    padding: tuple[Padding, ...]
    notes: tuple[str, ...]


def survey(recording: Recording, options: ReadOptions) -> Survey:
    """Read all of a recording once. Raises TraceError, and OptionError where an option contradicts it."""
    num_layers = len(recording.layer_ids)
    if recording.phy2log_LP is not None:
        check_layers(options, len(recording.phy2log_LP), "the map of the recording")
    told = recording.num_experts if options.num_experts is None else options.num_experts
    if told is not None and told < 1:
        raise OptionError(f"{told} experts are none; give --experts, the experts of a layer, from 1 on")
    sets = RecordedSets(num_layers, kernels.NEVER if told is None or recording.phy2log_LP is not None else told)
    suspects = Suspects()
    weights = True
    for batch in recording.batches():
        if batch.ids_LTK.shape[0] != num_layers:
            check_layers(options, batch.ids_LTK.shape[0], batch.where)
            raise TraceError(
                f"{batch.where} has {batch.ids_LTK.shape[0]} layers; what came before has {num_layers}: "
                f"convert recordings of different models apart"
            )
        if not batch.ids_LTK.size:
            continue
        weights &= batch.weights_LTK is not None
        sets.look(batch.where, batch.ids_LTK, _set_apart(batch, suspects))
    padding = tuple(_judged(sets, suspects, told, options))
    layers = sets.live() if sets.rows else np.empty(0, dtype=np.int64)
    largest = int(sets.largest_L.max(initial=-1))
    if not len(layers) or (not largest and told is None):
        left_out = f"; left out: {', '.join(sorted({one.what for one in padding}))}" if padding else ""
        raise TraceError(f"{recording.model}: no token has any expert{left_out}; record some requests first")
    limit, notes = _beyond(sets, layers, recording, options)
    num_experts = told or largest + 1
    sizes = sets.sizes(layers, num_experts, trust=options.keep_unwritten)
    top_k = _top_k(sets, sizes, options)
    model = _model(recording, options, layers, top_k, num_experts, largest)
    zeros = suspects.share_of_zeros()
    if top_k == len(layers) == 1 and zeros > max(MUCH, 4 / num_experts):
        notes.append(
            f"expert 0 has {zeros:.0%} of the tokens of the only MoE layer: whether nobody wrote some of their rows "
            f"cannot be told"
        )
    if told is None:
        notes.append(f"{num_experts} experts: the largest id plus one; give --experts if the model has more")
    return Survey(
        model=model,
        layers=layers,
        sizes=sizes,
        limit=limit,
        short=bool((sizes.least_N < top_k).any()),
        weights=weights,
        padding=padding,
        notes=(*_places(model, sizes, sets.width), *notes),
    )


def check_layers(options: ReadOptions, num_layers: int, what: str) -> None:
    """Raise OptionError if --layer-ids names another number of layers."""
    if options.layer_ids is not None and len(options.layer_ids) != num_layers:
        raise OptionError(
            f"--layer-ids names {len(options.layer_ids)} layers and {what} has {num_layers}; name each, dense ones too"
        )


def _set_apart(batch: Batch, suspects: Suspects) -> npt.NDArray[np.bool_]:
    """Which rows are no tokens, or may be none, bool [T]."""
    kind_T = np.empty(len(batch.request_T), dtype=np.uint8)
    repeat_T = np.empty(len(batch.request_T), dtype=bool)
    sound = kernels.row_kinds(batch.ids_LTK, batch.request_T, kind_T, repeat_T)
    check_sound(batch.where, batch.ids_LTK, sound)
    return np.asarray(suspects.add(batch, kind_T, repeat_T) | (kind_T == kernels.BLANK))


def _judged(sets: RecordedSets, suspects: Suspects, told: int | None, options: ReadOptions) -> Iterator[Padding]:
    """The suspects that are padding; the sets of the others join `sets`."""
    num_layers = len(sets.largest_L)
    known = sets
    if not sets.rows:  # every row is a suspect
        known = RecordedSets(num_layers, sets.limit)
        for ids_LK in suspects.suspects(num_layers):
            known.look("", ids_LK[:, None], np.zeros(1, dtype=bool))
        if not known.rows:
            return
    num_experts = told or int(known.largest_L.max()) + 1
    layers = known.live()
    for ids_LK, padding in suspects.judge(num_layers, layers, num_experts):
        if padding is None or options.keep_unwritten:
            sets.look("the recording", ids_LK[:, None], np.zeros(1, dtype=bool))
        else:
            yield padding


def _beyond(
    sets: RecordedSets, layers: npt.NDArray[np.int64], recording: Recording, options: ReadOptions
) -> tuple[int, list[str]]:
    """The limit from which ids are left out, and notes on ids that are no routed experts, or may be none."""
    said, given = recording.num_experts, options.num_experts
    places_N, least_N, most_N, largest_N, inner_N = sets.beyond_LX[layers].T
    told = sets.limit
    everywhere = bool(places_N.all()) and int(largest_N.max()) + 1 < 2 * told
    if given is not None and said is not None and (given > said or (given < said and not everywhere)):
        raise OptionError(f"--experts {given} is not what the recording says, {said}; leave it out")
    if not everywhere:
        fused = sets.fused(layers, told if told < kernels.NEVER else int(sets.largest_L.max()) + 1)
        if fused is None or recording.phy2log_LP is not None:
            return kernels.NEVER, []
        mend = (
            f"leave it out with --experts {fused}" if fused == int(sets.largest_L.max()) else "record again without it"
        )
        return kernels.NEVER, [
            f"expert {fused} is the last of every set in all layers: a shared expert fused as one more? {mend}"
        ]
    last = int(largest_N.max())
    ids = f"id {told}" if last == told else f"ids {told} to {last}"
    if not inner_N.any() and len({*least_N.tolist(), *most_N.tolist()}) == 1:
        return told, [f"{ids} left out: last in every set of all layers, a shared expert fused as one more"]
    places = int(places_N.sum())
    share = places / (sets.rows * len(layers) * sets.width)
    return told, [
        f"{ids} left out of the sets ({places:,} places, {share:.2%}): experts that compute nothing? If they compute, "
        f"give the right --experts"
    ]


def _top_k(sets: RecordedSets, sizes: SetSizes, options: ReadOptions) -> int:
    """Raises OptionError where --top-k is another number than the sets allow."""
    top_k, given = int(sizes.most_N.max()), options.top_k
    varied = bool((sizes.least_N < top_k).any())
    if given is None or given == top_k:
        return top_k
    if top_k < given <= sets.width and varied:
        return given
    raise OptionError(f"--top-k {given} is not what the recording has, {top_k}; leave it out")


def _model(
    recording: Recording,
    options: ReadOptions,
    layers: npt.NDArray[np.int64],
    top_k: int,
    num_experts: int,
    largest: int,
) -> Model:
    if options.layer_ids not in (None, recording.layer_ids):
        raise OptionError(f"--layer-ids is not what the recording says, {ranges(recording.layer_ids)}; leave it out")
    if recording.phy2log_LP is None and largest > LARGEST_ID:
        raise TraceError(f"{recording.model}: expert id {largest} is out of range; {recording.id_fault}")
    try:
        return Model(
            name=options.model or recording.model,
            layer_ids=tuple(recording.layer_ids[layer] for layer in layers.tolist()),
            num_experts=num_experts,
            top_k=top_k,
            num_hidden_layers=recording.num_hidden_layers,
        )
    except InputError as error:
        raise TraceError(f"{recording.model}: {error}") from None


def _places(model: Model, sizes: SetSizes, width: int) -> Iterator[str]:
    """What the places of the sets tell, one line each."""
    layer_ids = np.array(model.layer_ids)
    if (sizes.places_N < width).any():
        cut = ranges(layer_ids[sizes.places_N < width].tolist())
        yield f"last places of sets left out in which every set of a layer has 0, so nobody wrote there: layers {cut}"
    if sizes.filled_N.any():
        filled = ranges(layer_ids[sizes.filled_N].tolist())
        yield f"0s at the end of sets left out: some sets end with several, so nobody wrote there: layers {filled}"
    tops = sizes.most_N.tolist()
    if set(tops) == {model.top_k}:
        return
    if len(tops) <= MOST_NAMED:
        yield f"layers have top-k {', '.join(map(str, tops))}"
    else:
        of = {top: ranges(layer_ids[sizes.most_N == top].tolist()) for top in sorted(set(tops), reverse=True)}
        yield f"layers have top-k {', '.join(f'{top} ({layers})' for top, layers in of.items())}"
