"""The contract of a reader, as tests: inherit `ReaderContract` and pytest runs it on your reader.

Example::

    class TestMine(ReaderContract):
        @pytest.fixture
        def reader(self):
            return Mine()

        @pytest.fixture
        def golden(self):
            return Golden.load(Path("golden/mine"))

A golden recording is a folder of files as the engine writes them, and beside it `<folder>.json` with what must come
out: `model`, `options`, and `requests` (tokens of each by its name, with `token` where ids were recorded) or `counts`;
`prompts`, ids by the name of the request, of which rows are lacking.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from placement.errors import PlacementError
from placement.readers import detect
from placement.readers.base import CountRecording, Reader, ReadOptions
from placement.readers.convert import Conversion, convert
from placement.traces.format import TOKEN
from placement.traces.prompts import stored_prompts
from placement.traces.trace import open_trace
from placement.workload.counts_file import read_counts

CUTS = (0.0, 0.02, 0.3, 0.6, 0.9, 1.0)  # shares of a file that are left; the last loses one byte
DAMAGES = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """A recording on disk and what must come out of it."""

    path: Path
    model: dict[str, Any]
    options: ReadOptions
    requests: dict[str, list[dict[str, Any]]]
    counts: list[list[list[int]]] | None
    weights: bool
    left_out: dict[str, int]
    prompts: dict[str, list[int]]

    @staticmethod
    def load(path: Path) -> Golden:
        """The recording of a folder of `tests/golden/readers`."""
        document = json.loads(path.with_name(f"{path.name}.json").read_text())
        return Golden(
            path=path,
            model=document["model"],
            options=ReadOptions(**document["options"]),
            requests=document["requests"],
            counts=document.get("counts"),
            weights=document.get("weights", False),
            left_out=document.get("left_out", {}),
            prompts=document.get("prompts", {}),
        )

    def convert(self, reader: Reader, output: Path, recording: Path | None = None) -> Conversion:
        """As `placement traces convert --from NAME`."""
        target = output.with_suffix(".npz") if self.counts is not None else output
        return convert(recording or self.path, target, reader=reader.name, options=self.options)


class ReaderContract:
    """What every reader must do. Give the fixtures `reader` and `golden`."""

    def test_is_found_by_its_format(self, reader: Reader, golden: Golden) -> None:
        """`--from auto` takes this reader and no other, and says why in one line."""
        found, why = detect(golden.path)
        _require(found.name == reader.name, f"{golden.path} was taken for {found.name} ({why})")
        _require(bool(why) and "\n" not in why, f"the reason is {why!r}")
        _require(bool(reader.title), "the reader has no title")

    def test_sniffing_never_raises(self, reader: Reader, tmp_path: Path) -> None:
        """Anything may be pointed at: empty files and folders, bytes of no format, under any of the suffixes."""
        noise = np.random.default_rng(0).bytes(3000)
        for suffix in (".pt", ".npy", ".npz", ".json", ".jsonl", ".gguf", ".parquet", ".safetensors", ".txt"):
            for name, content in (("empty", b""), ("noise", noise), ("text", b'{"a": [1]}\n')):
                file = tmp_path / f"{name}{suffix}"
                file.write_bytes(content)
                reader.sniff(file)
        reader.sniff(tmp_path)

    def test_golden_recording(self, reader: Reader, golden: Golden, tmp_path: Path) -> None:
        """Tokens, requests, positions, phases, layers and experts are those recorded; what is left out is reported."""
        done = golden.convert(reader, tmp_path / "out")
        model = done.model
        said = {"name": model.name, "layer_ids": list(model.layer_ids), "num_experts": model.num_experts}
        _require(said | {"top_k": model.top_k} == golden.model, f"the model is {model}")
        if golden.counts is not None:
            counts = read_counts(done.output)
            _require(counts.count_QLE.tolist() == golden.counts, "other counts than were recorded")
            _require(counts.model == model, "the file of counts is of another model")
        else:
            _check_tokens(done.output, golden)
            _check_content(done, golden)
        for what, count in golden.left_out.items():
            _require(any(f"{count} {what}" in note for note in done.notes), f"{count} {what} are not in {done.notes}")
        _require(all(note and "\n" not in note for note in done.notes), f"notes must be single lines: {done.notes}")

    def test_same_recording_gives_same_bytes(self, reader: Reader, golden: Golden, tmp_path: Path) -> None:
        """No dates, no order that depends on hashes."""
        contents = []
        for name in ("one", "two"):
            output = golden.convert(reader, tmp_path / name).output
            files = [output] if output.is_file() else sorted(output.iterdir())
            contents.append([file.read_bytes() for file in files])
        _require(contents[0] == contents[1], "two conversions differ")

    def test_batches_can_be_read_again(self, reader: Reader, golden: Golden) -> None:
        """A conversion reads a recording twice: the second time must give what the first gave."""
        recording = reader.read(golden.path, golden.options)
        if isinstance(recording, CountRecording):
            return
        for one, two in zip(recording.batches(), recording.batches(), strict=True):
            _require(
                one.ids_LTK.dtype == np.int32 and one.ids_LTK.flags.c_contiguous, "ids must be int32, layers first"
            )
            _require(len(one.ids_LTK) == len(recording.layer_ids), f"{one.where} has another number of layers")
            _require(np.array_equal(one.ids_LTK, two.ids_LTK), f"{one.where} has other ids when it is read again")
            _require(one.requests == two.requests, f"{one.where} has other requests when it is read again")

    def test_truncated_files(self, reader: Reader, golden: Golden, tmp_path: Path) -> None:
        """A file that was cut off is converted as far as it goes, or refused in one line; never anything else."""
        for name, content, file in _files(golden, tmp_path):
            for number, share in enumerate(CUTS):
                size = int(len(content) * share) if share < 1 else len(content) - 1
                file.write_bytes(content[:size])
                failed = _survives(
                    reader, golden, file.parent, tmp_path / f"cut-{number}", f"{name} cut to {size} bytes"
                )
                _require(failed or size > 0, f"an empty {name} was converted without a word")
            file.write_bytes(content)

    def test_damaged_files(self, reader: Reader, golden: Golden, tmp_path: Path) -> None:
        """Bytes that changed give another trace or an error of ours, not a crash."""
        rng = np.random.default_rng(1)
        for name, content, file in _files(golden, tmp_path):
            for number in range(DAMAGES):
                damaged = bytearray(content)
                for place in rng.integers(0, min(len(content), 4000), size=1 + number % 4).tolist():
                    damaged[place] = int(rng.integers(0, 256))
                file.write_bytes(damaged)
                _survives(reader, golden, file.parent, tmp_path / f"damage-{number}", f"{name}, damage {number}")
            file.write_bytes(content)


def _files(golden: Golden, tmp_path: Path) -> Iterator[tuple[str, bytes, Path]]:
    """(name, content, path) of every file in a copy of the recording."""
    copy = tmp_path / "copy" / golden.path.name
    shutil.copytree(golden.path, copy)
    for file in sorted(copy.iterdir()):
        yield file.name, file.read_bytes(), file


def _survives(reader: Reader, golden: Golden, recording: Path, output: Path, what: str) -> bool:
    """True if an error of ours, of one line, was raised and nothing was written."""
    try:
        written = golden.convert(reader, output, recording).output
    except PlacementError as error:
        _require("\n" not in str(error) and len(str(error)) > 20, f"{what}: {error}")
        _require(not output.exists() and not output.with_suffix(".npz").exists(), f"{what}: something was written")
        return True
    except Exception as error:
        raise AssertionError(f"{what} raised {type(error).__name__}: {error}") from error
    if written.is_dir():
        shutil.rmtree(written)
    else:
        written.unlink()
    return False


def _check_tokens(folder: Path, golden: Golden) -> None:
    trace = open_trace(folder)
    found: dict[str, list[dict[str, Any]]] = {request.id: [] for request in trace.requests}
    for block in trace.blocks():
        ids_TLK = np.stack([block.ids_TK(layer) for layer in range(trace.model.num_layers)], axis=1)
        columns = (block.request_T, block.column_T("position"), block.column_T("phase"), ids_TLK)
        told_T = block.column_T(TOKEN).tolist() if block.shard.has_tokens else [None] * len(block.request_T)
        for request, position, phase, ids, told in zip(*(one.tolist() for one in columns), told_T, strict=True):
            row = {"position": position, "phase": phase, "ids": ids} | ({} if told is None else {"token": told})
            found[trace.requests[request].id].append(row)
    for tokens in found.values():
        tokens.sort(key=lambda token: token["position"])
    _require(found == golden.requests, f"other tokens than were recorded: {found}")
    _require(all(shard.has_weights == golden.weights for shard in trace.shards), "router weights were lost or made up")


def _check_content(done: Conversion, golden: Golden) -> None:
    """Prompts that lack rows are kept apart, and a note says wherever ids are kept."""
    trace = open_trace(done.output)
    lists = stored_prompts(trace)
    found = {one.id: [] if lists is None else lists.list_of(q).tolist() for q, one in enumerate(trace.requests)}
    _require({name: ids for name, ids in found.items() if ids} == golden.prompts, f"other prompts: {found}")
    kept = lists is not None or any("token" in row for rows in golden.requests.values() for row in rows)
    _require(kept == any("content" in note for note in done.notes), f"ids of tokens and notes differ: {done.notes}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)
