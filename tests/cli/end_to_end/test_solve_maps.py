"""The maps that `placement solve` writes under its options, beside those of other solvers."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from solved_trace import QUICK, flat, solve


class TestSolveMaps:
    def test_better_than_what_engines_do(self, trace: Path, tmp_path: Path, run_cli: Any) -> None:
        """Where only sends count, requests with tastes of their own send much less than with linear or eplb, and the
        busiest node gets less."""
        train = solve(run_cli, trace, tmp_path / "p.json", "--balance-weight", 0)["evaluation"]["train"]
        sends, busiest = (
            {name: one["node_sends_per_token"] * share(one) for name, one in train.items()}
            for share in (lambda _: 1.0, lambda one: one["busiest_in"]["mean"])
        )
        for (figures, most), baseline in product(((sends, 0.96), (busiest, 0.98)), ("linear", "eplb")):
            assert figures["auto"] < most * figures[baseline]

    @pytest.mark.parametrize("choice", ["min-nodes", "local-first", "uniform"])
    def test_redundant_experts(self, choice: str, trace: Path, tmp_path: Path, run_cli: Any) -> None:
        """4 redundant experts make 4 slots a GPU; every expert is there, none twice on a GPU; the choice is kept."""
        document = solve(
            run_cli, trace, tmp_path / "p.json", "--redundant-experts", 4, "--replica-choice", choice, "--holdout", 0
        )
        assert document["cluster"]["slots_per_gpu"] == 4
        assert document["evaluation"]["replica_choice"] == choice
        evaluation = document["evaluation"]
        best, served = evaluation["best_split"]["train"], evaluation["train"]["auto"]["rank_imbalance"]
        assert all(1 <= best[key] <= served[key] for key in ("mean", "max"))
        for row in document["physical_to_logical"]:
            assert len(row) == 16
            assert set(row) == set(range(12))
            assert all(len(set(row[p : p + 4])) == 4 for p in range(0, 16, 4))
        result = run_cli(
            "evaluate", trace, "--map", tmp_path / "p.json", "--replica-choice", choice, "--json", "--workers", 1
        )
        answer = json.loads(result.stdout)
        assert answer["replica_choice"] == choice
        wanted = document["evaluation"]["train"]["auto"]
        assert flat(answer["maps"][0]["summary"]) == pytest.approx(flat(wanted))

    @pytest.mark.parametrize("options", [(), ("--redundant-experts", 4), ("--balance-weight", 0.1)], ids=str)
    @pytest.mark.parametrize("seed", [0, 1])
    def test_auto_is_never_worse(
        self, seed: int, options: tuple[object, ...], trace: Path, tmp_path: Path, run_cli: Any
    ) -> None:
        """In every layer auto's training objective is at most linear's and eplb's, even with almost no work."""
        common = ("--seed", seed, "--holdout", 0, *options)
        objective = {}
        for solver in ("auto", "linear", "eplb"):
            limit = ("--work-limit", 1) if solver == "auto" else ()
            document = solve(run_cli, trace, tmp_path / f"{solver}.json", "--solver", solver, *common, *limit)
            objective[solver] = np.array([layer["objective"] for layer in document["layers"]])
            for layer in document["layers"]:
                if layer["bound"] is not None:
                    assert layer["bound"] <= layer["objective"] + 1e-9
        assert (objective["auto"] <= objective["linear"] + 1e-9).all()
        assert (objective["auto"] <= objective["eplb"] + 1e-9).all()

    def test_baselines_are_the_solvers(self, trace: Path, tmp_path: Path, run_cli: Any) -> None:
        """The rows linear and eplb of the comparison are what those solvers give when asked for."""
        auto = solve(run_cli, trace, tmp_path / "auto.json")["evaluation"]
        for name in ("linear", "eplb"):
            alone = solve(run_cli, trace, tmp_path / f"{name}.json", "--solver", name)
            assert alone["evaluation"]["result"] == name
            assert alone["evaluation"]["train"][name] == auto["train"][name]
            assert alone["evaluation"]["held_out"][name] == auto["held_out"][name]

    def test_linear_is_what_engines_do(self, trace: Path, tmp_path: Path, run_cli: Any) -> None:
        """`linear` is the map of an engine without a placement: expert e in slot e."""
        document = solve(run_cli, trace, tmp_path / "p.json", "--solver", "linear")
        assert document["physical_to_logical"] == [list(range(12))] * 3

    def test_max_imbalance(self, trace: Path, tmp_path: Path, run_cli: Any) -> None:
        """A cap holds in every layer, on the requests that were fitted."""
        free = solve(run_cli, trace, tmp_path / "free.json", "--balance-weight", 0, "--holdout", 0)
        worst = free["evaluation"]["train"]["auto"]["rank_imbalance"]["max"]
        cap = round(1 + (worst - 1) / 2, 3)
        options = ("--balance-weight", 0, "--holdout", 0, "--max-imbalance", cap)
        capped = solve(run_cli, trace, tmp_path / "capped.json", *options)
        assert capped["evaluation"]["train"]["auto"]["rank_imbalance"]["max"] <= cap + 1e-6 < worst

    def test_cluster_file(self, trace: Path, tmp_path: Path, run_cli: Any) -> None:
        """--cluster gives the shape and the bytes that the figures are made of."""
        (tmp_path / "c.yaml").write_text(
            "num_nodes: 2\ngpus_per_node: 2\nslots_per_gpu: 3\ndispatch_bytes: 30\ncombine_bytes: 10\n"
        )
        result = run_cli("solve", trace, "--cluster", tmp_path / "c.yaml", "-o", tmp_path / "p.json", *QUICK, "--json")
        document = json.loads(result.stdout)
        summary = document["evaluation"]["train"]["auto"]
        assert summary["bytes_per_token"]["node"] == pytest.approx(40 * summary["node_sends_per_token"], abs=0.06)
        assert document["provenance"]["cluster"]["dispatch_bytes"] == 30

    def test_evaluate_knows_the_cluster(self, trace: Path, tmp_path: Path, run_cli: Any) -> None:
        """A map made for a described cluster is measured on that cluster: the figures are those in its file."""
        (tmp_path / "c.yaml").write_text(
            "num_nodes: 2\ngpus_per_node: 2\nslots_per_gpu: 3\ndispatch_bytes: 30\ngpu_speeds: [2, 1, 1, 1]\n"
        )
        options = ("--cluster", tmp_path / "c.yaml", "--holdout", 0, "-o", tmp_path / "p.json", *QUICK, "--json")
        wanted = json.loads(run_cli("solve", trace, *options).stdout)["evaluation"]["train"]["auto"]
        answer = json.loads(run_cli("evaluate", trace, "--map", tmp_path / "p.json", "--json").stdout)
        assert flat(answer["maps"][0]["summary"]) == pytest.approx(flat(wanted))

    def test_a_tiny_time_limit(self, trace: Path, tmp_path: Path, run_cli: Any) -> None:
        """With no time at all there is still a map no worse than linear and eplb on the training objective."""
        objective = {}
        for solver in ("auto", "linear", "eplb"):
            limit = ("--time-limit", 1e-6) if solver == "auto" else ()
            document = solve(run_cli, trace, tmp_path / "p.json", "--solver", solver, *limit)
            objective[solver] = np.array([layer["objective"] for layer in document["layers"]])
        assert (objective["auto"] <= objective["linear"] + 1e-9).all()
        assert (objective["auto"] <= objective["eplb"] + 1e-9).all()
