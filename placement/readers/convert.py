"""A recording of an engine -> a folder of `expert-trace/1`, or a file of counts where it has no tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from placement.core.model import Model, layers_named
from placement.errors import OptionError, TraceError
from placement.readers import AUTO, detect, get_reader
from placement.readers.base import CountRecording, Reader, ReadOptions, Recording, check_exists
from placement.readers.cleaning import Cleaner
from placement.readers.survey import check_layers, survey
from placement.support.atomic_files import check_new_folder, check_writable
from placement.traces.prompts import write_prompts
from placement.traces.storage.litter import is_litter, left_out
from placement.traces.write import new_folder, write_trace
from placement.workload.counts_file import write_counts

COUNTS_SUFFIX = ".npz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What was written. `reader` took the recording because of `reason`; num_tokens is None of counts."""

    reader: str
    reason: str
    output: Path
    model: Model
    num_tokens: int | None
    num_requests: int
    notes: tuple[str, ...]


def convert(
    path: str | Path, output: str | Path, *, reader: str = AUTO, options: ReadOptions | None = None
) -> Conversion:
    """Convert the recording at `path`: a file, or a folder of the files that an engine wrote.

    Tokens become a new folder `output`; counts become a file `output`, which must end in .npz. Nothing is unpickled.
    Ids of tokens are kept where the recording has them: `notes` say so.

    Where an error is raised, nothing was written.

    Args:
        path: The recording.
        output: Folder or file to make.
        reader: Name of a reader, or `auto` for the one that takes the recording.
        options: What the recording leaves unsaid.

    Raises:
        TraceError: The recording is damaged, or of no known format.
        OptionError: An option is missing, or contradicts the recording.
        OutputError: The output exists already, or cannot be written.
    """
    path, output, options = Path(path), Path(output), options or ReadOptions()
    check_output(output)
    chosen, reason = _choose(path, reader)
    return _write(path, output, chosen.read(path, options), options, chosen.name, reason)


def check_output(output: str | Path) -> None:
    """Raise OutputError now if what a recording becomes could not be written there: by its name, counts or a trace."""
    if Path(output).suffix == COUNTS_SUFFIX:
        check_writable(output)
    else:
        check_new_folder(output)


def convert_below(
    path: str | Path, folder: str | Path, *, reader: str = AUTO, options: ReadOptions | None = None
) -> Conversion:
    """As `convert`, to `folder/trace` or, where the recording holds counts without tokens, to `folder/counts.npz`."""
    path, options = Path(path), options or ReadOptions()
    chosen, reason = _choose(path, reader)
    recording = chosen.read(path, options)
    output = Path(folder) / (f"counts{COUNTS_SUFFIX}" if isinstance(recording, CountRecording) else "trace")
    return _write(path, output, recording, options, chosen.name, reason)


def _choose(path: Path, reader: str) -> tuple[Reader, str]:
    check_exists(path)
    return detect(path) if reader == AUTO else (get_reader(reader), "it was named with --from")


def _write(
    path: Path, output: Path, recording: Recording | CountRecording, options: ReadOptions, reader: str, reason: str
) -> Conversion:
    if isinstance(recording, CountRecording):
        model, num_tokens, requests, notes = *_write_counts(path, output, recording, options), recording.notes
    else:
        model, num_tokens, requests, notes = _write_tokens(path, output, recording, options)
    return Conversion(
        reader=reader,
        reason=reason,
        output=output,
        model=model,
        num_tokens=num_tokens,
        num_requests=requests,
        notes=(*notes, *_litter_of(path)),
    )


def _litter_of(path: Path) -> list[str]:
    return left_out(sorted(one.name for one in path.glob("*") if one.is_file() and is_litter(one.name)))


def _write_tokens(
    path: Path, output: Path, recording: Recording, options: ReadOptions
) -> tuple[Model, int, int, list[str]]:
    if output.suffix == COUNTS_SUFFIX:
        raise OptionError(f"{path} holds tokens, which become a folder; give an output without {COUNTS_SUFFIX}")
    check_output(output)
    seen = survey(recording, options)
    cleaner = Cleaner(recording=recording, survey=seen)
    with new_folder(output) as folder:
        num_tokens = write_trace(folder, cleaner.pieces(), model=seen.model, requests=cleaner.requests)
        prompts = cleaner.prompts()
        if prompts is not None:
            write_prompts(folder, prompts)
    notes = list(dict.fromkeys([*recording.notes, *cleaner.notes()]))
    return seen.model, num_tokens, len(cleaner.requests), notes


def _write_counts(path: Path, output: Path, recording: CountRecording, options: ReadOptions) -> tuple[Model, None, int]:
    if output.suffix != COUNTS_SUFFIX:
        raise OptionError(
            f"{path} holds counts without tokens, which become one file; give an output that ends in .npz"
        )
    check_layers(options, recording.count_QLE.shape[1], str(path))
    check_output(output)
    for name, given, said in (
        ("--top-k", options.top_k, recording.top_k),
        ("--experts", options.num_experts, recording.count_QLE.shape[2]),
        ("--layer-ids", options.layer_ids, recording.layer_ids),
    ):
        if None not in (given, said) and given != said:
            raise OptionError(f"{name} is not what {path} has, {said}; leave it out")
    top_k = recording.top_k or options.top_k
    if top_k is None:
        sums = recording.count_QLE.sum(axis=2)
        common = int(np.gcd.reduce(sums[sums > 0], axis=None)) if sums.any() else 0
        raise OptionError(
            f"{path} does not say how many experts a token visits; give --top-k K (its sums are all multiples of it, "
            f"and of {common:,})"
        )
    live = [layer for layer in range(len(recording.layer_ids)) if recording.count_QLE[:, layer].any()]
    used = recording.count_QLE.any(axis=(1, 2))
    if not live:
        raise TraceError(f"{path} counts nothing: all counts are 0; record some requests first")
    if len(live) < len(recording.layer_ids):
        dense = [one for layer, one in enumerate(recording.layer_ids) if layer not in live]
        recording.notes.append(f"{layers_named(dense)} left out: dense, nothing was counted there")
    if not used.all():
        recording.notes.append(f"{int(np.count_nonzero(~used)):,} unused rows left out")
    model = Model(
        name=options.model or recording.model,
        layer_ids=tuple(recording.layer_ids[layer] for layer in live),
        num_experts=recording.count_QLE.shape[2],
        top_k=top_k,
        num_hidden_layers=recording.num_hidden_layers,
    )
    count_QLE = recording.count_QLE[used][:, live]
    write_counts(output, model, count_QLE)
    return model, None, len(count_QLE)
