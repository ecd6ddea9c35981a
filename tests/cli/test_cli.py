"""The commands end to end on small traces: what they print, what they write, and that both agree."""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from placement import load_placement, open_trace
from placement.traces.split import split_requests

SUMMARY_KEYS = {
    "tokens",
    "sends_per_token",
    "node_sends_per_token",
    "rank_sends_per_token",
    "remote_assignments_per_token",
    "rank_imbalance",
    "node_imbalance",
    "busiest_in",
    "busiest_out",
    "busiest_card",
    "bytes_per_token",
    "step_time_us",
}
LAYER_IDS = [2, 5, 6]
QUICK = ("--work-limit", 3000)


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory, write_trace: Any) -> Path:
    """Three MoE layers of 12 experts, top-3, with dense layers before and between; requests have tastes."""
    folder = tmp_path_factory.mktemp("traces") / "tiny"
    write_trace(
        folder,
        layer_ids=LAYER_IDS,
        num_layers=3,
        num_experts=12,
        top_k=3,
        tokens=600,
        requests=20,
        num_shards=3,
        spread=1.5,
        seed=4,
        name="tiny moe",
    )
    return folder


@pytest.fixture(scope="module")
def solved(tmp_path_factory: pytest.TempPathFactory, trace: Path, run_cli: Any) -> Any:
    """A folder with placement.json and report.html of one solve with --json, and the document that it printed."""
    folder = tmp_path_factory.mktemp("solved")
    result = run_cli(
        *("solve", trace, "-o", folder / "placement.json", "--report", folder / "report.html"),
        *("--nodes", 2, "--gpus-per-node", 2, *QUICK, "--json"),
    )
    assert result.code == 0, result.stderr
    return folder, result


def flat(summary: dict[str, Any]) -> dict[str, float]:
    """A summary without nesting, for comparison to the last digit that is written or nearly so."""
    rows = {}
    for key, value in summary.items():
        parts = {f"{key}.{part}": v for part, v in value.items()} if isinstance(value, dict) else {key: value}
        rows |= parts
    return rows


def solve(run_cli: Any, trace: Path, output: Path, *options: object) -> dict[str, Any]:
    """A solve on 2 nodes of 2 GPUs; the document that it wrote."""
    result = run_cli("solve", trace, "-o", output, "--nodes", 2, "--gpus-per-node", 2, *QUICK, *options)
    assert result.code == 0, result.stderr
    return json.loads(output.read_bytes())


def held_out_trace(folder: Path, trace: Path, share: float, seed: int, write_trace: Any) -> Path:
    """A trace on disk of the requests that `solve` holds out."""
    _, held_out = split_requests(open_trace(trace), share, seed)
    blocks = list(held_out.blocks())
    ids = [np.concatenate([block.ids_TK(layer) for block in blocks]) for layer in range(len(LAYER_IDS))]
    write_trace(folder, ids_LTK=np.stack(ids), num_experts=12, layer_ids=LAYER_IDS, requests=1)
    return folder


class TestSolve:
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

    def test_text_output(self, trace: Path, tmp_path: Path, run_cli: Any) -> None:
        """The table compares linear, eplb and the result; progress is on stderr only, as plain lines."""
        result = run_cli("solve", trace, "--nodes", 2, "--gpus-per-node", 2, "-o", tmp_path / "p.json", *QUICK)
        assert result.code == 0
        for word in ("linear", "eplb", "auto", "held-out", "sends", "wrote"):
            assert word in result.stdout
        assert "\x1b" not in result.stdout + result.stderr
        assert "solving layers: 3/3" in result.stderr.splitlines()
        assert "counting tokens" not in result.stdout
        assert "solving layers" not in result.stdout
        assert all(re.fullmatch(r"[a-z ]+: \d+/\d+", line) for line in result.stderr.splitlines())
        # one solve of three layers is not drowned in lines
        assert len(result.stderr.splitlines()) < 20

    def test_evaluate_knows_the_cluster(self, trace: Path, tmp_path: Path, run_cli: Any) -> None:
        """A map made for a described cluster is measured on that cluster: the figures are those in its file."""
        (tmp_path / "c.yaml").write_text(
            "num_nodes: 2\ngpus_per_node: 2\nslots_per_gpu: 3\ndispatch_bytes: 30\ngpu_speeds: [2, 1, 1, 1]\n"
        )
        options = ("--cluster", tmp_path / "c.yaml", "--holdout", 0, "-o", tmp_path / "p.json", *QUICK, "--json")
        wanted = json.loads(run_cli("solve", trace, *options).stdout)["evaluation"]["train"]["auto"]
        answer = json.loads(run_cli("evaluate", trace, "--map", tmp_path / "p.json", "--json").stdout)
        assert flat(answer["maps"][0]["summary"]) == pytest.approx(flat(wanted))

    @pytest.mark.parametrize(
        "name", ["run[v1].json", "[/].json", "[red]/p.json", "l" * 120 + ".json", "two words.json"]
    )
    def test_paths_are_printed_as_they_are(self, name: str, trace: Path, tmp_path: Path, run_cli: Any) -> None:
        """Names that look like markup and long ones are shown whole, so that they can be copied."""
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        result = run_cli(
            *("solve", trace, "--nodes", 2, "--gpus-per-node", 2, "--solver", "linear", "-o", path),
            *("--report", f"{path}.html"),
        )
        assert result.code == 0, result.stderr
        assert str(path) in result.stdout
        assert f"{path}.html" in result.stdout
        evaluated = run_cli("evaluate", trace, "--map", path)
        assert evaluated.code == 0, evaluated.stderr
        exported = run_cli("export", path, "--to", "sglang", "-o", f"{path}.sglang.json")
        assert exported.code == 0, exported.stderr
        assert f"{path}.sglang.json" in exported.stdout

    def test_names_are_text(self, tmp_path: Path, run_cli: Any, write_trace: Any) -> None:
        """A model's name is shown, not interpreted: markup stays text and terminal codes do not get through."""
        name = "[/red] [bold]x[/bold] \x1b[2J"
        write_trace(tmp_path / "t", name=name)
        output = tmp_path / "p.json"
        for arguments in (
            ("solve", tmp_path / "t", "--nodes", 2, "--work-limit", 50, "-o", output, "--report", tmp_path / "r.html"),
            ("traces", "info", tmp_path / "t"),
        ):
            result = run_cli(*arguments)
            assert result.code == 0, result.stderr
            assert "[/red] [bold]x[/bold]" in result.stdout
            assert "\x1b" not in result.stdout
        assert json.loads(output.read_bytes())["model"]["name"] == name

    def test_a_tiny_time_limit(self, trace: Path, tmp_path: Path, run_cli: Any) -> None:
        """With no time at all there is still a map no worse than linear and eplb on the training objective."""
        objective = {}
        for solver in ("auto", "linear", "eplb"):
            limit = ("--time-limit", 1e-6) if solver == "auto" else ()
            document = solve(run_cli, trace, tmp_path / "p.json", "--solver", solver, *limit)
            objective[solver] = np.array([layer["objective"] for layer in document["layers"]])
        assert (objective["auto"] <= objective["linear"] + 1e-9).all()
        assert (objective["auto"] <= objective["eplb"] + 1e-9).all()

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


@pytest.mark.parametrize(
    "command",
    [
        (),
        ("solve",),
        ("evaluate",),
        ("export",),
        ("import",),
        ("traces",),
        ("traces", "info"),
        ("traces", "split"),
        ("traces", "merge"),
        ("traces", "synth"),
    ],
    ids=" ".join,
)
def test_help(command: tuple[str, ...], run_cli: Any) -> None:
    """Every command explains itself and its options."""
    result = run_cli(*command, "--help")
    assert result.code == 0
    assert "Usage: placement" in result.stdout
    assert "--help" in result.stdout
    assert result.stderr == ""


def test_version(run_cli: Any) -> None:
    import placement

    assert run_cli("--version").stdout == placement.__version__ + "\n"


NO_TORCH = """
import sys

asked = []


class Watch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            asked.append(name)
        return None


sys.meta_path.insert(0, Watch())
import placement
from placement.cli import main

trace, folder = sys.argv[1:]
for arguments in (
    ["solve", trace, "--nodes", "2", "--work-limit", "500", "-o", folder + "/p.json", "--report", folder + "/r.html"],
    ["evaluate", trace, "--map", folder + "/p.json"],
    ["export", folder + "/p.json", "--to", "native", "-o", folder + "/n.json"],
    ["export", folder + "/p.json", "--to", "sglang", "-o", folder + "/s.json"],
    ["traces", "info", trace],
):
    try:
        main(arguments)
    except SystemExit as stop:
        assert not stop.code, (arguments, stop.code)
assert not asked, asked
assert not any(name.partition(".")[0] == "torch" for name in sys.modules)
print("no torch")
"""


def test_no_torch(trace: Path, tmp_path: Path, run_python: Any) -> None:
    """Neither the import nor solve, evaluate, export and info so much as look for torch, installed or not."""
    result = run_python(NO_TORCH, trace, tmp_path)
    assert result.code == 0, result.stderr
    assert result.stdout.endswith("no torch\n")


LIGHT = """
import sys
import placement

print(sorted({"matplotlib", "ortools", "networkx", "jinja2", "typer"} & set(sys.modules)))
"""


def test_import_is_light(run_python: Any) -> None:
    """`import placement` loads no plotting, no solver suite and no command line."""
    result = run_python(LIGHT)
    assert result.code == 0, result.stderr
    assert result.stdout == "[]\n"


def test_in_a_process_of_its_own(trace: Path, tmp_path: Path, run_process: Any) -> None:
    """The console script's entry point: JSON on stdout, exit code 0, a file where asked."""
    result = run_process(
        "solve", trace, "--nodes", 2, "--gpus-per-node", 2, "-o", "p.json", "--json", *QUICK, cwd=tmp_path
    )
    assert result.code == 0, result.stderr
    assert json.loads(result.stdout) == json.loads((tmp_path / "p.json").read_bytes())
    assert result.stderr == ""


def test_a_reader_that_goes_away(trace: Path, tmp_path: Path, run_python: Any) -> None:
    """`placement ... | head -1` ends without a traceback."""
    script = (
        "import subprocess, sys; "
        "p = subprocess.Popen([sys.executable, '-c', 'from placement.cli import main; main()', *sys.argv[1:]], "
        "stdout=subprocess.PIPE, stderr=subprocess.PIPE); p.stdout.close(); "
        "sys.stderr.write(p.stderr.read().decode()); sys.exit(p.wait())"
    )
    result = run_python(
        script, "solve", trace, "--nodes", 2, "--gpus-per-node", 2, "-o", tmp_path / "p.json", "--json", *QUICK
    )
    assert "Traceback" not in result.stderr
    assert "BrokenPipe" not in result.stderr
    assert result.code == 0
