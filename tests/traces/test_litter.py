"""Files that travel with folders are left out and told, wherever a folder is read; nothing that holds traffic is."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from placement.readers.convert import convert
from placement.traces.storage.litter import is_litter, left_out
from placement.traces.trace import open_trace

GOLDEN = Path(__file__).parents[1] / "golden" / "readers" / "vllm"
LITTER = ("README.md", "LICENSE", ".DS_Store", "._responses.jsonl", "Thumbs.db", "desktop.ini")


@pytest.mark.parametrize(
    "name",
    [
        *LITTER,
        *("readme", "Readme.txt", "README-first.rst", "LICENCE.txt", "LICENSE-APACHE", "NOTICE", "COPYING.LESSER"),
        *("run/README.md", "./README.md", "./.hidden", ".git/config", "a/.cache/trace.json", ".trace.json.12ab.part"),
        *("__MACOSX/._trace.json", "run/__MACOSX/trace.json", "PaxHeader/trace.json", "PaxHeaders.17/trace.json"),
    ],
)
def test_litter(name: str) -> None:
    assert is_litter(name)


@pytest.mark.parametrize(
    "name",
    [
        *("trace.json", "./trace.json", "run/shard-00000.safetensors", "", ".", "notes.txt", "plot.png"),
        *("license_plates.jsonl", "notice.parquet", "readmes/trace.json", "README/trace.json", "readmes.jsonl"),
        *("../README.md", "/README.md", "a/../.hidden", "..", "a//README.md"),
    ],
)
def test_what_is_no_litter(name: str) -> None:
    """What may hold traffic is read, or refused in words; paths that lead elsewhere are refused, not passed over."""
    assert not is_litter(name)


def test_the_note_is_one_short_line() -> None:
    """It says how many and which; names are those of strangers."""
    assert left_out([]) == []
    assert left_out(["README.md"]) == ["left out 1 file that holds no traffic: README.md"]
    (note,) = left_out([f".{'x' * 500}\n\x1b[31m{number}" for number in range(20)])
    assert note.startswith("left out 20 files that hold no traffic: ") and note.endswith(" and 12 more")
    assert note.isprintable() and len(note) < 1000


@pytest.mark.parametrize("case", ["responses", "arrays"])
def test_a_recording_with_litter_is_read_as_without(tmp_path: Path, case: str) -> None:
    """macOS leaves a binary file beside each on shared disks, whose name ends as the recording's; the note says so."""
    shutil.copytree(GOLDEN / case, tmp_path / "in")
    for name in LITTER:
        (tmp_path / "in" / name).write_bytes(b"\x00\x05\x16\x07")
    for path in list((tmp_path / "in").glob("[!.]*.*")):
        (path.parent / f"._{path.name}").write_bytes(b"\x00\x05\x16\x07")
    clean = convert(GOLDEN / case, tmp_path / "clean")
    done = convert(tmp_path / "in", tmp_path / "out")
    assert (done.num_tokens, done.num_requests, done.reader) == (clean.num_tokens, clean.num_requests, clean.reader)
    (note,) = set(done.notes) - set(clean.notes)
    assert note.startswith("left out ") and "README.md" in note


def test_hidden_folders_are_no_traces(tmp_path: Path, write_trace: Any) -> None:
    """Of a folder of traces: one that is just being written lies in a hidden folder beside them."""
    write_trace(tmp_path / "all" / "one")
    write_trace(tmp_path / "all" / ".two.12ab.part")
    write_trace(tmp_path / "all" / "notice", seed=1)
    assert len(open_trace(tmp_path / "all").shards) == 2
