"""`--for ENGINE` sets rule, transport and format, which the file remembers; what an engine cannot load is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from placement.cost.choices import REPLICA_CHOICES
from placement.cost.transports import TRANSPORTS
from placement.errors import OptionError
from placement.exporters import EXPORTERS, get_exporter
from placement.exporters.engines import ENGINES, exporter_for, rules_of
from placement.solvers.options import Options

QUICK = ("--work-limit", 200, "--bound", "none")


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_sets_rule_and_transport_and_each_goes_after_what_is_given(engine: str) -> None:
    choice, transport = rules_of(engine)
    options = Options(engine=engine)
    assert (options.replica_choice, options.transport) == (choice, transport)
    assert choice in REPLICA_CHOICES and transport in TRANSPORTS
    given = Options(engine=engine, replica_choice="min-nodes-balanced", transport="allgather")
    assert (given.replica_choice, given.transport) == ("min-nodes-balanced", "allgather")


def test_every_exporter_of_an_engine_with_a_rule_of_its_own_can_be_solved_for() -> None:
    """Only tensors for scripts, and a format of vLLM that no release reads, belong to no engine."""
    without = {name for name in EXPORTERS if name not in {exporter_for(engine).name for engine in ENGINES}}
    assert without == {"deepseek-eplb", "vllm"}
    assert get_exporter("vllm").replica_choices == exporter_for("vllm").replica_choices


def test_an_unknown_engine_is_refused_with_those_there_are() -> None:
    with pytest.raises(OptionError, match="the engine 'vlm' is unknown; choose one of vllm, "):
        Options(engine="vlm")


@pytest.mark.parametrize("engine", [engine for engine in ENGINES if engine != "lmdeploy"])
def test_the_file_remembers_the_engine_and_export_writes_its_format(
    engine: str, tmp_path: Path, run_cli: Any, write_trace: Any
) -> None:
    trace = write_trace(tmp_path / "t", tokens=200, num_experts=8, num_layers=2).folder
    map_file = tmp_path / "map.json"
    shape = ("--nodes", 2, "--gpus-per-node", 2, "--redundant-experts", 4)
    assert run_cli("solve", trace, *shape, *QUICK, "--for", engine, "-o", map_file).code == 0
    options = json.loads(map_file.read_text())["provenance"]["options"]
    assert (options["engine"], options["replica_choice"], options["transport"]) == (engine, *rules_of(engine))
    output = tmp_path / f"out{exporter_for(engine).suffixes[0]}"
    exported, told = (run_cli("export", map_file, *to, "-o", output) for to in ((), ("--to", ENGINES[engine])))
    assert exported.code == 0 and exported.stdout == told.stdout and "the map was solved for" not in told.stdout


def test_a_file_that_names_no_engine_needs_a_format(tmp_path: Path, run_cli: Any, write_trace: Any) -> None:
    trace = write_trace(tmp_path / "t", tokens=100, num_experts=8).folder
    assert run_cli("solve", trace, "--nodes", 2, *QUICK, "-o", tmp_path / "m.json").code == 0
    refused = run_cli("export", tmp_path / "m.json", "-o", tmp_path / "e.json")
    assert refused.code == 2 and "give --to: native, sglang" in refused.stderr
    assert not (tmp_path / "e.json").exists()


@pytest.mark.parametrize(
    ("engine", "shape", "told"),
    [
        ("lmdeploy", ("--nodes", 2, "--redundant-experts", 8), "redundant experts"),
        ("lmdeploy", ("--nodes", 1, "--gpus-per-node", 1), "1 GPU"),
        ("vllm-ascend", ("--nodes", 1, "--gpus-per-node", 1), "1 GPU"),
    ],
)
def test_a_cluster_of_which_the_engine_can_load_no_map_is_refused_before_the_search(
    engine: str, shape: tuple[Any, ...], told: str, tmp_path: Path, run_cli: Any, write_trace: Any
) -> None:
    trace = write_trace(tmp_path / "t", tokens=100, num_experts=8).folder
    refused = run_cli("solve", trace, *shape, "--for", engine, "-o", tmp_path / "m.json")
    assert refused.code == 2 and f"--for {engine}" in refused.stderr and told in refused.stderr
    assert "solving layers" not in refused.stderr and not (tmp_path / "m.json").exists()


@pytest.mark.parametrize("text", ["", ",", "1.2,", "1,2,3", "much", "1.2;1.1"])
def test_a_text_that_is_no_cap_is_refused(text: str, tmp_path: Path, run_cli: Any, write_trace: Any) -> None:
    trace = write_trace(tmp_path / "t", tokens=100, num_experts=8).folder
    refused = run_cli("solve", trace, "--nodes", 2, "--max-imbalance", text, "-o", tmp_path / "m.json")
    assert refused.code == 2 and "is no cap; give one on GPUs" in refused.stderr


def test_caps_of_gpus_and_of_nodes_stand_in_one_option(tmp_path: Path, run_cli: Any, write_trace: Any) -> None:
    trace = write_trace(tmp_path / "t", tokens=100, num_experts=8).folder
    for text, caps in (("3,2.5", (3, 2.5)), (",2.5", (None, 2.5)), ("3", (3, None))):
        assert run_cli("solve", trace, "--nodes", 2, "--max-imbalance", text, *QUICK, "-o", tmp_path / "m").code == 0
        options = json.loads((tmp_path / "m").read_text())["provenance"]["options"]
        assert (options["max_imbalance"], options["max_node_imbalance"]) == caps


def test_maps_are_measured_as_they_were_solved_for(tmp_path: Path, run_cli: Any, write_trace: Any) -> None:
    """By the rule that their files name; of two rules one has to be given, and a bare map counts by the usual one."""
    trace = write_trace(tmp_path / "t", tokens=200, num_experts=8).folder
    shape = ("--nodes", 2, "--gpus-per-node", 2, "--redundant-experts", 4, *QUICK)
    for engine in ("vllm", "sglang"):
        assert run_cli("solve", trace, *shape, "--for", engine, "-o", tmp_path / engine).code == 0
    assert run_cli("export", tmp_path / "vllm", "--to", "native", "-o", tmp_path / "bare.json").code == 0
    for maps, choice in (
        (["vllm"], "vllm-hash"),
        (["bare.json"], "min-nodes"),
        (["sglang", "bare.json"], "sglang-static"),
    ):
        words = [word for one in maps for word in ("--map", tmp_path / one)]
        default, told = (
            run_cli("evaluate", trace, *words, *rule, "--json") for rule in ((), ("--replica-choice", choice))
        )
        assert default.code == 0 and default.stdout == told.stdout
        assert json.loads(default.stdout)["replica_choice"] == choice
    both = ("evaluate", trace, "--map", tmp_path / "vllm", "--map", tmp_path / "sglang")
    refused = run_cli(*both)
    assert refused.code == 2 and "sglang-static, vllm-hash; give --replica-choice" in refused.stderr
    assert run_cli(*both, "--replica-choice", "uniform").code == 0
