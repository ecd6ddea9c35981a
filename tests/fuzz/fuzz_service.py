"""Targets: bodies of requests and archives, as the service takes them."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import tarfile
import zipfile
from typing import Any

from fuzz_base import Seeds, Target, folder, refusing
from fuzz_maps import grouping_document
from fuzz_traces import trace_parts

from placement.grouping.grouping_file import load_router
from placement.traces.trace import open_trace


def request_body(path: str) -> Target:
    """A request as FastAPI parses it, checked as far as can be without a database; no answer may be a 5xx."""
    made: list[Any] = []

    def run(data: bytes) -> None:
        if not made:
            made.append(_application())
        status, _ = asyncio.run(ask(made[0], path, data))
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
    from placement_api.problems import Problem
    from placement_api.routes import maps
    from placement_api.routes.json_bodies import BodyRoute
    from placement_api.settings import Limits
    from placement_api.store.files import LocalFiles
    from placement_api.store.traces import TraceFolders

    from placement.documents.cluster_yaml import ClusterFile, cluster_of

    with folder() as base:
        (base / "g.json").write_text(json.dumps(grouping_document()))
        router = load_router(base / "g.json")
    app = FastAPI()
    app.router.route_class = BodyRoute
    problems.install(app, Problem.response)

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


def one_call() -> Target:
    """A trace and a request in one body of multipart/form-data; what the trace holds is for `archive` to fuzz."""
    made: list[Any] = []

    def run(data: bytes) -> None:
        if not made:
            made.append(_one_call())
        status, _ = asyncio.run(ask(made[0], "/placements", data, b"multipart/form-data; boundary=x"))
        if status >= 500:
            raise AssertionError(f"answered {status}")

    def seeds() -> Seeds:
        request = json.dumps({"cluster": {"num_nodes": 2}, "options": {"seed": 3}, "holdout": 0.1})
        head = '--x\r\nContent-Disposition: form-data; name="{}"{}\r\n\r\n{}\r\n'
        file = head.format("file", '; filename="t.tar"\r\nContent-Type: application/x-tar', "a trace")
        field = head.format("request", "\r\nContent-Type: application/json", request)
        part = head.format("request", '; filename="r.json"\r\nContent-Type: application/json', request)
        read_as = head.format("top_k", "", "2") + head.format("from", "", "vllm")
        return {
            name: f"{body}--x--\r\n".encode()
            for name, body in (("field", field + file), ("file", file + part), ("recording", file + read_as + field))
        }

    return Target(run=run, seeds=seeds, kind="bytes")


def _one_call() -> Any:
    from types import SimpleNamespace

    from fastapi import FastAPI
    from placement_api import problems
    from placement_api.bodies import PlacementBody
    from placement_api.routes import one_call, traces
    from placement_api.settings import Limits

    async def placements(body: Any) -> None:
        json.dumps(body.model_dump()).encode()

    traces.take = lambda here, caller, file, read_as: SimpleNamespace(id=f"{len(file.file.read())}")
    app = FastAPI()
    limits, tokens = Limits(), SimpleNamespace(spend=lambda *_: None)
    app.state.service = SimpleNamespace(settings=SimpleNamespace(limits=limits), tokens=tokens)
    app.router.route_class = one_call.OneCallRoute
    problems.install(app, problems.Problem.response)
    placements.__annotations__["body"] = PlacementBody
    app.post("/placements")(placements)
    return app


async def ask(
    app: Any, path: str, data: bytes, media: bytes = b"application/json", method: str = "POST"
) -> tuple[int, bytes]:
    """The status and the body of an answer to who may solve and promote."""
    from placement_api.tokens import Caller

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"content-type", media), (b"content-length", str(len(data)).encode())],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        "scheme": "http",
        "root_path": "",
        "state": {"caller": Caller(id="a", name="a", scopes=("read", "solve", "promote"))},
    }
    said: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": data, "more_body": False}

    async def send(message: Any) -> None:
        said.append(message)

    await app(scope, receive, send)
    return int(said[0]["status"]), b"".join(one.get("body", b"") for one in said[1:])


def archive() -> Target:
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
            for name, content in trace_parts().items():
                member = tarfile.TarInfo(f"t/{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
                packed.writestr(zipfile.ZipInfo(f"t/{name}"), content, zipfile.ZIP_DEFLATED)
        tar_bytes = in_tar.getvalue()
        return {"tar": tar_bytes, "zip": in_zip.getvalue(), "tar.gz": gzip.compress(tar_bytes, mtime=0)}

    return Target(run=run, seeds=seeds, kind="zip")
