"""`placement solve` end to end: the document that it prints and writes, and that both agree."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from solved_trace import LAYER_IDS, QUICK, SUMMARY_KEYS, flat, held_out_trace, solve

from placement import open_trace
from placement.traces.split import split_requests


class TestSolveDocument:
    def test_json_is_the_file(self, solved: Any) -> None:
        """--json prints one JSON document, the one written, and nothing else; nothing at all on stderr."""
        folder, result = solved
        assert result.stdout.count("\n") == 1
        assert json.loads(result.stdout) == json.loads((folder / "placement.json").read_bytes())
        assert result.stderr == ""
        assert {path.name for path in folder.iterdir()} == {"placement.json", "report.html"}

    def test_report_needs_no_network(self, solved: Any) -> None:
        """The report is one file that loads nothing."""
        text = (solved[0] / "report.html").read_text()
        assert text.lstrip().lower().startswith("<!doctype html")
        assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", text)
        assert not re.search(r"@import|url\(\s*['\"]?(?:https?:)?//", text)

    def test_document(self, solved: Any) -> None:
        """The parts and keys that the issue names."""
        document = json.loads(solved[1].stdout)
        assert document["schema"] == "expert-placement/1"
        assert document["model"] == {"name": "tiny moe", "layer_ids": LAYER_IDS, "num_experts": 12, "top_k": 3}
        assert document["cluster"] == {"num_nodes": 2, "gpus_per_node": 2, "slots_per_gpu": 3}
        assert [sorted(row) for row in document["physical_to_logical"]] == [list(range(12))] * 3
        evaluation = document["evaluation"]
        assert (evaluation["replica_choice"], evaluation["result"]) == ("min-nodes", "auto")
        for part in ("train", "held_out"):
            assert set(evaluation[part]) == {"linear", "eplb", "auto"}
            for summary in evaluation[part].values():
                assert set(summary) == SUMMARY_KEYS
                assert set(summary["rank_imbalance"]) == set(summary["node_imbalance"]) == {"mean", "max"}
                assert set(summary["bytes_per_token"]) == {"node", "rank", "assignment"}
        assert [layer["layer_id"] for layer in document["layers"]] == LAYER_IDS
        for layer in document["layers"]:
            assert {"solver", "status", "objective", "bound", "gap"} <= set(layer)
        assert {"version", "seed", "options", "input_hash"} <= set(document["provenance"])
        assert document["provenance"]["seed"] == 0

    def test_split(self, solved: Any) -> None:
        """A fifth of the 20 requests is held out, with all their tokens; the rest is what was fitted."""
        evaluation = json.loads(solved[1].stdout)["evaluation"]
        tokens = [evaluation[part]["auto"]["tokens"] for part in ("train", "held_out")]
        assert tokens == [480, 120]

    def test_written_map_is_the_one_measured(
        self, solved: Any, trace: Path, tmp_path: Path, run_cli: Any, write_trace: Any
    ) -> None:
        """evaluate on the held-out requests gives, for the file's map, the figures that are in the file."""
        folder, _ = solved
        held_out = held_out_trace(tmp_path / "held", trace, 0.2, 0, write_trace)
        result = run_cli("evaluate", held_out, "--map", folder / "placement.json", "--json")
        assert result.code == 0, result.stderr
        wanted = json.loads((folder / "placement.json").read_bytes())["evaluation"]["held_out"]["auto"]
        assert flat(json.loads(result.stdout)["maps"][0]["summary"]) == pytest.approx(flat(wanted))

    def test_held_out_requests_are_not_seen(
        self, solved: Any, trace: Path, tmp_path: Path, run_cli: Any, write_trace: Any
    ) -> None:
        """Other tokens in the held-out requests change their figures and nothing else: not the map, not the fit."""
        whole = open_trace(trace)
        _, held_out = split_requests(whole, 0.2, 0)
        blocks = list(whole.blocks())
        ids = np.stack([np.concatenate([block.ids_TK(layer) for block in blocks]) for layer in range(len(LAYER_IDS))])
        request_T = np.concatenate([block.request_T for block in blocks])
        hidden = held_out.selected_Q[request_T]
        assert hidden.sum() == 120
        ids[:, hidden] = [0, 4, 8]
        write_trace(
            tmp_path / "other", ids_LTK=ids, request_T=request_T, requests=20, num_experts=12, layer_ids=LAYER_IDS
        )
        before = json.loads(solved[1].stdout)
        after = solve(run_cli, tmp_path / "other", tmp_path / "p.json")
        assert after["physical_to_logical"] == before["physical_to_logical"]
        assert after["layers"] == before["layers"]
        assert after["provenance"]["input_hash"] == before["provenance"]["input_hash"]
        assert after["evaluation"]["train"] == before["evaluation"]["train"]
        assert after["evaluation"]["held_out"] != before["evaluation"]["held_out"]

    def test_same_bytes_whatever_the_workers(self, trace: Path, tmp_path: Path, run_cli: Any) -> None:
        """Same input, seed and work limit: the same file byte for byte, with 1 and 3 workers, and again."""
        contents = set()
        for number, workers in enumerate((1, 3, 3)):
            output = tmp_path / f"{number}.json"
            solve(run_cli, trace, output, "--workers", workers)
            contents.add(output.read_bytes())
        assert len(contents) == 1

    def test_seed(self, trace: Path, tmp_path: Path, run_cli: Any) -> None:
        """Another seed holds out other requests and searches otherwise; the seed is in the file."""
        documents = [solve(run_cli, trace, tmp_path / f"{seed}.json", "--seed", seed) for seed in (0, 1)]
        assert [document["provenance"]["seed"] for document in documents] == [0, 1]
        assert documents[0]["physical_to_logical"] != documents[1]["physical_to_logical"]
        assert documents[0]["provenance"]["input_hash"] != documents[1]["provenance"]["input_hash"]
        assert documents[0]["evaluation"]["held_out"]["linear"] != documents[1]["evaluation"]["held_out"]["linear"]

    def test_holdout_of_nothing(self, trace: Path, tmp_path: Path, run_cli: Any) -> None:
        """--holdout 0 fits all requests and has no held-out figures; text output works too."""
        document = solve(run_cli, trace, tmp_path / "p.json", "--holdout", 0)
        assert document["evaluation"]["held_out"] is None
        assert document["evaluation"]["train"]["auto"]["tokens"] == 600

    def test_several_traces(self, trace: Path, tmp_path: Path, run_cli: Any, write_trace: Any) -> None:
        """Several folders, a glob of them and the folder that holds them are the same input."""
        for number in range(2):
            write_trace(
                tmp_path / "many" / f"t{number}",
                num_experts=12,
                seed=number,
                request_ids=[f"{number}-{q}" for q in range(6)],
            )
        folders = [tmp_path / "many" / "t0", tmp_path / "many" / "t1"]
        documents = []
        for number, given in enumerate((folders, [tmp_path / "many" / "t*"], [tmp_path / "many"])):
            output = tmp_path / f"{number}.json"
            result = run_cli("solve", *given, "--nodes", 2, "--gpus-per-node", 2, "-o", output, *QUICK, "--holdout", 0)
            assert result.code == 0, result.stderr
            documents.append(output.read_bytes())
        assert documents[0] == documents[1] == documents[2]
        assert json.loads(documents[0])["evaluation"]["train"]["auto"]["tokens"] == 120
