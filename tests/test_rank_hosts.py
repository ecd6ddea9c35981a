"""Ranks that an engine does not number node by node: whatever goes out or comes in by rank has the engine's numbers.

Files are read here by functions of the tests' own, which know lists of hosts and nothing of the library's order.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from placement import Cluster, Model, Options, Placement, load_placement, solve
from placement.core.migration import migration_plan
from placement.core.topology import Level, Topology
from placement.cost.evaluation import evaluate
from placement.documents.cluster_yaml import cluster_from_yaml
from placement.documents.parts import ClusterDetail
from placement.documents.placement import PlacementFile
from placement.errors import ClusterError, MapError
from placement.exporters import EXPORTERS, get_exporter, get_importer
from placement.exporters.base import Importer
from placement.exporters.imports import imported
from placement.report.solution.expert_maps import layer_map
from placement.runtime.layer_map import LayerMap
from placement.traces.trace import open_trace

Array = npt.NDArray[Any]
HOSTS = (0, 1, 1, 1, 0, 1, 0, 0)
LISTS: dict[str, tuple[int, ...]] = {
    "of two hosts": HOSTS,
    "dealt in turn": (0, 1, 2, 3, 0, 1, 2, 3),
    "the second host first": (1, 1, 1, 1, 0, 0, 0, 0),
    "one rank a host": (3, 1, 7, 0, 2, 6, 5, 4),
}


def cluster_with(hosts: tuple[int, ...], slots: int = 2, **more: Any) -> Cluster:
    nodes = max(hosts) + 1
    return Cluster(num_nodes=nodes, gpus_per_node=len(hosts) // nodes, slots_per_gpu=slots, rank_hosts=hosts, **more)


def random_map(cluster: Cluster, seed: int = 0, *, experts: int = 12, layers: int = 2) -> Placement:
    """A sound map, with copies where there are slots for them."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(layers):
        held: list[list[int]] = [[] for _ in range(cluster.num_ranks)]
        for expert in [*rng.permutation(experts), *rng.permutation(experts), *rng.permutation(experts)]:
            free = [one for one in held if len(one) < cluster.slots_per_gpu and expert not in one]
            if free:
                min(free, key=len).append(int(expert))
        rows.append(np.concatenate(held))
    model = Model(
        name="m", layer_ids=tuple(range(layers)), num_experts=experts, top_k=min(3, experts), num_hidden_layers=layers
    )
    return Placement(model=model, **cluster.sizes(), phy2log_LP=np.stack(rows))


def experts_of_nodes(rows_LP: Array, hosts: tuple[int, ...]) -> list[list[list[int]]]:
    """By layer and node, all experts that ranks of the node hold; rows as an engine has them, rank after rank."""
    slots = rows_LP.shape[1] // len(hosts)
    return [
        [
            sorted(int(row[rank * slots + s]) for rank, host in enumerate(hosts) if host == node for s in range(slots))
            for node in range(max(hosts) + 1)
        ]
        for row in rows_LP
    ]


def solved_nodes(placement: Placement) -> list[list[list[int]]]:
    """The same of a map in memory, where nodes follow each other."""
    held_LNS = placement.phy2log_LP.reshape(placement.model.num_layers, placement.num_nodes, -1)
    return [[sorted(held) for held in held_NS.tolist()] for held_NS in held_LNS]


def rows_of(name: str, content: bytes) -> Array:
    """Rows [L, P] of an engine's file, in the order of its ranks."""
    if name == "tensorrt-llm":
        rows = yaml.safe_load(content)["initial_global_assignments"]
        return np.array([rows[layer] for layer in sorted(rows)])
    document = json.loads(content)
    if name == "vllm-ascend":
        layers = document["layer_list"]
        return np.array([[e for one in layer["device_list"] for e in one["device_expert"]] for layer in layers])
    if name == "vllm-hygon":
        return np.array(document["model_maps"]["m"]["physical_to_logical_map"])
    if name in ("native", "vllm-plugin"):
        return np.array(document["physical_to_logical"])
    return np.array(document["physical_to_logical_map"] if name == "sglang" else document)


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


@pytest.mark.parametrize("hosts", LISTS.values(), ids=LISTS)
def test_sends_count_the_hosts_of_the_engine(hosts: tuple[int, ...], tmp_path: Path, write_trace: Any) -> None:
    """Without copies, the hosts that serve a token follow from the engine's map and the list; homes are random."""
    written = write_trace(tmp_path / "t", num_experts=16, top_k=3, tokens=200)
    placement = random_map(cluster_with(hosts), experts=16)
    rows_LP, nodes = rows_of("native", get_exporter("native").export(placement).content), max(hosts) + 1
    (answer,) = evaluate(open_trace([written.folder]), [placement])
    for layer, row in enumerate(rows_LP):
        host_of = {int(expert): hosts[slot // 2] for slot, expert in enumerate(row)}
        visited = [len({host_of[int(e)] for e in experts}) for experts in written.ids_LTK[layer]]
        assert answer.node_sends_L[layer] == pytest.approx(np.mean(visited) * (nodes - 1) / nodes)


@pytest.mark.parametrize("solver", ["linear", "round-robin"])
def test_baselines_are_what_the_engine_does_by_itself(solver: str, tmp_path: Path, write_trace: Any) -> None:
    """An engine that is told nothing goes by its own numbers of ranks, wherever these lie."""
    trace = open_trace([write_trace(tmp_path / "t", num_experts=16).folder])
    options = Options(solver=solver, bound="none")
    told, plain = (
        solve(trace, replace(cluster_with(HOSTS), rank_hosts=hosts), options, holdout=0.0, workers=1).placement
        for hosts in (HOSTS, ())
    )
    assert np.array_equal(told.engine_LP(), plain.phy2log_LP)
    if solver == "linear":
        assert np.array_equal(told.engine_LP()[0], np.arange(16))


def test_prices_are_those_of_the_engines_ranks() -> None:
    """`rank_cost` is by the engine's numbers, as a benchmark of its ranks gives it; levels and nodes go by node."""
    rng = np.random.default_rng(0)
    cost_GG = rng.uniform(1, 3, (8, 8))
    together = np.array(HOSTS)[:, None] == np.array(HOSTS)
    cost_GG[together] = 0
    cluster = cluster_with(HOSTS, topology=Topology(rank_cost=tuple(map(tuple, cost_GG.tolist()))))
    ranks_N = [[rank for rank in range(8) if HOSTS[rank] == node] for node in range(2)]
    for home in range(2):
        flat = [rank for ranks in ranks_N for rank in ranks]
        wanted = [np.mean([cost_GG[a, b] for a in ranks_N[home]]) for b in flat]
        np.testing.assert_allclose(cluster.rank_cost_NG()[home], wanted)
        rails = np.mean([cost_GG[a, b] for a, b in zip(ranks_N[home], ranks_N[1 - home], strict=True)])
        assert cluster.node_cost_NN()[home, 1 - home] == pytest.approx(rails)
    racks = Topology(levels=(Level(name="rack", nodes=2, gbps=100.0),), node_gbps=(400.0, 400.0, 50.0, 400.0))
    dealt = cluster_with((0, 1, 2, 3, 0, 1, 2, 3), topology=racks)
    assert np.array_equal(dealt.node_cost_NN(), replace(dealt, rank_hosts=()).node_cost_NN())


def test_copies_to_make_are_named_by_the_engines_slots_and_ranks() -> None:
    """Whoever follows the plan on the engine's own map has the new map, and reads where the expert is."""
    cluster = cluster_with(HOSTS)
    old, new = random_map(cluster, 1), random_map(cluster, 2)
    now_LP = rows_of("native", get_exporter("native").export(old).content)
    before_LP, plan = now_LP.copy(), migration_plan(old, new, cluster)
    document = plan.document()
    assert document["columns"] == ["layer_id", "slot", "expert", "from_rank", "to_rank"]
    crossing = 0
    for layer, slot, expert, source, target in document["copies"]:
        assert expert in before_LP[layer, 2 * source : 2 * source + 2] and slot // 2 == target
        crossing += HOSTS[source] != HOSTS[target]
        now_LP[layer, slot] = expert
    assert np.array_equal(now_LP, rows_of("native", get_exporter("native").export(new).content))
    assert document["bytes_between_nodes"] == crossing * cluster.expert_bytes > 0


def test_shown_ranks_are_the_engines() -> None:
    """A table of a node lists the engine's ranks that lie there."""
    placement = random_map(cluster_with(HOSTS))
    shown = layer_map(placement, 0, np.ones(8), np.ones(16), 0.0, 1.0)
    assert [[row.rank for row in node] for node in shown.nodes] == [[0, 4, 6, 7], [1, 2, 3, 5]]
    rows_LP = placement.engine_LP()
    for row in (row for node in shown.nodes for row in node):
        assert [cell.expert for cell in row.cells] == sorted(rows_LP[0, 2 * row.rank : 2 * row.rank + 2].tolist())
    broken = placement.engine_LP().copy()
    broken[1, 9] = 99
    with pytest.raises(MapError, match="layer 1: slot 9 holds id 99"):
        replace(placement, phy2log_LP=placement.from_engine(broken))


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


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("[0, 1, 1, 1, 0, 1, 0, 0]", HOSTS),
        ("[a, b, b, b, a, b, a, a]", HOSTS),
        ("[node-7, node-3, node-3, node-3, node-7, node-3, node-7, node-7]", HOSTS),
        ("[1, 0, 0, 0, 1, 0, 1, 1]", tuple(1 - host for host in HOSTS)),
        ("[0, 0, 0, 0, 1, 1, 1, 1]", ()),
        ("[x, x, x, x, y, y, y, y]", ()),
        ("null", ()),
    ],
)
def test_cluster_files_name_hosts_by_number_or_name(text: str, hosts: tuple[int, ...], tmp_path: Path) -> None:
    """Names are numbered by their first ranks; a list that goes node by node says nothing new."""
    path = tmp_path / "c.yaml"
    path.write_text(f"{{num_nodes: 2, gpus_per_node: 4, rank_hosts: {text}}}")
    assert cluster_from_yaml(path, 16).rank_hosts == hosts
    if hosts:
        path.write_text(f"{{num_nodes: 2, rank_hosts: {text}}}")
        assert cluster_from_yaml(path, 16).gpus_per_node == 4


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("num_nodes: 2, gpus_per_node: 4, rank_hosts: [0, 1, 1, 1, 0, 1, 0]", r"\[3, 4\] ranks in turn"),
        ("num_nodes: 2, gpus_per_node: 4, rank_hosts: [0, 1, 1, 1, 1, 1, 0, 0]", r"\[3, 5\] ranks in turn"),
        ("num_nodes: 2, gpus_per_node: 4, rank_hosts: [0, 1, 1, 1, 0, 2, 0, 0]", "names node 2; each of the 2 nodes"),
        ("num_nodes: 2, gpus_per_node: 4, rank_hosts: [0, -1, 1, 1, 0, 1, 0, 0]", "names node -1"),
        ("num_nodes: 2, rank_hosts: [a, b, c, a]", "names node 2"),
        ("num_nodes: 2, rank_hosts: [0, 1.5]", r"rank_hosts"),
        ("num_nodes: 2, rank_hosts: 0", r"rank_hosts"),
        ("num_nodes: 2, gpus_per_node: [8, 4]", r"gpus_per_node: \[8, 4\] are several numbers; nodes of unequal size"),
    ],
)
def test_lists_that_cannot_be(text: str, told: str, tmp_path: Path) -> None:
    """One line names what is wrong with the list."""
    path = tmp_path / "c.yaml"
    path.write_text(f"{{{text}}}")
    with pytest.raises(ClusterError, match=told) as refused:
        cluster_from_yaml(path, 16)
    assert "\n" not in str(refused.value)


def test_maps_of_other_numbers_of_ranks_are_not_mixed(tmp_path: Path, write_trace: Any) -> None:
    """A map that was made for ranks node by node is not measured, or changed, as one of scattered ranks."""
    trace = open_trace([write_trace(tmp_path / "t", num_experts=16, top_k=3).folder])
    scattered = cluster_with(HOSTS)
    plain = replace(scattered, rank_hosts=())
    for cluster, other in ((scattered, plain), (plain, scattered)):
        placement = random_map(other, experts=16)
        with pytest.raises(MapError, match=r"node by node.*import the map again"):
            evaluate(trace, [placement], cluster=cluster)
        with pytest.raises(MapError, match=r"rank_hosts"):
            migration_plan(placement, random_map(cluster, experts=16), cluster)


def test_the_runtime_refuses_scattered_ranks() -> None:
    """Its exchanges go by blocks of ranks: another order is refused, not taken for node by node."""
    with pytest.raises(MapError, match=r"lie on nodes \[0, 1, 1, 1, 0, 1, 0, 0\]; .* node by node, as torchrun does"):
        LayerMap.of(random_map(cluster_with(HOSTS)), 0)


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


def test_prices_within_a_node_are_for_transports_by_rank(
    tmp_path: Path, write_trace: Any, run_cli: Callable[..., Any]
) -> None:
    """Where blocks of consecutive ranks are no nodes, a matrix says so: a transport by node refuses the matrix, one by
    rank counts what the list of hosts counts."""
    folder = write_trace(tmp_path / "t", num_experts=32, top_k=4, tokens=300, requests=10).folder
    costs = (np.array(HOSTS)[:, None] != np.array(HOSTS)).astype(int).tolist()
    matrix, hosts = tmp_path / "matrix.yaml", tmp_path / "hosts.yaml"
    matrix.write_text(f"{{num_nodes: 2, gpus_per_node: 4, topology: {{rank_cost: {costs}}}}}")
    hosts.write_text(f"{{num_nodes: 2, gpus_per_node: 4, rank_hosts: {list(HOSTS)}}}")

    def linear(path: Path, transport: str) -> Any:
        how = ("--transport", transport, "--solver", "linear", "--bound", "none", "--holdout", 0, "--json")
        return run_cli("solve", folder, "--cluster", path, *how, "-o", tmp_path / f"{path.stem}.json")

    sends = [
        json.loads(linear(path, "rank").stdout)["evaluation"]["train"]["linear"]["sends_per_token"]
        for path in (matrix, hosts)
    ]
    assert sends[0] == pytest.approx(sends[1])
    for transport in ("node", "allgather"):
        result = linear(matrix, transport)
        assert result.code == 2 and "rank_cost from rank 0 to 1 is 1; both are of one node" in result.stderr
        assert linear(hosts, transport).code == 0
    for command in (
        ("evaluate", folder, "--map", tmp_path / "matrix.json"),
        ("advise", folder, "--cluster", matrix),
        ("group", folder, "--cluster", matrix, "-o", tmp_path / "g.json"),
        ("front", folder, "--cluster", matrix, "-o", tmp_path / "f"),
    ):
        result = run_cli(*command, "--transport", "node")
        assert result.code == 2 and "both are of one node" in result.stderr, command
    result = run_cli("advise", folder, "--cluster", matrix, "--transport", "rank", "--work-limit", 50)
    assert result.code == 0 and "node is left out" in " ".join(result.stdout.split())
