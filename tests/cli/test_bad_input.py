"""Bad input ends in one clear line and exit code 2 or 3: never a traceback, never a half-written file."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

Edit = Callable[[Any], object]


def refused(result: Any, *told: str, code: int = 2) -> None:
    """One line of ours on stderr that says all of `told`, the exit code, and nothing on stdout."""
    assert "Traceback" not in result.stderr
    progress = re.compile(r"(counting|solving|measuring) |compiling:")
    lines = [line for line in result.stderr.splitlines() if not progress.match(line)]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("placement: error: "), lines
    for part in told:
        assert part in lines[0], lines[0]
    assert result.code == code
    assert result.stdout == ""


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.fixture
def solve(run_cli: Any, out: Path) -> Any:
    """`solve(folder, *options)`: a quick solve into the folder `out`."""

    def run(folder: Path | str, *options: object) -> Any:
        return run_cli(
            "solve", folder, "-o", out / "p.json", "--nodes", 2, "--gpus-per-node", 2, "--work-limit", 100, *options
        )

    return run


@pytest.fixture
def trace(tmp_path: Path, write_trace: Any) -> Any:
    return write_trace(tmp_path / "trace", num_layers=2, num_experts=8, top_k=2, tokens=60, requests=6, num_shards=2)


@pytest.fixture(scope="module")
def sound_map(tmp_path_factory: pytest.TempPathFactory, write_trace: Any, run_cli: Any) -> Path:
    """A placement file for the shape of `trace`."""
    folder = tmp_path_factory.mktemp("map")
    write_trace(folder / "t")
    result = run_cli(
        "solve", folder / "t", "-o", folder / "p.json", "--nodes", 2, "--gpus-per-node", 2, "--solver", "linear"
    )
    assert result.code == 0, result.stderr
    return folder / "p.json"


# --- shards -----------------------------------------------------------------------------------------------------------


def change_tensor(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Edit:
    def edit(trace: Any) -> None:
        tensors = load_file(trace.shards[1])
        tensors[name] = np.ascontiguousarray(change(tensors[name]))
        save_file(tensors, trace.shards[1], metadata={"schema": "expert-trace/1"})

    return edit


def with_ids(row: list[int]) -> Callable[[np.ndarray], np.ndarray]:
    """The sets of layer 1 with token 3's replaced."""

    def change(ids: np.ndarray) -> np.ndarray:
        ids = ids.copy()
        ids[1, 3] = row
        return ids

    return change


def rewrite(change: Callable[[bytes], bytes]) -> Edit:
    return lambda trace: trace.shards[1].write_bytes(change(trace.shards[1].read_bytes()))


def header_garbage(content: bytes) -> bytes:
    (size,) = struct.unpack("<Q", content[:8])
    return content[:8] + b"\xfe" * size + content[8 + size :]


def drop_tensor(name: str) -> Edit:
    def edit(trace: Any) -> None:
        tensors = load_file(trace.shards[1])
        del tensors[name]
        save_file(tensors, trace.shards[1])

    return edit


def other_schema(trace: Any) -> None:
    save_file(load_file(trace.shards[1]), trace.shards[1], metadata={"schema": "expert-trace/9"})


SHARD_FAULTS: dict[str, tuple[Edit, tuple[str, ...]]] = {
    "half of it": (rewrite(lambda b: b[: len(b) // 2]), ("shard-00001", "truncated")),
    "last byte missing": (rewrite(lambda b: b[:-1]), ("shard-00001", "truncated")),
    "cut in the header": (rewrite(lambda b: b[:20]), ("shard-00001", "truncated")),
    "nothing in it": (rewrite(lambda b: b""), ("shard-00001", "truncated")),
    "random bytes": (rewrite(lambda b: np.random.default_rng(0).bytes(len(b))), ("shard-00001", "truncated")),
    "header of garbage": (rewrite(header_garbage), ("shard-00001", "truncated")),
    "bytes too many": (rewrite(lambda b: b + b"more"), ("shard-00001",)),
    "header size of 2^63": (rewrite(lambda b: struct.pack("<Q", 2**63) + b[8:]), ("shard-00001",)),
    "id out of range": (
        change_tensor("expert_ids", with_ids([8, 1])),
        ("shard-00001", "layer 1", "token 3", "8", "0 to 7"),
    ),
    "largest id": (change_tensor("expert_ids", with_ids([255, 1])), ("255", "0 to 7")),
    "twice in a set": (change_tensor("expert_ids", with_ids([5, 5])), ("layer 1", "token 3", "[5, 5]", "twice")),
    "ids int8, negative": (
        change_tensor("expert_ids", lambda a: with_ids([-1, 1])(a.astype(np.int8))),
        ("expert_ids", "I8", "U8"),
    ),
    "ids int32, negative": (
        change_tensor("expert_ids", lambda a: with_ids([-1, 1])(a.astype(np.int32))),
        ("expert_ids", "I32", "U8"),
    ),
    "ids uint16": (change_tensor("expert_ids", lambda a: a.astype(np.uint16)), ("U16", "U8")),
    "ids float32": (change_tensor("expert_ids", lambda a: a.astype(np.float32)), ("expert_ids", "F32", "U8")),
    "ids float16": (change_tensor("expert_ids", lambda a: a.astype(np.float16)), ("expert_ids", "F16", "U8")),
    "ids of fewer layers": (change_tensor("expert_ids", lambda a: a[:1]), ("expert_ids", "[1, 30, 2]", "[2, 30, 2]")),
    "ids of more experts a token": (
        change_tensor("expert_ids", lambda a: np.concatenate([a, a], axis=2)),
        ("[2, 30, 4]", "[2, 30, 2]"),
    ),
    "ids token-major": (change_tensor("expert_ids", lambda a: a.transpose(1, 0, 2)), ("[30, 2, 2]", "[2, 30, 2]")),
    "ids flat": (change_tensor("expert_ids", lambda a: a.ravel()), ("[120]", "[2, 30, 2]")),
    "requests of fewer tokens": (change_tensor("request", lambda a: a[:-1]), ("shard-00001",)),
    "requests a table": (change_tensor("request", lambda a: a.reshape(15, 2)), ("request", "[15, 2]")),
    "requests int64": (change_tensor("request", lambda a: a.astype(np.int64)), ("request", "I64", "I32")),
    "positions of fewer tokens": (change_tensor("position", lambda a: a[:-1]), ("position", "[29]")),
    "phase int32": (change_tensor("phase", lambda a: a.astype(np.int32)), ("phase", "I32", "U8")),
    "request beyond the list": (change_tensor("request", lambda a: a + 1), ("request index 6", "0 to 5")),
    "negative request": (change_tensor("request", lambda a: a - 6), ("request index -3",)),
    "no ids": (drop_tensor("expert_ids"), ("no tensor 'expert_ids'",)),
    "no requests": (drop_tensor("request"), ("no tensor 'request'",)),
    "no positions": (drop_tensor("position"), ("no tensor 'position'",)),
    "no phase": (drop_tensor("phase"), ("no tensor 'phase'",)),
    "another schema": (other_schema, ("expert-trace/9",)),
    "it is a folder": (
        lambda trace: (trace.shards[1].unlink(), trace.shards[1].mkdir()),
        ("shard-00001",),
    ),
}


@pytest.mark.parametrize("fault", SHARD_FAULTS)
def test_bad_shard(fault: str, trace: Any, solve: Any, out: Path, run_cli: Any, sound_map: Path) -> None:
    """A shard that is not as the format says: told by solve and by evaluate, and no file appears."""
    edit, told = SHARD_FAULTS[fault]
    edit(trace)
    before = files(out.parent)
    refused(solve(trace.folder), *told)
    refused(solve(trace.folder, "--json", "--holdout", 0), *told)
    assert files(out.parent) == before
    refused(run_cli("evaluate", trace.folder, "--map", sound_map), *told)


@pytest.mark.parametrize("command", ["info", "split", "merge"])
@pytest.mark.parametrize("fault", ["half of it", "id out of range", "twice in a set", "request beyond the list"])
def test_bad_shard_in_the_traces_commands(fault: str, command: str, trace: Any, out: Path, run_cli: Any) -> None:
    """The commands on traces refuse it too, and leave no half-made trace behind."""
    edit, told = SHARD_FAULTS[fault]
    edit(trace)
    output = ["--report", out / "new.html"] if command == "info" else ["-o", out / "new"]
    refused(run_cli("traces", command, trace.folder, *output), *told)
    assert files(out) == set()


# --- manifests --------------------------------------------------------------------------------------------------------


def set_keys(**keys: Any) -> Edit:
    def edit(trace: Any) -> None:
        (trace.folder / "trace.json").write_text(json.dumps(trace.manifest | keys))

    return edit


def drop_key(key: str) -> Edit:
    def edit(trace: Any) -> None:
        left = {k: v for k, v in trace.manifest.items() if k != key}
        (trace.folder / "trace.json").write_text(json.dumps(left))

    return edit


def content(data: bytes) -> Edit:
    return lambda trace: (trace.folder / "trace.json").write_bytes(data)


MANIFEST_FAULTS: dict[str, tuple[Edit, tuple[str, ...]]] = {
    "more tokens than the shards": (set_keys(num_tokens=61), ("num_tokens=61", "60")),
    "fewer tokens than the shards": (set_keys(num_tokens=59), ("num_tokens=59", "60")),
    "a shard is missing": (lambda trace: trace.shards[1].unlink(), ("num_tokens=60", "30")),
    "no shards": (lambda trace: [shard.unlink() for shard in trace.shards], ("num_tokens=60", "0")),
    "another number of layers": (set_keys(layer_ids=[0, 1, 2]), ("expert_ids", "[3, 30, 2]")),
    "another top_k": (set_keys(top_k=3), ("expert_ids", "[2, 30, 3]")),
    "fewer experts than ids": (set_keys(num_experts=4), ("out of range", "0 to 3")),
    "more experts than uint8": (set_keys(num_experts=300), ("U16",)),
    "fewer requests": (set_keys(requests=[{"id": "a"}]), ("request index", "1 requests")),
    "no requests": (set_keys(requests=[]), ("request",)),
    "not JSON": (content(b'{"schema": '), ("trace.json", "JSON")),
    "empty": (content(b""), ("trace.json", "JSON")),
    "not text": (content(b"\xff\xfe\x00"), ("trace.json", "JSON")),
    "a list": (content(b"[]"), ("trace.json", "schema")),
    "deep": (content(b"[" * 100_000), ("trace.json",)),
    "another schema": (set_keys(schema="expert-trace/2"), ("expert-trace/2", "expert-trace/1")),
    "no schema": (drop_key("schema"), ("schema",)),
    "no model": (drop_key("model"), ("model",)),
    "no layer_ids": (drop_key("layer_ids"), ("layer_ids",)),
    "no num_experts": (drop_key("num_experts"), ("num_experts",)),
    "no top_k": (drop_key("top_k"), ("top_k",)),
    "no num_tokens": (drop_key("num_tokens"), ("num_tokens",)),
    "no list of requests": (drop_key("requests"), ("requests",)),
    "layers out of order": (set_keys(layer_ids=[1, 0]), ("layer_ids=[1, 0]", "ascending")),
    "layers twice": (set_keys(layer_ids=[1, 1]), ("layer_ids=[1, 1]",)),
    "no layers": (set_keys(layer_ids=[]), ("layer_ids",)),
    "negative layer": (set_keys(layer_ids=[-1, 0]), ("layer_ids",)),
    "layers are words": (set_keys(layer_ids=["a", "b"]), ("layer_ids",)),
    "no experts": (set_keys(num_experts=0), ("num_experts=0",)),
    "negative experts": (set_keys(num_experts=-8), ("num_experts=-8",)),
    "half an expert": (set_keys(num_experts=8.5), ("num_experts",)),
    "too many experts": (set_keys(num_experts=10**30), ("num_experts",)),
    "top_k of 0": (set_keys(top_k=0), ("top_k=0",)),
    "top_k beyond the experts": (set_keys(top_k=9), ("top_k=9",)),
    "requests are numbers": (set_keys(requests=[1, 2]), ("requests",)),
    "a request without id": (set_keys(requests=[{"domain": "x"}] * 6), ("requests", "id")),
    "groups that do not divide": (set_keys(num_groups=3), ("num_groups=3",)),
    "it is missing": (lambda trace: (trace.folder / "trace.json").unlink(), ("trace.json",)),
    "it is a folder": (
        lambda trace: ((trace.folder / "trace.json").unlink(), (trace.folder / "trace.json").mkdir()),
        ("trace.json",),
    ),
}


@pytest.mark.parametrize("fault", MANIFEST_FAULTS)
def test_bad_manifest(fault: str, trace: Any, solve: Any, out: Path) -> None:
    """A manifest that is broken or disagrees with its shards is told by the key, and no file appears."""
    edit, told = MANIFEST_FAULTS[fault]
    edit(trace)
    refused(solve(trace.folder), *told)
    assert files(out) == set()


def test_empty_traces(tmp_path: Path, write_trace: Any, solve: Any, out: Path) -> None:
    """No shards, shards of no tokens, and no requests: each is called empty."""
    nothing = write_trace(tmp_path / "a", tokens=0, requests=0)
    refused(solve(nothing.folder), "empty", "no tokens")
    nothing.shards[0].unlink()
    refused(solve(nothing.folder), "empty", "no tokens")
    refused(solve(write_trace(tmp_path / "b", tokens=0, requests=3, num_shards=2).folder), "empty", "no tokens")
    assert files(out) == set()


def test_one_request_cannot_be_split(tmp_path: Path, write_trace: Any, solve: Any, out: Path) -> None:
    """A holdout needs two requests with tokens; the way out is named and works."""
    folder = write_trace(tmp_path / "t", requests=1).folder
    refused(solve(folder), "--holdout 0")
    assert files(out) == set()
    assert solve(folder, "--holdout", 0).code == 0


def test_folders_that_are_no_traces(tmp_path: Path, trace: Any, solve: Any, out: Path) -> None:
    """Paths that do not exist, hold no trace, match nothing, or come twice."""
    refused(solve(tmp_path / "missing"), "missing", "does not exist")
    refused(solve(tmp_path / "mis*"), "does not exist")
    refused(solve(tmp_path / ("x" * 300)), "xxx")
    refused(solve(out), "trace.json")
    refused(solve(trace.shards[0]), "is a file")
    refused(solve(trace.folder, trace.folder), "twice")
    refused(solve(trace.folder, f"{trace.folder}/../trace"), "twice")
    assert files(out) == set()


def test_traces_of_two_models(tmp_path: Path, trace: Any, write_trace: Any, solve: Any, out: Path) -> None:
    other = write_trace(tmp_path / "other", num_experts=16)
    refused(solve(trace.folder, other.folder), "another model", "num_experts=16")
    assert files(out) == set()


# --- clusters and options ---------------------------------------------------------------------------------------------

BAD_OPTIONS: dict[str, tuple[tuple[object, ...], int, tuple[str, ...]]] = {
    "slots fewer than experts": (("--slots-per-gpu", 1), 3, ("8 experts", "--slots-per-gpu 2")),
    "ranks that do not divide": (
        ("--nodes", 3, "--gpus-per-node", 1),
        3,
        ("8 experts", "3 GPUs", "--redundant-experts 1"),
    ),
    "redundant that do not divide": (("--redundant-experts", 3), 3, ("--redundant-experts 0 or 4",)),
    "more GPUs than experts": (("--nodes", 16), 3, ("32 GPUs", "--redundant-experts 24")),
    "slots beyond the experts": (("--slots-per-gpu", 9), 3, ("slots_per_gpu=9",)),
    "slots and redundant": (("--slots-per-gpu", 3, "--redundant-experts", 4), 2, ("give one of them",)),
    "no nodes": (("--nodes", 0), 2, ("num_nodes=0",)),
    "negative nodes": (("--nodes", -1), 2, ("num_nodes=-1",)),
    "too many nodes": (("--nodes", 100, "--slots-per-gpu", 1), 2, ("num_nodes=100", "64")),
    "no GPUs": (("--gpus-per-node", 0), 2, ("gpus_per_node=0",)),
    "no slots": (("--slots-per-gpu", 0), 2, ("slots_per_gpu=0",)),
    "negative redundant": (("--redundant-experts", -1), 2, ("redundant_experts=-1",)),
    "holdout above 1": (("--holdout", 1.5), 2, ("holdout=1.5",)),
    "holdout of all": (("--holdout", 1), 2, ("holdout=1",)),
    "negative holdout": (("--holdout", -0.1), 2, ("holdout=-0.1",)),
    "holdout nan": (("--holdout", "nan"), 2, ("holdout=nan",)),
    "imbalance below 1": (("--max-imbalance", 0.5), 2, ("max_imbalance=0.5", "1 or more")),
    "imbalance nan": (("--max-imbalance", "nan"), 2, ("max_imbalance=nan",)),
    "imbalance of nobody": (("--max-imbalance", 1.0), 3, ("max_imbalance=1.0",)),
    "node imbalance below 1": (("--max-imbalance", ",0.5"), 2, ("max_node_imbalance=0.5", "over nodes")),
    "node imbalance nan": (("--max-imbalance", ",nan"), 2, ("max_node_imbalance=nan",)),
    "node imbalance of nobody": (("--max-imbalance", ",1.0"), 3, ("max_node_imbalance=1.0",)),
    "unknown transport": (("--transport", "pigeon"), 2, ("pigeon", "allgather")),
    "unknown objective": (("--objective", "beauty"), 2, ("beauty", "locality")),
    "no workers": (("--workers", 0), 2, ("workers='0'",)),
    "negative workers": (("--workers", -1), 2, ("workers='-1'",)),
    "unknown solver": (("--solver", "magic"), 2, ("magic", "anneal")),
    "unknown choice": (("--replica-choice", "nearest"), 2, ("nearest", "min-nodes")),
    "negative seed": (("--seed", -1), 2, ("seed=-1",)),
    "huge seed": (("--seed", 2**70), 2, ("seed=",)),
    "no work": (("--work-limit", 0), 2, ("work_limit=0",)),
    "negative time": (("--time-limit", -1), 2, ("time_limit=-1",)),
    "no time": (("--time-limit", 0), 2, ("time_limit=0",)),
    "time nan": (("--time-limit", "nan"), 2, ("time_limit=nan",)),
    "negative weight": (("--balance-weight", -1), 2, ("balance_weight=-1",)),
    "weight infinite": (("--balance-weight", "inf"), 2, ("balance_weight=inf",)),
    "weight beyond arithmetic": (("--balance-weight", 1e308), 2, ("balance_weight=",)),
    "negative moves": (("--max-moves", -1), 2, ("max_moves=-1",)),
    "moves of no number": (("--max-moves", "few"), 2, ("--max-moves 'few'", "N/layer")),
    "moves twice": (("--max-moves", "3,4"), 2, ("--max-moves '3,4'", "40,2/layer")),
    "negative moves of a layer": (("--max-moves", "-1/layer"), 2, ("max_moves_per_layer=-1",)),
    "moves from nothing": (("--max-moves", 4), 2, ("max_moves", "--from")),
    "cluster twice": (("--cluster", "c.yaml"), 2, ("--cluster", "--nodes")),
}


@pytest.fixture(scope="module")
def skewed(tmp_path_factory: pytest.TempPathFactory, write_trace: Any) -> Any:
    """A trace of 8 experts that all tokens of which visit expert 0: no map balances it."""
    rng = np.random.default_rng(0)
    ids = np.stack([np.zeros((2, 60), dtype=int), rng.integers(1, 8, (2, 60))], axis=2)
    return write_trace(tmp_path_factory.mktemp("skewed") / "t", ids_LTK=ids, num_experts=8, requests=6)


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options(name: str, skewed: Any, solve: Any, out: Path) -> None:
    """Values that cannot be are told with the value and what is allowed; what is infeasible ends with 3."""
    options, code, told = BAD_OPTIONS[name]
    refused(solve(skewed.folder, *options), *told, code=code)
    assert files(out) == set()


@pytest.mark.parametrize(
    "arguments",
    [
        ("solve",),
        ("solve", "TRACE", "--nodes", "two"),
        ("solve", "TRACE", "--nodes", "2.5"),
        ("solve", "TRACE", "--holdout", "some"),
        ("solve", "TRACE", "--no-such-option"),
        ("evaluate", "TRACE"),
        ("export", "TRACE"),
        ("export", "TRACE", "--to", "native"),
        ("nonsense",),
        ("traces", "nonsense"),
    ],
)
def test_usage_errors(arguments: tuple[str, ...], skewed: Any, run_cli: Any) -> None:
    """What the parser cannot read ends with 2 and says how to call it."""
    result = run_cli(*(str(skewed.folder) if part == "TRACE" else part for part in arguments))
    assert result.code == 2
    assert "Error" in result.stderr
    assert "Traceback" not in result.stderr


def test_no_nodes_given(skewed: Any, run_cli: Any, out: Path) -> None:
    refused(run_cli("solve", skewed.folder, "-o", out / "p.json"), "--nodes", "--cluster")
    assert files(out) == set()


@pytest.mark.parametrize("text", ["num_nodes: 0", "nodes: 2", "[", "num_nodes: 3", None])
def test_bad_cluster_file(text: str | None, skewed: Any, run_cli: Any, tmp_path: Path, out: Path) -> None:
    """A cluster file that is missing, no YAML, or of a cluster that cannot be."""
    path = tmp_path / "cluster.yaml"
    if text is not None:
        path.write_text(text)
    code = 3 if text == "num_nodes: 3" else 2
    refused(run_cli("solve", skewed.folder, "-o", out / "p.json", "--cluster", path), code=code)
    assert files(out) == set()


@pytest.mark.parametrize(
    ("topology", "told"),
    [
        ("{levels: [{name: rack, nodes: 3, gbps: 1}]}", ("topology.levels", "'rack'", "blocks of 3", "4 nodes")),
        ("{node_gbps: [1, 2]}", ("topology.node_gbps", "2 values for 4 nodes")),
        ("{rank_cost: [[0, 1], [1, 0]]}", ("topology.rank_cost", "2 rows", "4 rows of 4")),
        ("{node_gbps: [1, 1, 1, -1]}", ("topology.node_gbps", "-1.0", "positive")),
        ("{racks: 2}", ("cluster.yaml", "topology.racks")),
    ],
)
def test_bad_topology(
    topology: str, told: tuple[str, ...], skewed: Any, run_cli: Any, tmp_path: Path, out: Path
) -> None:
    """Of a cluster file whose topology cannot be, the key is named and nothing is written."""
    path = tmp_path / "cluster.yaml"
    path.write_text(f"num_nodes: 4\ngpus_per_node: 1\ntopology: {topology}\n")
    refused(run_cli("solve", skewed.folder, "-o", out / "p.json", "--cluster", path), *told)
    assert files(out) == set()


# with copies the searches meet this cap
@pytest.mark.parametrize(("solver", "redundant"), [("auto", 0), ("linear", 0), ("anneal", 0), ("linear", 4)])
def test_cap_on_nodes_that_is_not_met(solver: str, redundant: int, skewed: Any, solve: Any, out: Path) -> None:
    """Only the cap on nodes is broken: the message names it and its option, not the cap on GPUs that was not given."""
    options = ("--max-imbalance", ",1.0", "--solver", solver, "--redundant-experts", redundant)
    result = solve(skewed.folder, *options)
    assert result.code in (3, 4)
    refused(result, "max_node_imbalance=1.0", code=result.code)
    assert "None" not in result.stderr and "max_imbalance" not in result.stderr
    refused(solve(skewed.folder, *options, "--max-imbalance", "3.9,1.0"), "max_node_imbalance=1.0", code=result.code)
    assert files(out) == set()


def test_what_a_broken_cap_on_nodes_offers_works(skewed: Any, solve: Any) -> None:
    """The message tells the nodes' imbalance, so that this value, as the option that it names, lets the layer pass."""
    least = 1.0
    for layer in (0, 1):
        result = solve(skewed.folder, "--holdout", 0, "--solver", "linear", "--max-imbalance", f",{least}")
        refused(result, f"layer {layer}:", "raise the second number of --max-imbalance", code=4)
        least = max(least, float(result.stderr.split("the best has ")[1].split(" over nodes")[0]) + 1e-6)
    assert solve(skewed.folder, "--holdout", 0, "--solver", "linear", "--max-imbalance", f",{least}").code == 0
    assert least < 2  # it is not the imbalance over GPUs, one of which serves half of all


def test_cap_on_nodes_is_kept(trace: Any, solve: Any, out: Path) -> None:
    """Where the cheapest map breaks the cap on nodes, a dearer one within it is written."""
    worst = {}
    for cap in (4.0, 1.03):
        assert solve(trace.folder, "--holdout", 0, "--balance-weight", 0, "--max-imbalance", f",{cap}").code == 0
        figures = json.loads((out / "p.json").read_text())["evaluation"]["train"]["auto"]
        worst[cap] = figures["node_imbalance"]["max"]
    assert worst[1.03] <= 1.03 < worst[4.0]


@pytest.mark.parametrize("command", ["split", "synth"])
def test_bad_seeds_of_the_traces_commands(command: str, skewed: Any, run_cli: Any, out: Path) -> None:
    arguments = {
        "split": (skewed.folder,),
        "synth": ("--layers", 1, "--experts", 8, "--top-k", 2, "--tokens", 50, "--requests", 2),
    }[command]
    refused(run_cli("traces", command, *arguments, "-o", out / "new", "--seed", -1), "seed")
    assert files(out) == set()


@pytest.mark.parametrize("share", [0, 1, 1.5, -1, "nan"])
def test_bad_split(share: object, skewed: Any, run_cli: Any, out: Path) -> None:
    refused(run_cli("traces", "split", skewed.folder, "-o", out / "new", "--holdout", share), "holdout=")
    assert files(out) == set()


# --- outputs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["-o", "--report"])
@pytest.mark.parametrize("bad", ["missing/p.json", "folder", "file/p.json", "x" * 300])
def test_unwritable_output(option: str, bad: str, trace: Any, solve: Any, out: Path) -> None:
    """An output that cannot be written is told before the work, and nothing else is written either."""
    (out / "folder").mkdir()
    (out / "file").write_text("here")
    before = files(out)
    refused(solve(trace.folder, option, out / bad), "cannot write")
    assert files(out) == before
    assert (out / "file").read_text() == "here"


def test_output_is_told_before_the_traces_are_read(solve: Any, out: Path, tmp_path: Path) -> None:
    """Nobody waits for an answer that has nowhere to go: the output is checked first of all."""
    refused(solve(tmp_path / "missing", "-o", out / "no" / "p.json"), "cannot write")


@pytest.mark.parametrize("solver", ["linear", "round-robin", "eplb"])
def test_cap_that_a_solver_does_not_meet(solver: str, tmp_path: Path, write_trace: Any, solve: Any, out: Path) -> None:
    """A cap holds for solvers that do not search, too: a map that breaks it is not written (exit code 4)."""
    load = [9, 9, 9, 9, 8, 8, 8, 8, 1, 1, 1, 1]  # 3 slots a GPU: 18 on each is possible; loads are interleaved badly
    ids = np.repeat([0, 1, 2, 4, 3, 5, 6, 8, 7, 9, 10, 11], load).reshape(1, -1, 1)
    folder = write_trace(tmp_path / "t", ids_LTK=ids, num_experts=12, requests=3).folder
    free = solve(folder, "--holdout", 0, "--solver", solver)
    document = json.loads((out / "p.json").read_text())
    worst = document["evaluation"]["train"][solver]["rank_imbalance"]["max"]
    assert free.code == 0
    (out / "p.json").unlink()
    assert solve(folder, "--holdout", 0, "--solver", solver, "--max-imbalance", worst + 0.001).code == 0
    (out / "p.json").unlink()
    if worst > 1.01:
        refused(solve(folder, "--holdout", 0, "--solver", solver, "--max-imbalance", 1.005), "1.005", code=4)
    else:
        assert solver != "linear"
    assert files(out) == set()


def test_report_over_the_placement(trace: Any, solve: Any, out: Path) -> None:
    """One path for the placement and the report would lose the placement: refused, not overwritten."""
    refused(solve(trace.folder, "--report", out / "p.json"), "p.json")
    refused(solve(trace.folder, "--report", f"{out}/../out/p.json"), "p.json")
    assert files(out) == set()


@pytest.mark.parametrize("cap", [1.0, 1.0001])
def test_cap_that_no_map_meets(cap: float, tmp_path: Path, write_trace: Any, solve: Any, out: Path) -> None:
    """Whether proven impossible (3) or not found (4): one line, no map that breaks the cap, no file."""
    load = [6, 6, 6, 5, 5, 5, 5, 1]  # mean of 4 GPUs: 9.75, but whole loads of pairs are whole numbers
    ids = np.repeat(np.arange(8), load).reshape(1, -1, 1)
    folder = write_trace(tmp_path / "t", ids_LTK=ids, num_experts=8, requests=3).folder
    result = solve(folder, "--max-imbalance", cap, "--holdout", 0)
    assert result.code in (3, 4)
    refused(result, f"max_imbalance={cap}", code=result.code)
    assert files(out) == set()


@pytest.mark.parametrize("bad", ["missing/p.json", "folder", "file/p.json"])
def test_unwritable_export(bad: str, sound_map: Path, run_cli: Any, out: Path) -> None:
    (out / "folder").mkdir()
    (out / "file").write_text("here")
    before = files(out)
    refused(run_cli("export", sound_map, "--to", "native", "-o", out / bad), "cannot write")
    assert files(out) == before


@pytest.mark.parametrize("command", ["split", "merge", "synth"])
def test_folders_are_not_overwritten(command: str, trace: Any, run_cli: Any, out: Path) -> None:
    """Where something is already, the commands on traces write nothing."""
    arguments = {
        "split": (trace.folder,),
        "merge": (trace.folder,),
        "synth": ("--layers", 1, "--experts", 8, "--top-k", 2, "--tokens", 50, "--requests", 2),
    }[command]
    (out / "mine.txt").write_text("mine")
    refused(run_cli("traces", command, *arguments, "-o", out), str(out))
    assert files(out) == {"mine.txt"}


def test_failure_keeps_the_old_output(trace: Any, solve: Any, out: Path) -> None:
    """A placement that is there stays as it was when a later run fails."""
    assert solve(trace.folder).code == 0
    before = (out / "p.json").read_bytes()
    SHARD_FAULTS["id out of range"][0](trace)
    refused(solve(trace.folder, "--seed", 1), "out of range")
    assert (out / "p.json").read_bytes() == before
    assert files(out) == {"p.json"}


# --- maps -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape", [{"num_experts": 16}, {"num_layers": 3}, {"top_k": 3}, {"layer_ids": [1, 2]}], ids=str
)
def test_map_for_another_model(
    shape: dict[str, Any], sound_map: Path, write_trace: Any, run_cli: Any, tmp_path: Path
) -> None:
    folder = write_trace(tmp_path / "other", **shape).folder
    refused(run_cli("evaluate", folder, "--map", sound_map), "the map is for")
    refused(run_cli("evaluate", folder, "--map", sound_map, "--json"), "the map is for")


@pytest.mark.parametrize(
    ("shape", "options", "told"),
    [
        ({"num_experts": 16}, ("--slots-per-gpu", 4), "8 experts"),
        ({"num_layers": 3}, (), "2 layers"),
        ({"top_k": 3}, (), "top-2"),
        ({"layer_ids": [1, 2]}, (), "0 to 1"),
    ],
    ids=str,
)
def test_current_map_that_does_not_fit(
    shape: dict[str, Any],
    options: tuple[object, ...],
    told: str,
    sound_map: Path,
    write_trace: Any,
    solve: Any,
    out: Path,
) -> None:
    """A change starts from a map of the same model; what differs is told before the work."""
    folder = write_trace(out.parent / "other", **shape).folder
    refused(solve(folder, *options, "--from", sound_map), "the current map is for", told, "needed")
    assert files(out) == set()


def test_bad_current_maps(sound_map: Path, trace: Any, solve: Any, run_cli: Any, tmp_path: Path, out: Path) -> None:
    """Files that are missing or no placement, a solver that knows no budget, plans with nowhere to go."""
    (tmp_path / "cut.json").write_bytes(sound_map.read_bytes()[:-40])
    for name, told in (("none.json", "No such file"), ("cut.json", "JSON")):
        refused(solve(trace.folder, "--from", tmp_path / name), name, told)
        refused(run_cli("diff", sound_map, tmp_path / name), name, told)
        refused(run_cli("diff", tmp_path / name, sound_map), name, told)
    refused(solve(trace.folder, "--from", sound_map, "--max-moves", 2, "--solver", "eplb"), "eplb", "auto")
    refused(run_cli("diff", sound_map, sound_map, "-o", out / "no" / "m.json"), "cannot write")
    assert files(out) == set()


@pytest.mark.parametrize("ranks", ["", "x", "1-", "-1", "3-1", "1,,2", "1-2-3", "9" * 30, "\N{SUPERSCRIPT TWO}"])
def test_lost_ranks_that_are_no_list(ranks: str, sound_map: Path, run_cli: Any) -> None:
    refused(run_cli("diff", sound_map, sound_map, f"--lost-ranks={ranks}"), "--lost-ranks", "spans")


def test_lost_ranks_that_cannot_be(sound_map: Path, trace: Any, solve: Any, run_cli: Any, out: Path) -> None:
    """Ranks that the map in use does not have, fewer than the smaller cluster leaves out, and none without a map."""
    refused(run_cli("diff", sound_map, sound_map, "--lost-ranks", 4), "rank 4", "0 to 3")
    fewer = ("--nodes", 1, "--gpus-per-node", 2, "--from", sound_map)
    refused(solve(trace.folder, *fewer, "--lost-ranks", 1), "3 ranks", "1 more", "--lost-ranks")
    refused(solve(trace.folder, "--lost-ranks", 1), "--from")
    assert files(out) == set()


def test_cap_out_of_reach_of_the_moves(tmp_path: Path, write_trace: Any, solve: Any, out: Path) -> None:
    """Where the current map breaks a cap and too few slots may move to mend it: exit code 4, and no file."""
    folders = []
    for name, load in (("old", [5, 5, 5, 5, 5, 5, 5, 5]), ("new", [20, 20, 1, 1, 1, 1, 1, 1])):
        ids = np.repeat(np.arange(8), load).reshape(1, -1, 1)
        folders.append(write_trace(tmp_path / name, ids_LTK=ids, num_experts=8, requests=3).folder)
    current = tmp_path / "current.json"
    assert solve(folders[0], "--holdout", 0, "--solver", "linear", "-o", current).code == 0
    change = ("--holdout", 0, "--from", current, "--max-imbalance", 1.9)
    refused(solve(folders[1], *change, "--max-moves", 0), "max_imbalance=1.9", "--max-moves", code=4)
    assert files(out) == set()
    assert solve(folders[1], *change, "--max-moves", 2).code == 0


def test_bad_maps(sound_map: Path, trace: Any, run_cli: Any, tmp_path: Path, out: Path) -> None:
    """evaluate and export refuse files that are no sound placement; export writes nothing."""
    document = json.loads(sound_map.read_text())
    document["physical_to_logical"][1][3] = document["physical_to_logical"][1][0]
    (tmp_path / "unsound.json").write_text(json.dumps(document))
    (tmp_path / "cut.json").write_bytes(sound_map.read_bytes()[:-40])
    for name, told in (("unsound.json", "no slot"), ("cut.json", "JSON"), ("none.json", "No such file"), ("out", "")):
        refused(run_cli("evaluate", trace.folder, "--map", tmp_path / name), name, told)
        refused(run_cli("export", tmp_path / name, "--to", "sglang", "-o", out / "e.json"), name, told)
    refused(run_cli("evaluate", trace.folder, "--map", sound_map, "--map", tmp_path / "cut.json"), "cut.json")
    assert files(out) == set()


def test_bad_options_of_evaluate_and_export(sound_map: Path, trace: Any, run_cli: Any, out: Path) -> None:
    refused(run_cli("evaluate", trace.folder, "--map", sound_map, "--replica-choice", "nearest"), "nearest")
    refused(run_cli("evaluate", trace.folder, "--map", sound_map, "--workers", 0), "workers=0")
    refused(run_cli("export", sound_map, "--to", "nonsense", "-o", out / "e.json"), "nonsense", "native", "sglang")
    assert files(out) == set()


def test_text_of_others_cannot_break_the_line(trace: Any, solve: Any, run_cli: Any, tmp_path: Path) -> None:
    """Line ends and terminal codes in names and keys of files that we are given do not reach the terminal as such."""
    set_keys(requests=[{"id": 3, "\nplacement: error: forged\x1b[2J": 1}] * 6)(trace)
    refused(solve(trace.folder), "requests")
    evil = {"schema": "expert-placement/1", "forged\nplacement: error: all is well\x1b[2J": 1}
    (tmp_path / "evil.json").write_text(json.dumps(evil))
    set_keys()(trace)
    result = run_cli("evaluate", trace.folder, "--map", tmp_path / "evil.json")
    refused(result, "evil.json")
    assert "\x1b" not in result.stderr


@pytest.mark.parametrize("key", ["model", "note"])
def test_text_that_is_no_text(key: str, trace: Any, solve: Any, run_cli: Any, out: Path) -> None:
    """Half a surrogate pair, which JSON can hold and UTF-8 cannot, is refused or survives; it does not crash us."""
    set_keys(**{key: "a\ud800z"})(trace)
    for result in (
        solve(trace.folder),
        run_cli("traces", "split", trace.folder, "-o", out / "s"),
        run_cli("traces", "merge", trace.folder, "-o", out / "m"),
    ):
        if result.code != 0:
            refused(result)


def test_in_a_process_of_its_own(trace: Any, run_process: Any, out: Path) -> None:
    """The shell sees the same: the line, the code, no traceback, no file."""
    SHARD_FAULTS["half of it"][0](trace)
    refused(run_process("solve", trace.folder, "--nodes", 2, "-o", "p.json", cwd=out), "shard-00001")
    assert files(out) == set()
