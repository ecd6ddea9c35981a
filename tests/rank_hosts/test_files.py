"""Every host gets the experts that it was given, through exports, imports and our own file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scattered_ranks import HOSTS, LISTS, cluster_with, experts_of_nodes, random_map, rows_of, solved_nodes

from placement import Cluster, load_placement
from placement.core.topology import Topology
from placement.documents.parts import ClusterDetail
from placement.documents.placement import PlacementFile
from placement.errors import MapError
from placement.exporters import EXPORTERS, get_exporter, get_importer
from placement.exporters.base import Importer
from placement.exporters.imports import imported

JSON_FORMS = ("native", "vllm-hygon", "sglang", "vllm", "vllm-plugin", "vllm-ascend", "tensorrt-llm")


@pytest.mark.parametrize("hosts", LISTS.values(), ids=LISTS)
@pytest.mark.parametrize("name", JSON_FORMS)
def test_every_host_gets_the_experts_that_it_was_given(name: str, hosts: tuple[int, ...]) -> None:
    """Read by a parser of the test's own, the ranks of each host hold what the map has on that node."""
    placement = random_map(cluster_with(hosts))
    rows_LP = rows_of(name, get_exporter(name).export(placement).content)
    assert experts_of_nodes(rows_LP, hosts) == solved_nodes(placement)
    mine = sorted(range(len(hosts)), key=lambda rank: (hosts[rank], rank))  # the engine's rank at each of our places
    for place, rank in enumerate(mine):
        ours = placement.phy2log_LP[:, 2 * place : 2 * place + 2]
        assert np.array_equal(rows_LP[:, 2 * rank : 2 * rank + 2], ours)


@pytest.mark.parametrize("name", [name for name in EXPORTERS if isinstance(get_exporter(name), Importer)])
def test_an_export_is_imported_as_the_same_map(name: str) -> None:
    """What an engine loads is read back to the same map in memory, if the import is told the hosts."""
    placement, exporter = random_map(cluster_with(HOSTS)), get_exporter(name)
    suffix = exporter.suffixes[0]
    back = imported(
        get_importer(name).read(exporter.export(placement).content, suffix),
        name="m",
        top_k=3,
        num_nodes=2,
        gpus_per_node=4,
        num_experts=12,
        rank_hosts=HOSTS,
    )
    assert back.rank_hosts == HOSTS
    shape = (2, 8, 2)
    assert np.array_equal(np.sort(back.phy2log_LP.reshape(shape)), np.sort(placement.phy2log_LP.reshape(shape)))


@settings(max_examples=60)
@given(data=st.data())
def test_our_own_file_keeps_map_and_cluster(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Any order of any hosts: file and memory say the same, and the file has the engine's numbers."""
    nodes, gpus, slots = (data.draw(st.integers(1, most)) for most in (4, 3, 3))
    hosts = tuple(data.draw(st.permutations([node for node in range(nodes) for _ in range(gpus)])))
    ranks = nodes * gpus
    topology = data.draw(st.sampled_from([Topology(), Topology(node_gbps=tuple(float(n + 1) for n in range(nodes)))]))
    cluster = Cluster(
        num_nodes=nodes,
        gpus_per_node=gpus,
        slots_per_gpu=slots,
        rank_hosts=hosts,
        gpu_speeds=tuple(float(rank + 1) for rank in range(ranks)),
        topology=topology,
    )
    placement = random_map(cluster, data.draw(st.integers(0, 99)), experts=max(slots, ranks * slots * 2 // 3))
    path = tmp_path_factory.getbasetemp() / "hosts.json"
    PlacementFile.of(placement, provenance={"cluster": ClusterDetail.of(cluster)}).write(path)
    loaded, file = load_placement(path)
    assert (loaded.shape, loaded.rank_hosts, loaded.model) == (placement.shape, placement.rank_hosts, placement.model)
    assert np.array_equal(loaded.phy2log_LP, placement.phy2log_LP)
    assert experts_of_nodes(np.array(json.loads(path.read_bytes())["physical_to_logical"]), hosts) == solved_nodes(
        loaded
    )
    assert file.described_cluster() == cluster
    assert (file.cluster.rank_hosts is None) == (list(hosts) == sorted(hosts))
    in_order = sorted(range(ranks), key=lambda rank: (hosts[rank], rank))
    mean = (ranks + 1) / 2
    np.testing.assert_allclose(cluster.speed_G(), [(rank + 1) / mean for rank in in_order])


def test_a_map_that_an_engine_breaks_on_is_told_by_the_engines_rank() -> None:
    """The rank that a message names is the one whose experts the user looks up."""
    placement = random_map(cluster_with(HOSTS, slots=3))
    rows = placement.engine_LP().copy()
    spare = next(slot for slot in range(24) if list(rows[0]).count(rows[0, slot]) > 1)
    rank = spare // 3
    rows[0, spare] = rows[0, 3 * rank + (spare % 3 + 1) % 3]
    twice = replace(placement, phy2log_LP=placement.from_engine(rows))
    with pytest.raises(MapError, match=rf"layer 0: GPU {rank} holds expert {rows[0, spare]} more than once"):
        get_exporter("vllm-ascend").export(twice)


def test_a_scattered_cluster_from_file_to_engine_and_back(
    tmp_path: Path, write_trace: Any, run_cli: Callable[..., Any]
) -> None:
    """solve, export, import, evaluate, diff and a change, all with one cluster file: the same map and figures."""
    folder = write_trace(tmp_path / "t", num_experts=32, top_k=4, tokens=400, requests=10).folder
    path, native, engine, back = (tmp_path / name for name in ("c.yaml", "p.json", "sglang.json", "b.json"))
    path.write_text("{num_nodes: 2, rank_hosts: [a, b, b, b, a, b, a, a], redundant_experts: 8}")
    how = ("--cluster", path, "--work-limit", 300, "--bound", "none", "--holdout", 0)
    assert run_cli("solve", folder, *how, "-o", native, "--report", tmp_path / "r.html").code == 0
    result = run_cli("export", native, "--to", "sglang", "-o", engine, "--num-hidden-layers", 2)
    assert result.code == 0 and "SGLang takes 4 consecutive ranks for a node" in result.stdout
    solved = load_placement(native)[0]
    assert experts_of_nodes(rows_of("sglang", engine.read_bytes()), HOSTS) == solved_nodes(solved)
    given = ("import", engine, "--from", "sglang", "--top-k", 4, "--name", "tiny", "--num-experts", 32, "-o", back)
    assert run_cli(*given, "--cluster", path).code == 0
    assert np.array_equal(load_placement(back)[0].phy2log_LP, solved.phy2log_LP)
    sends = []
    for file in (native, back):
        result = run_cli("evaluate", folder, "--map", file, "--cluster", path, "--json")
        sends.append(json.loads(result.stdout)["maps"][0]["summary"]["sends_per_token"])
    assert sends[0] == sends[1] > 0
    assert json.loads(run_cli("diff", native, back, "--json").stdout)["copies"] == []
    changed = tmp_path / "changed.json"
    result = run_cli("solve", folder, *how, "--from", back, "--max-moves", 3, "-o", changed, "--seed", 1)
    assert result.code == 0 and load_placement(changed)[0].rank_hosts == HOSTS
    for options in ((), ("--cluster", path, "--nodes", 2), ("--cluster", path, "--gpus-per-node", 4)):
        assert "say where the ranks are" in run_cli(*given, *options).stderr
