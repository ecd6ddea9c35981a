"""Files that vanish, names that are no names, documents that say a thing twice: refused in words, never misread."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from placement.errors import LONGEST_MESSAGE, InputError, PlacementError, TraceError
from placement.support.array_files import read_arrays
from placement.support.atomic_files import plain_name
from placement.support.text_files import parse_json, parse_yaml
from placement.traces.trace import open_trace
from placement.workload.count import count


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(), (3,), (0, 2), (2, 3), (4, 1, 3)])
@pytest.mark.parametrize("dtype", ["u1", "<i8", ">i4", "<f2", "<U5", "S3", "?"])
def test_arrays_are_what_numpy_reads(dtype: str, shape: tuple[int, ...], order: Any) -> None:
    """Our bounded reader of .npy and .npz gives what np.load gives, columns first or not."""
    values = np.random.default_rng(0).integers(0, 100, shape)
    array = np.asarray(values.astype(dtype), order=order)
    plain, packed, stored = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(plain, array)
    np.savez_compressed(packed, a=array, b=values)
    np.savez(stored, a=array)
    for file, name in ((plain, ""), (packed, "a"), (stored, "a")):
        file.seek(0)
        found = read_arrays(file)[name]
        assert found.dtype == array.dtype
        assert np.array_equal(found, array)
    packed.seek(0)
    assert read_arrays(packed, "a")["b"].size == 0


@pytest.mark.parametrize(
    ("parse", "text", "told"),
    [
        (parse_json, '{"a": 1, "b": {"c": 1, "c": 2}}', "'c' twice"),
        (parse_json, "[" * 9999, "deeply"),
        (parse_yaml, "a: 1\na: 2\n", "twice"),
        (parse_yaml, "a: &x [1]\nb: *x\n", r"\*x"),
        (parse_yaml, "a: [", "flow"),
        (parse_yaml, "a: !!python/name:os.system x", "python"),
    ],
)
def test_documents_that_cannot_be_meant(parse: Any, text: str, told: str) -> None:
    """A key that is there twice would be half ignored; aliases make little text much."""
    with pytest.raises(ValueError, match=told) as refused:
        parse(text)
    assert "\n" not in str(refused.value)


def test_documents_that_are_sound() -> None:
    """What may be written is read as the libraries read it."""
    assert parse_json(b'{"a": [1, {"b": null}]}') == {"a": [1, {"b": None}]}
    assert parse_yaml("a: [1, 2.5]\nb: {c: text, d: true}\n") == {"a": [1, 2.5], "b": {"c": "text", "d": True}}


@pytest.mark.parametrize("name", ["", "..", ".", "a/b", "/a", "../a", "a\0", "x" * 300, 7, "\ud800"])
def test_names_that_lead_elsewhere(name: object) -> None:
    """A name from a file is joined to a folder only if it stays there."""
    with pytest.raises(ValueError):
        plain_name(name)


def test_a_long_message_keeps_its_beginning_and_its_end() -> None:
    """What is wrong is said first and how to mend it last; a file cannot make a message of megabytes."""
    text = str(PlacementError("wrong: " + "x" * 10**6 + "; mend it"))
    assert len(text) < LONGEST_MESSAGE + 10
    assert text.startswith("wrong: ") and text.endswith("; mend it")


@pytest.mark.parametrize("what", ["gone", "cut", "other"])
def test_a_shard_that_changes_after_it_was_opened(what: str, tmp_path: Path, write_trace: Any) -> None:
    """Headers are checked when a trace is opened; files may vanish or be cut off before they are read."""
    written = write_trace(tmp_path / "t", num_shards=2)
    trace = open_trace(tmp_path / "t")
    shard = written.shards[1]
    if what == "gone":
        shard.unlink()
    elif what == "cut":
        shard.write_bytes(shard.read_bytes()[:-5])
    else:
        shard.write_bytes(b"{}")
    with pytest.raises(TraceError, match="shard-00001"):
        count(trace)


@pytest.mark.parametrize(
    "command",
    [["traces", "convert", "NAME", "out"], ["traces", "info", "NAME"], ["solve", "NAME", "--nodes", "2"],
     ["solve", "NAME.npz", "--nodes", "2"], ["diff", "NAME", "NAME"], ["apply", "NAME", "--map", "NAME", "-o", "o"]],
    ids=lambda command: " ".join(command[:2]),
)  # fmt: skip
@pytest.mark.parametrize("name", ["long", "loop"])
def test_paths_that_the_system_refuses(name: str, command: list[str], tmp_path: Path, run_cli: Any) -> None:
    """Names that are too long and links in a circle end in one line and exit code 2."""
    path = tmp_path / ("x" * 300 if name == "long" else name)
    if name == "loop":
        path.symlink_to(path)
    result = run_cli(*(part.replace("NAME", str(path)) for part in command))
    assert result.code == 2, result.stderr
    assert len(result.stderr.splitlines()) == 1 and result.stderr.startswith("placement: error: "), result.stderr


def test_a_file_that_was_never_written_is_not_verified(tmp_path: Path) -> None:
    """A name that the folder has not is an error of ours, not one of a dictionary."""
    from checkpoints import write_checkpoint

    from placement.runtime.checkpoint import apply_map, verify_applied
    from placement.testing.exporters import small_placement

    write_checkpoint(tmp_path / "in", "gpt-oss")
    apply_map(tmp_path / "in", small_placement(layer_ids=(1, 2)), tmp_path / "out")
    verify_applied(tmp_path / "out", only="rank-00000.safetensors")
    with pytest.raises(InputError, match=r"rank-00099"):
        verify_applied(tmp_path / "out", only="rank-00099.safetensors")
