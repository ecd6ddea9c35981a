"""`placement export` and `placement import`: what comes back, what is told, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_files import READABLE

from placement.documents.placement import load_placement
from placement.exporters import get_exporter
from placement.testing.exporters import by_rank, small_placement


@pytest.mark.parametrize("name", READABLE)
def test_export_and_import_on_the_command_line(name: str, tmp_path: Path, run_cli: Callable[..., Any]) -> None:
    """The same map comes back; flags are beside the file and on the screen, with the file's path."""
    native, back = tmp_path / "p.json", tmp_path / "back.json"
    native.write_bytes(get_exporter("native").export(small_placement(layer_ids=(1, 3))).content)
    for suffix in get_exporter(name).suffixes:
        file = tmp_path / f"map{suffix}"
        result = run_cli("export", native, "--to", name, "-o", file, "--num-hidden-layers", 4)
        assert result.code == 0, result.stderr
        hints = Path(f"{file}.flags.txt").read_text().splitlines()
        assert hints and all(hint in result.stdout for hint in hints)
        assert str(file) in hints[0] or name in ("vllm", "vllm-plugin", "deepseek-eplb")
        result = run_cli(
            *("import", file, "--from", name, "--nodes", 2, "--gpus-per-node", 2, "--top-k", 2),
            *("--moe-layers", "1,3", "--name", "small", "-o", back),
        )
        assert result.code == 0, result.stderr
        assert "2 MoE layers (1, 3) of 6 experts, 2 redundant, on 2 nodes x 2 GPUs" in result.stdout
        loaded, _ = load_placement(back)
        assert np.array_equal(by_rank(loaded), by_rank(small_placement()))
        assert loaded.model.name == "small"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("export", "P", "--to", "sglang", "-o", "x.bin"), "--to sglang writes .json or .pt"),
        (("export", "P", "--to", "sglang", "-o", "x.json", "--load", "P"), "--load is not for --to sglang"),
        (("export", "P", "--to", "lmdeploy", "-o", "x.json"), "give these with --load TRACES"),
        (("export", "P", "--to", "tensorrt-llm", "-o", "x.yaml", "--mtp-layers", "1"), "give --num-hidden-layers"),
        (("export", "P", "--to", "sglang", "-o", "x.json", "--moe-layers", "3-9"), "names 7 layers; the map has 2"),
        (("import", "P", "--from", "native", "--nodes", "2", "--top-k", "2"), "choose one of sglang, vllm"),
        (("import", "P", "--from", "sglang", "--nodes", "2", "--top-k", "2"), "physical_to_logical_map is missing"),
        (("import", "x.yaml", "--from", "sglang", "--nodes", "2", "--top-k", "2"), "x.yaml ends otherwise"),
        (("import", "no.json", "--from", "sglang", "--nodes", "2", "--top-k", "2"), "cannot read no.json"),
    ],
)
def test_what_the_command_line_refuses(
    words: tuple[str, ...], told: str, tmp_path: Path, run_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 2, one line, and no file."""
    monkeypatch.chdir(tmp_path)
    Path("p.json").write_bytes(get_exporter("native").export(small_placement()).content)
    result = run_cli(*("p.json" if word == "P" else word for word in words))
    assert result.code == 2
    assert told in " ".join(result.stderr.split())
    assert [path.name for path in tmp_path.iterdir()] == ["p.json"]


def test_a_map_for_another_choice_of_copies_is_pointed_out(
    tmp_path: Path, run_cli: Callable[..., Any], write_trace: Any
) -> None:
    """Sends and balance that were promised hold for one way to choose copies; without copies there is no choice."""
    trace = write_trace(tmp_path / "t", num_layers=2, num_experts=8).folder
    for extra, choice, told in ((8, "sglang-static", False), (8, "min-nodes", True), (0, "min-nodes", False)):
        solved = ("--nodes", 2, "--gpus-per-node", 2, "--redundant-experts", extra, "--solver", "linear")
        result = run_cli("solve", trace, *solved, "--replica-choice", choice, "-o", tmp_path / "p.json")
        assert result.code == 0, result.stderr
        result = run_cli("export", tmp_path / "p.json", "--to", "sglang", "-o", tmp_path / "s.json")
        assert ("solved for --replica-choice min-nodes" in result.stdout) is told
        assert ("min-nodes" in (tmp_path / "s.json.flags.txt").read_text()) is told


def test_loads_come_from_a_trace_or_counts(tmp_path: Path, run_cli: Callable[..., Any], write_trace: Any) -> None:
    """LMDeploy is given what was counted, whichever way; of another model nothing is taken."""
    trace = write_trace(tmp_path / "t", num_layers=2, num_experts=6, top_k=2, layer_ids=[1, 3])
    native, file = tmp_path / "p.json", tmp_path / "s.json"
    native.write_bytes(get_exporter("native").export(small_placement(layer_ids=(1, 3))).content)
    counted_LE = np.stack([np.bincount(ids.ravel(), minlength=6) for ids in trace.ids_LTK])
    np.savez(tmp_path / "counts.npz", counts=counted_LE, layer_ids=np.array([1, 3]))
    for load in (tmp_path / "t", tmp_path / "counts.npz"):
        result = run_cli("export", native, "--to", "lmdeploy", "-o", file, "--load", load)
        assert result.code == 0, result.stderr
        rows = np.array(json.loads(file.read_text()))
        assert np.array_equal(rows[[1, 3]], counted_LE)
    write_trace(tmp_path / "other", num_layers=2, num_experts=8)
    result = run_cli("export", native, "--to", "lmdeploy", "-o", file, "--load", tmp_path / "other")
    assert result.code == 2
    assert "of another model" in result.stderr
