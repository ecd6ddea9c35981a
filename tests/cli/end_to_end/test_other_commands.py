"""`placement evaluate`, `export` and `traces` end to end on the map of a solve."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from solved_trace import LAYER_IDS, SUMMARY_KEYS, flat, solve

from placement import load_placement


class TestEvaluate:
    def test_json(self, solved: Any, trace: Path, run_cli: Any, tmp_path: Path) -> None:
        """{"maps": [{"file", "summary", "layers"}]} in the order given, with the keys of every summary."""
        folder, _ = solved
        solve(run_cli, trace, tmp_path / "linear.json", "--solver", "linear")
        paths = [folder / "placement.json", tmp_path / "linear.json"]
        result = run_cli("evaluate", trace, "--map", paths[0], "--map", paths[1], "--json")
        assert result.code == 0
        assert result.stderr == ""
        assert result.stdout.count("\n") == 1
        maps = json.loads(result.stdout)["maps"]
        assert [entry["file"] for entry in maps] == [str(path) for path in paths]
        for entry in maps:
            assert set(entry) == {"file", "summary", "layers"}
            assert set(entry["summary"]) == SUMMARY_KEYS
            assert len(entry["layers"]) == 3
            mean = np.mean([layer["node_sends_per_token"] for layer in entry["layers"]])
            assert entry["summary"]["node_sends_per_token"] == pytest.approx(mean, abs=1e-6)
        alone = run_cli("evaluate", trace, "--map", paths[1], "--json")
        assert json.loads(alone.stdout)["maps"] == maps[1:]
        assert maps[0]["summary"] != maps[1]["summary"]

    def test_text(self, solved: Any, trace: Path, run_cli: Any) -> None:
        """A row a map, with its sends."""
        path = solved[0] / "placement.json"
        result = run_cli("evaluate", trace, "--map", path)
        summary = json.loads(run_cli("evaluate", trace, "--map", path, "--json").stdout)["maps"][0]["summary"]
        shown = [float(word) for word in re.findall(r"(?<![\d.])\d+\.\d+(?![\d.])", result.stdout)]
        assert result.code == 0
        assert any(abs(value - summary["node_sends_per_token"]) < 0.001 for value in shown), result.stdout
        assert "600 tokens" in result.stdout

    def test_workers_change_nothing(self, solved: Any, trace: Path, run_cli: Any) -> None:
        outputs = {
            run_cli("evaluate", trace, "--map", solved[0] / "placement.json", "--json", "--workers", n).stdout
            for n in (1, 3)
        }
        assert len(outputs) == 1


class TestExport:
    def test_native(self, solved: Any, tmp_path: Path, run_cli: Any) -> None:
        """native is a placement file again: the same map, without what was measured."""
        source = solved[0] / "placement.json"
        assert run_cli("export", source, "--to", "native", "-o", tmp_path / "n.json").code == 0
        exported, file = load_placement(tmp_path / "n.json")
        original, _ = load_placement(source)
        assert exported.model == original.model
        np.testing.assert_array_equal(exported.phy2log_LP, original.phy2log_LP)
        assert file.evaluation is None

    def test_sglang(self, solved: Any, tmp_path: Path, run_cli: Any) -> None:
        """SGLang's row axis is the absolute layer: dense layers have rows, each a sound map, and no other key."""
        source = solved[0] / "placement.json"
        result = run_cli("export", source, "--to", "sglang", "-o", tmp_path / "s.json")
        assert result.code == 0
        assert str(tmp_path / "s.json") in result.stdout.replace("\n", "")
        document = json.loads((tmp_path / "s.json").read_bytes())
        assert set(document) == {"physical_to_logical_map"}
        rows = document["physical_to_logical_map"]
        assert len(rows) == LAYER_IDS[-1] + 1
        original, _ = load_placement(source)
        for index, layer_id in enumerate(LAYER_IDS):
            assert rows[layer_id] == original.phy2log_LP[index].tolist()
        for dense in (0, 1, 3, 4):
            assert sorted(rows[dense]) == list(range(12))

    def test_sglang_with_redundant_experts(self, trace: Path, tmp_path: Path, run_cli: Any) -> None:
        """All P slots are in the file, and the hint names the number of redundant experts to start with."""
        document = solve(run_cli, trace, tmp_path / "p.json", "--redundant-experts", 4, "--solver", "eplb")
        result = run_cli("export", tmp_path / "p.json", "--to", "sglang", "-o", tmp_path / "s.json")
        rows = json.loads((tmp_path / "s.json").read_bytes())["physical_to_logical_map"]
        assert [rows[layer] for layer in LAYER_IDS] == document["physical_to_logical"]
        assert {len(row) for row in rows} == {16}
        assert "--ep-num-redundant-experts 4" in result.stdout
        assert "--ep-size 4" in result.stdout


class TestTraces:
    def test_split_merge_round_trip(self, trace: Path, tmp_path: Path, run_cli: Any) -> None:
        """The two parts of a split have all requests between them; merged they weigh as much as before."""
        result = run_cli("traces", "split", trace, "-o", tmp_path / "s", "--holdout", 0.25, "--json")
        assert result.code == 0, result.stderr
        sizes = {name: part["num_tokens"] for name, part in json.loads(result.stdout).items()}
        assert sizes == {"train": 450, "held-out": 150}
        merged = run_cli("traces", "merge", tmp_path / "s" / "train", tmp_path / "s" / "held-out", "-o", tmp_path / "m")
        assert merged.code == 0, merged.stderr
        again = json.loads(run_cli("traces", "info", tmp_path / "m", "--json").stdout)
        first = json.loads(run_cli("traces", "info", trace, "--json").stdout)
        assert again["num_tokens"] == first["num_tokens"] == 600

    def test_split_is_the_holdout_of_solve(self, solved: Any, trace: Path, tmp_path: Path, run_cli: Any) -> None:
        """`traces split` with the same share and seed gives the requests that `solve` held out."""
        assert run_cli("traces", "split", trace, "-o", tmp_path / "s", "--holdout", 0.2, "--seed", 0).code == 0
        path = solved[0] / "placement.json"
        for part, name in (("held_out", "held-out"), ("train", "train")):
            answer = json.loads(run_cli("evaluate", tmp_path / "s" / name, "--map", path, "--json").stdout)
            wanted = json.loads(path.read_bytes())["evaluation"][part]["auto"]
            assert flat(answer["maps"][0]["summary"]) == pytest.approx(flat(wanted))

    def test_info(self, trace: Path, run_cli: Any) -> None:
        """info names the model and its size, as text and as JSON."""
        text = run_cli("traces", "info", trace)
        assert text.code == 0
        assert "tiny moe" in text.stdout
        assert "600" in text.stdout
        assert json.loads(run_cli("traces", "info", trace, "--json").stdout)["num_tokens"] == 600

    def test_synth_then_solve(self, tmp_path: Path, run_cli: Any) -> None:
        """A synthetic trace is a trace: it can be solved at once."""
        shape = ("--layers", 2, "--experts", 16, "--top-k", 2, "--tokens", 800, "--requests", 8)
        assert run_cli("traces", "synth", "-o", tmp_path / "t", *shape).code == 0
        document = solve(run_cli, tmp_path / "t", tmp_path / "p.json")
        assert document["model"]["num_experts"] == 16
