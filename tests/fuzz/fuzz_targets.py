"""What is fuzzed: for everything that reads what others wrote, a function of bytes, and sound bytes to start from.

A target returns for sound input and for input that is refused in words of ours; whatever else it raises is a finding.
`TARGETS` is the table; a new reader needs a line.
"""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from placement.checkpoint import apply_map, verify_applied
from placement.checkpoint.layouts import find_experts
from placement.checkpoint.source import open_checkpoint
from placement.cluster import cluster_from_yaml
from placement.errors import PlacementError
from placement.exporters import ExportOptions, get_exporter, get_importer
from placement.exporters.imports import imported
from placement.grouping.grouping_json import load_grouping
from placement.migration import map_digest
from placement.placement_json import document_bytes, load_placement, placement_document
from placement.placement_map import Placement
from placement.testing.exporters import exported, small_placement
from placement.testing.readers import Golden
from placement.traces import count, open_trace
from placement.traces.counts_file import read_counts, write_counts
from placement.traces.counts_folder import count_to_folder, merge_counted, read_counted
from placement.traces.readers import READERS, detect
from placement.traces.readers.convert import convert

TESTS = Path(__file__).parent.parent
RECORDINGS = TESTS / "golden" / "readers"
SHARED_MEMORY = Path("/dev/shm")
LONGEST_MESSAGE = 6000
COUNTED_EXPERTS = 512  # a workload has [L, E, E] numbers whatever the trace holds

Seeds = Mapping[str, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """`kind` says which structure mutations keep; `seeds()` are sound files by name, small."""

    run: Callable[[bytes], None]
    seeds: Callable[[], Seeds]
    kind: str


refusals: list[str] = []  # of the last run; sound input has none


@contextmanager
def refusing() -> Iterator[None]:
    """What is allowed of bad input: an error of the tree, one line of a length that can be read."""
    refusals.clear()
    try:
        yield
    except PlacementError as error:
        text = str(error)
        refusals.append(text)
        if "\n" in text or not 20 < len(text) <= LONGEST_MESSAGE:
            raise AssertionError(f"a message of {len(text)} characters: {text[:200]!r}") from error


@contextmanager
def folder() -> Iterator[Path]:
    """A folder in memory where the system has one."""
    path = Path(tempfile.mkdtemp(prefix="fuzz-", dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


# --- recordings of engines --------------------------------------------------------------------------------------------


def _recording(case: str, file: str) -> Target:
    """The file `file` of a golden recording is replaced; the others of the folder stay where the format needs them."""
    golden = Golden.load(RECORDINGS / case)
    reader = case.split("/")[0]
    together = reader == "tensorrt-llm"

    def run(data: bytes) -> None:
        with folder() as base:
            copy = base / golden.path.name
            copy.mkdir()
            for other in golden.path.iterdir() if together else ():
                shutil.copyfile(other, copy / other.name)
            (copy / file).write_bytes(data)
            for name in READERS:  # whoever is asked whether it is his must answer
                with refusing():
                    detect(copy) if name == reader else None
            with refusing():
                target = base / ("out.npz" if golden.counts is not None else "out")
                done = convert(copy, target, reader=reader, options=golden.options)
                _read_back(done.output)

    suffix = Path(file).suffix
    kind = {".pt": "zip", ".npz": "zip", ".jsonl": "lines"}.get(suffix, suffix.removeprefix("."))
    return Target(run=run, seeds=lambda: {case.replace("/", "-"): (golden.path / file).read_bytes()}, kind=kind)


def _read_back(output: Path) -> None:
    """What a reader wrote must be sound: refusing it here would be a fault of the reader."""
    if output.is_file():
        read_counts(output)
        return
    trace = open_trace(output)
    if trace.model.num_experts <= COUNTED_EXPERTS:
        count(trace)


# --- our own formats --------------------------------------------------------------------------------------------------


def _trace_parts() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    ids_LTK = np.argsort(rng.random((2, 8, 5)), axis=2)[:, :, :2].astype(np.uint8)
    columns = {"request": np.arange(8, dtype=np.int32) // 4, "position": np.arange(8, dtype=np.int32) % 4}
    shard = {"expert_ids": np.ascontiguousarray(ids_LTK), **columns, "phase": np.zeros(8, dtype=np.uint8)}
    manifest = {
        "schema": "expert-trace/1",
        "model": "tiny",
        "layer_ids": [1, 2],
        "num_experts": 5,
        "top_k": 2,
        "num_tokens": 8,
        "requests": [{"id": "a", "domain": "x"}, {"id": "b", "category": "y"}],
        "num_hidden_layers": 4,
    }
    return {
        "trace.json": json.dumps(manifest).encode(),
        "shard-00000.safetensors": save(shard, metadata={"schema": "expert-trace/1"}),
    }


def _trace(part: str) -> Target:
    def run(data: bytes) -> None:
        with folder() as base, refusing():
            for name, content in _trace_parts().items():
                (base / name).write_bytes(data if name == part else content)
            trace = open_trace(base)
            trace.tokens_Q()
            if trace.model.num_experts <= COUNTED_EXPERTS:
                count(trace)

    kind = "json" if part.endswith(".json") else "safetensors"
    return Target(run=run, seeds=lambda: {"sound": _trace_parts()[part]}, kind=kind)


def _counts(suffix: str) -> Target:
    def run(data: bytes) -> None:
        with folder() as base, refusing():
            path = base / f"counts{suffix}"
            path.write_bytes(data)
            counts = read_counts(path, None if suffix == ".npz" else 2)
            if counts.model.num_experts <= COUNTED_EXPERTS:
                counts.workload(0)
            write_counts(base / "again.npz", counts.model, counts.count_QLE)
            read_counts(base / "again.npz")

    def seeds() -> Seeds:
        counts_QLE = np.arange(1, 25).reshape(2, 3, 4)
        with folder() as base:
            np.save(base / "a.npy", counts_QLE)
            np.savez(base / "a.npz", counts=counts_QLE, top_k=np.array(2), layer_ids=np.arange(3), model=np.array("m"))
            np.savez_compressed(base / "b.npz", frac=counts_QLE / 300, top_k=np.array(2))
            return {name: (base / name).read_bytes() for name in ("a.npy", "a.npz", "b.npz") if name.endswith(suffix)}

    return Target(run=run, seeds=seeds, kind="npy" if suffix == ".npy" else "zip")


_COUNTED: dict[str, bytes] = {}


def _counted_files() -> dict[str, bytes]:
    """A folder that `placement traces count` wrote, made once."""
    if not _COUNTED:
        with folder() as base:
            for name, content in _trace_parts().items():
                (base / name).write_bytes(content)
            count_to_folder(open_trace(base), base / "counts", holdout=0.5)
            _COUNTED.update({one.name: one.read_bytes() for one in (base / "counts").glob("counts.*")})
    return _COUNTED


def _counted(part: str) -> Target:
    def run(data: bytes) -> None:
        with folder() as base, refusing():
            for name, content in _counted_files().items():
                (base / name).write_bytes(data if name == part else content)
            for holdout in (None, 0):
                with refusing():
                    read_counted(base).split(holdout)
            merge_counted([base], base / "merged")

    kind = "json" if part.endswith(".json") else "safetensors"
    return Target(run=run, seeds=lambda: {"sound": _counted_files()[part]}, kind=kind)


def _map_bytes(placement: Placement | None = None) -> bytes:
    loose = {"version": "0", "seed": 1, "options": {}}
    return document_bytes(placement_document(placement or small_placement(), provenance=loose))


def _placement() -> Target:
    def run(data: bytes) -> None:
        with folder() as base, refusing():
            (base / "p.json").write_bytes(data)
            placement, file = load_placement(base / "p.json")
            file.described_cluster()
            map_digest(placement)
            for name in ("sglang", "vllm", "tensorrt-llm", "lmdeploy", "omni-infer", "deepseek-eplb", "vllm-ascend"):
                with refusing():
                    get_exporter(name).export(placement, ExportOptions())

    def seeds() -> Seeds:
        whole = json.loads(_map_bytes())
        whole["provenance"]["cluster"] = whole["cluster"] | {
            "inter_gbps": 400.0,
            "intra_gbps": 3600.0,
            "gpu_tflops": 400.0,
            "gpu_speeds": [1.0, 1.0, 2.0, 2.0],
            "topology": {"levels": [{"name": "rack", "nodes": 1, "gbps": 100.0}], "node_gbps": [], "rank_cost": []},
            "expert_bytes": 1,
            "dispatch_bytes": 1,
            "combine_bytes": 1,
        }
        whole["model"] |= {"num_groups": 2, "num_hidden_layers": 3}
        return {"plain": _map_bytes(), "cluster": json.dumps(whole).encode()}

    return Target(run=run, seeds=seeds, kind="json")


def _grouping_document() -> dict[str, Any]:
    return {
        "schema": "expert-grouping/1",
        "model": {"name": "small", "layer_ids": [0, 1], "num_experts": 6, "top_k": 2, "num_groups": None},
        "num_nodes": 2,
        "placement_hash": "sha256:0",
        "home_from": "prefill",
        "groups": [{"node": 0, "requests": 1, "tokens": 3, "domains": {"x": 1}}],
        "domains": [],
        "balance": {"tolerance": 0.1, "kept": True, "train": 1.0, "held_out": None, "routed": None},
        "cost": {"sends_per_token": 1.0, "bound": 0.5, "gap": 0.5},
        "gains": [],
        "without_tokens": ["b"],
        "provenance": {"version": "0"},
        "router": {
            "num_layers": 2,
            "top_k": 2,
            "layers": [1],
            "keeps": 1.0,
            "band": 0.01,
            "slack_tokens": 5.0,
            "saved": [[[0.5, 0.25]] * 6],
        },
        "homes": {"a": 0, "c": 1},
    }


def _grouping() -> Target:
    def run(data: bytes) -> None:
        with folder() as base, refusing():
            (base / "g.json").write_bytes(data)
            file = load_grouping(base / "g.json")
            router = file.router.router()
            if router.num_layers * router.num_experts < 1 << 16:
                router.assign(np.ones((router.num_layers, router.num_experts), dtype=np.int64))
            file.check_fits(small_placement())

    return Target(run=run, seeds=lambda: {"sound": json.dumps(_grouping_document()).encode()}, kind="json")


def _cluster() -> Target:
    def run(data: bytes) -> None:
        with folder() as base, refusing():
            (base / "c.yaml").write_bytes(data)
            cluster = cluster_from_yaml(base / "c.yaml", 8)
            cluster.speed_G()
            where = cluster.num_nodes, cluster.gpus_per_node, cluster.inter_gbps
            cluster.topology.node_cost_NN(*where)
            cluster.topology.rank_cost_NG(*where)

    def seeds() -> Seeds:
        racks = (
            "num_nodes: 4\ngpus_per_node: 2\nredundant_experts: 8\ninter_gbps: 400.0\n"
            "gpu_speeds: [1.0, 1, 1, 1, 2, 2, 2, 2]\n"
            "topology:\n  levels:\n  - {name: rack, nodes: 2, gbps: 100.0}\n  node_gbps: [400.0, 400.0, 200.0, 400.0]\n"
        )
        matrix = "num_nodes: 2\ngpus_per_node: 1\ntopology: {rank_cost: [[0.0, 1.0], [1.0, 0.0]]}\nexpert_bytes: 5\n"
        return {"racks": racks.encode(), "matrix": matrix.encode(), "small": b"num_nodes: 2\nslots_per_gpu: 1\n"}

    return Target(run=run, seeds=seeds, kind="yaml")


def _engine_map(name: str, suffix: str) -> Target:
    importer = get_importer(name)

    def run(data: bytes) -> None:
        for layers, hidden in (((0, 1), 2), (None, None)):
            with refusing():
                file = importer.read(data, suffix)
                placement = imported(
                    file,
                    name="m",
                    top_k=2,
                    num_nodes=2,
                    gpus_per_node=2 if file.num_ranks is None else None,
                    layer_ids=layers,
                    num_hidden_layers=hidden,
                )
                document_bytes(placement_document(placement))

    def seeds() -> Seeds:
        return {"sound": exported(get_exporter(name), small_placement(), suffix).content}

    kinds = {".json": "json", ".npy": "npy", ".yaml": "yaml", ".safetensors": "safetensors"}
    return Target(run=run, seeds=seeds, kind=kinds.get(suffix, "zip"))


# --- checkpoints ------------------------------------------------------------------------------------------------------


def _safetensors() -> Target:
    """The only file of a checkpoint: its header, how experts are named in it, and a map applied to it."""

    def run(data: bytes) -> None:
        with folder() as base, refusing():
            (base / "in").mkdir()
            (base / "in" / "model.safetensors").write_bytes(data)
            checkpoint = open_checkpoint(base / "in")
            find_experts(checkpoint.files, checkpoint.folder)
            apply_map(base / "in", small_placement(layer_ids=(1, 2)), base / "out")

    def seeds() -> Seeds:
        from checkpoints import write_checkpoint

        with folder() as base:
            layouts = ("mixtral", "deepseek-fp8", "gpt-oss")
            return {
                layout: (write_checkpoint(base / layout, layout) / "model.safetensors").read_bytes()
                for layout in layouts
            }

    return Target(run=run, seeds=seeds, kind="safetensors")


def _index() -> Target:
    def run(data: bytes) -> None:
        with folder() as base, refusing():
            (base / "model.safetensors.index.json").write_bytes(data)
            (base / "a.safetensors").write_bytes(save({"x": np.zeros(2, dtype=np.float32)}))
            open_checkpoint(base)

    names = {"metadata": {}, "weight_map": {"x": "a.safetensors"}}
    return Target(run=run, seeds=lambda: {"sound": json.dumps(names).encode()}, kind="json")


_APPLIED: dict[str, bytes] = {}


def _applied_files() -> dict[str, bytes]:
    """A folder that `placement apply` wrote, made once."""
    if not _APPLIED:
        from checkpoints import write_checkpoint

        with folder() as base:
            write_checkpoint(base / "in", "gpt-oss")
            apply_map(base / "in", small_placement(layer_ids=(1, 2)), base / "out")
            _APPLIED.update({one.name: one.read_bytes() for one in (base / "out").iterdir()})
    return _APPLIED


def _applied(part: str) -> Target:
    def run(data: bytes) -> None:
        with folder() as base, refusing():
            for name, content in _applied_files().items():
                (base / name).write_bytes(data if name == part else content)
            verify_applied(base)

    return Target(run=run, seeds=lambda: {"sound": _applied_files()[part]}, kind="json")


# --- the service ------------------------------------------------------------------------------------------------------


def _body(path: str) -> Target:
    """A request as FastAPI parses it, checked as far as can be without a database; no answer may be a 5xx."""
    made: list[Any] = []

    def run(data: bytes) -> None:
        if not made:
            made.append(_application())
        status = asyncio.run(_post(made[0], path, data))
        if status >= 500:
            raise AssertionError(f"answered {status}")

    def seeds() -> Seeds:
        from placement_api import bodies

        whole = {
            "counts": bodies.COUNTS_EXAMPLE | {"layer_ids": [3, 4], "model": "m"},
            "cluster": {"num_nodes": 2, "gpus_per_node": 1, "topology": {"node_gbps": [1.0, 2.0]}},
            "options": {"objective": "balance", "seed": 3},
            "group": {"home_from": "prefill", "tolerance": 0.1},
            "robust": "domain",
            "holdout": 0.1,
        }
        counts = [[5, 1, 0, 0, 2, 2], [1, 2, 3, 4, 0, 0]]
        found = {
            "/placements": [*bodies.PLACEMENT_EXAMPLES, whole],
            "/evaluations": [{"traces": ["a"], "replica_choice": "min-nodes", "transport": "node"}],
            "/route": [{"counts": counts}, {"counts": counts, "load": [900, 450]}],
            "/group": [{"batch": [counts, counts, counts], "size": 2}],
        }
        return {f"example-{number}": json.dumps(one).encode() for number, one in enumerate(found[path])}

    return Target(run=run, seeds=seeds, kind="json")


def _application() -> Any:
    from fastapi import FastAPI
    from placement_api import problems
    from placement_api.bodies import EvaluateBody, PlacementBody, options_of
    from placement_api.routes import maps
    from placement_api.settings import Limits
    from placement_api.store.files import LocalFiles
    from placement_api.store.traces import TraceFolders

    from placement.cluster_file import ClusterFile, cluster_of

    with folder() as base:
        (base / "g.json").write_text(json.dumps(_grouping_document()))
        router = load_grouping(base / "g.json").router.router()
    app = FastAPI()
    problems.install(app)

    async def placements(body: Any) -> None:
        request = body.model_dump(exclude={"counts"})
        json.dumps(request).encode()
        options_of(request["options"])
        cluster_of(ClusterFile.model_validate(request["cluster"]), 8)
        if body.counts is not None:
            with folder() as base:
                traces = TraceFolders(folder=base, files=LocalFiles(root=base), allowed=(), stores=(), limits=Limits())
                traces.take_counts(**body.counts.model_dump())

    async def evaluations(body: Any) -> None:
        json.dumps(body.model_dump()).encode()

    async def route(body: Any) -> Any:
        answer = maps.routed(router, body)
        json.loads(bytes(answer.body), parse_constant=_no_number)
        return answer

    async def group(body: Any) -> None:
        maps.grouped(router, body)

    takers = [
        (placements, PlacementBody),
        (evaluations, EvaluateBody),
        (route, maps.RouteBody),
        (group, maps.GroupsBody),
    ]
    for take, kind in takers:
        take.__annotations__["body"] = kind
        app.post(f"/{take.__name__}")(take)
    return app


def _no_number(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


async def _post(app: Any, path: str, data: bytes) -> int:
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        "scheme": "http",
        "root_path": "",
    }
    said: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": data, "more_body": False}

    async def send(message: Any) -> None:
        said.append(message)

    await app(scope, receive, send)
    return int(said[0]["status"])


def _archive() -> Target:
    def run(data: bytes) -> None:
        from placement_api.archives import unpack
        from placement_api.problems import Problem
        from placement_api.settings import Limits

        with folder() as base, refusing():
            (base / "archive").write_bytes(data)
            (base / "into").mkdir()
            try:
                unpack(base / "archive", base / "into", Limits(unpacked_bytes=1 << 20, archive_members=50))
            except Problem as error:
                if not (error.status in (413, 422) and error.body.mend):
                    raise AssertionError(f"answered {error.status}") from error
                return
            left = {path.name for path in base.iterdir()}
            if left != {"archive", "into"}:
                raise AssertionError(f"it wrote outside of its folder: {left}")
            open_trace(base / "into").tokens_Q()

    def seeds() -> Seeds:
        in_tar, in_zip = io.BytesIO(), io.BytesIO()
        with tarfile.open(fileobj=in_tar, mode="w") as tar, zipfile.ZipFile(in_zip, "w") as packed:
            for name, content in _trace_parts().items():
                member = tarfile.TarInfo(f"t/{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
                packed.writestr(zipfile.ZipInfo(f"t/{name}"), content, zipfile.ZIP_DEFLATED)
        tar_bytes = in_tar.getvalue()
        return {"tar": tar_bytes, "zip": in_zip.getvalue(), "tar.gz": gzip.compress(tar_bytes, mtime=0)}

    return Target(run=run, seeds=seeds, kind="zip")


def _table() -> dict[str, Callable[[], Target]]:
    dump = "expert_distribution_recorder_1764000000.5"
    table: dict[str, Callable[[], Target]] = {
        f"read-{case.replace('/', '-')}-{Path(file).suffix[1:]}": lambda case=case, file=file: _recording(case, file)
        for case, file in (
            ("sglang/per-token", f"{dump}_0.pt"),
            ("sglang/per-pass", f"{dump}_0.pt"),
            ("sglang/stat", f"{dump}.pt"),
            ("sglang-responses/generate", "responses.jsonl"),
            ("sglang-responses/chat", "responses.json"),
            ("vllm/responses", "responses.jsonl"),
            ("vllm/arrays", "a.npy"),
            ("routing-log/layer-major", "routes.jsonl"),
            ("megatron/training", "router_trace_rank0.jsonl"),
            ("tensorrt-llm/counts", "meta_info.json"),
            ("tensorrt-llm/counts", "rank0.safetensors"),
            ("tensorrt-llm/raw", "rank0_raw.safetensors"),
            ("llama-cpp/imatrix", "imatrix.gguf"),
            ("arrays/npz", "routes.npz"),
            ("arrays/npy", "a.npy"),
            ("parquet/table", "routes.parquet"),
        )
    }
    for name, suffix in (
        ("sglang", ".json"),
        ("sglang", ".pt"),
        ("vllm", ".json"),
        ("vllm-ascend", ".json"),
        ("tensorrt-llm", ".yaml"),
        ("omni-infer", ".npy"),
        ("deepseek-eplb", ".safetensors"),
        ("deepseek-eplb", ".npz"),
    ):
        table[f"map-{name}-{suffix[1:]}"] = lambda name=name, suffix=suffix: _engine_map(name, suffix)
    return table | {
        "trace-manifest": lambda: _trace("trace.json"),
        "trace-shard": lambda: _trace("shard-00000.safetensors"),
        "counts-npy": lambda: _counts(".npy"),
        "counts-npz": lambda: _counts(".npz"),
        "counted-manifest": lambda: _counted("counts.json"),
        "counted-arrays": lambda: _counted("counts.safetensors"),
        "placement": _placement,
        "grouping": _grouping,
        "cluster": _cluster,
        "checkpoint": _safetensors,
        "checkpoint-index": _index,
        "checkpoint-manifest": lambda: _applied("manifest.json"),
        "checkpoint-sources": lambda: _applied("sources.json"),
        "body-placements": lambda: _body("/placements"),
        "body-evaluations": lambda: _body("/evaluations"),
        "body-route": lambda: _body("/route"),
        "body-group": lambda: _body("/group"),
        "archive": _archive,
    }


TARGETS = _table()
