"""An external processor: Envoy asks, before it or an endpoint picker chooses, at which endpoints a request is at home.

The protocol is Envoy's `envoy/service/ext_proc/v3/external_processor.proto`, with the messages of gRPC's xds-protos.
The endpoints of the home node go where the endpoint picker protocol of Kubernetes' Gateway API inference extension (its
proposal 004; llm-d's router too) looks for them: in the dynamic metadata `envoy.lb.subset_hint`, and in a header.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Any

from envoy.config.core.v3.base_pb2 import HeaderMap, HeaderValue, HeaderValueOption
from envoy.extensions.filters.http.ext_proc.v3.processing_mode_pb2 import ProcessingMode
from envoy.service.ext_proc.v3.external_processor_pb2 import (
    BodyMutation,
    BodyResponse,
    CommonResponse,
    HeaderMutation,
    HeadersResponse,
    HttpBody,
    ProcessingRequest,
    ProcessingResponse,
    StreamedBodyResponse,
    TrailersResponse,
)
from google.protobuf.struct_pb2 import Struct

from placement_api.proxy.asked import PROMPT_PATHS
from placement_api.proxy.decide import Decider, Read
from placement_api.proxy.lengths import Usage

NAMESPACE = "envoy.lb.subset_hint"
SUBSET = "x-gateway-destination-endpoint-subset"
LLM_D_SUBSET = "x-llm-d-router-destination-endpoint-subset"  # what llm-d calls it now
CHUNK_BYTES = 60_000  # of a body that is handed back; Envoy takes 64 KiB

OVERWRITE = HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
DUPLEX, STREAMED = ProcessingMode.FULL_DUPLEX_STREAMED, ProcessingMode.STREAMED

logger = logging.getLogger(__name__)


class Processor:
    """Answers the streams of Envoy, one for each HTTP request; of one event loop.

    Args:
        decider: Gives requests their homes.
        endpoints: `host:port` of every backend of the decider's tables.
        body_bytes: Of a longer body nothing is read.
    """

    def __init__(self, decider: Decider, endpoints: tuple[str, ...], body_bytes: int) -> None:
        self.decider, self.body_bytes = decider, body_bytes
        self._endpoints = endpoints

    def subset(self, node: int) -> list[str]:
        """The endpoints of a node."""
        targets = self.decider.homes.tables.targets
        return list(dict.fromkeys(self._endpoints[one.backend] for one in targets if one.node == node))

    async def process(self, requests: AsyncIterator[ProcessingRequest], _: Any) -> AsyncIterator[ProcessingResponse]:
        """Every message of a stream gets its answers; the request is in flight until the stream ends."""
        with ExitStack() as running:
            talk = Talk(self, running)
            async for request in requests:
                for answer in await talk.answers(request):
                    yield answer


class Talk:
    """What was said on one stream so far.

    Args:
        processor: Whose stream it is.
        running: Ends with the request.
    """

    def __init__(self, processor: Processor, running: ExitStack) -> None:
        self._processor, self._running = processor, running
        self._headers: dict[bytes, bytes] = {}
        self._wanted = False  # a prompt is to come, and no home is told yet
        self._mode = self._answer_mode = ProcessingMode.NONE
        self._parts: list[bytes] = []
        self._read: Read | None = None
        self._usage = Usage()
        self._fine = False  # the answer is one of success

    async def answers(self, request: ProcessingRequest) -> list[ProcessingResponse]:
        """What to say to a message: one thing, or in full duplex none or several."""
        if request.HasField("protocol_config"):
            self._mode = request.protocol_config.request_body_mode
            self._answer_mode = request.protocol_config.response_body_mode
        match request.WhichOneof("request"):
            case "request_headers":
                return self._asked(request.request_headers.headers, request.request_headers.end_of_stream)
            case "request_body":
                return await self._body(request.request_body)
            case "request_trailers":
                told = [] if not self._waits else [self._told_early(await self._decided()), *self._handed_back(False)]
                return [*told, ProcessingResponse(request_trailers=TrailersResponse())]
            case "response_headers":
                headers = request.response_headers.headers.headers
                status = next((one.raw_value or one.value.encode() for one in headers if one.key == ":status"), b"")
                self._fine = status.startswith(b"2")
                return [ProcessingResponse(response_headers=HeadersResponse())]
            case "response_body":
                self._seen(request.response_body)
                return [ProcessingResponse(response_body=_passed(request.response_body, self._answer_mode))]
            case _:
                return [ProcessingResponse(response_trailers=TrailersResponse())]

    @property
    def _waits(self) -> bool:
        """Envoy holds the headers back until they are answered, and sends the body meanwhile."""
        return self._wanted and self._mode == DUPLEX

    def _asked(self, headers: HeaderMap, ends: bool) -> list[ProcessingResponse]:
        self._headers = {one.key.encode(): one.raw_value or one.value.encode() for one in headers.headers}
        path = self._headers.get(b":path", b"").decode("latin-1").partition("?")[0]
        post = self._headers.get(b":method") == b"POST"
        self._wanted = post and path in PROMPT_PATHS and not ends
        return [] if self._waits else [ProcessingResponse(request_headers=HeadersResponse())]

    async def _body(self, value: HttpBody) -> list[ProcessingResponse]:
        if not self._wanted:
            return [ProcessingResponse(request_body=_passed(value, self._mode))]
        self._parts.append(value.body)
        complete = value.end_of_stream or self._mode not in (DUPLEX, STREAMED)
        if not complete and sum(map(len, self._parts)) <= self._processor.body_bytes:
            return [] if self._waits else [ProcessingResponse(request_body=BodyResponse())]
        waits, node = self._waits, await self._decided()
        if waits:
            return [self._told_early(node), *self._handed_back(value.end_of_stream)]
        response = BodyResponse(response=CommonResponse(header_mutation=self._header(node)))
        return [ProcessingResponse(request_body=response, dynamic_metadata=self._metadata(node))]

    def _seen(self, part: HttpBody) -> None:
        """A part of the answer passes by."""
        self._usage.see(part.body)
        if part.end_of_stream and self._read is not None:
            self._processor.decider.learn(self._read, self._usage.tokens() if self._fine else None)
            self._read = None

    async def _decided(self) -> int:
        """The home node; the request is in flight from now on."""
        decider, homes = self._processor.decider, self._processor.decider.homes
        self._wanted = False
        if sum(map(len, self._parts)) > self._processor.body_bytes:
            decider.unchanged("long")
            choice = homes.least_loaded()
        else:
            choice, self._read = await decider.choose(b"".join(self._parts), self._headers)
        at = homes.target(choice, frozenset())
        target = self._running.enter_context(homes.running(0 if at is None else at, choice.tokens))
        decider.metrics.homes.labels(str(target.node), choice.why).inc()
        return target.node

    def _told_early(self, node: int) -> ProcessingResponse:
        response = HeadersResponse(response=CommonResponse(header_mutation=self._header(node)))
        return ProcessingResponse(request_headers=response, dynamic_metadata=self._metadata(node))

    def _handed_back(self, ends: bool) -> list[ProcessingResponse]:
        """The body that was held back, as it came."""
        body, self._parts = b"".join(self._parts), []
        starts = range(0, max(len(body), 1), CHUNK_BYTES)
        return [
            ProcessingResponse(
                request_body=_passed(
                    HttpBody(body=body[at : at + CHUNK_BYTES], end_of_stream=ends and at == starts[-1]), DUPLEX
                )
            )
            for at in starts
        ]

    def _header(self, node: int) -> HeaderMutation:
        value = ",".join(self._processor.subset(node)).encode()
        header = HeaderValue(key=SUBSET, raw_value=value)
        return HeaderMutation(set_headers=[HeaderValueOption(header=header, append_action=OVERWRITE)])

    def _metadata(self, node: int) -> Struct:
        subset = self._processor.subset(node)
        told = Struct()
        told.update({NAMESPACE: {SUBSET: subset, LLM_D_SUBSET: subset}})
        return told


def _passed(value: HttpBody, mode: int) -> BodyResponse:
    """A part of a body goes on as it came; in full duplex Envoy has it only from us."""
    if mode != DUPLEX:
        return BodyResponse()
    streamed = StreamedBodyResponse(body=value.body, end_of_stream=value.end_of_stream)
    return BodyResponse(response=CommonResponse(body_mutation=BodyMutation(streamed_response=streamed)))
