"""What `placement route` sends is read by the engines' own code as the rank that was meant."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from partial_package import StandIn
from placement_api.proxy.doors import DOORS

pytestmark = pytest.mark.engines

Load = Callable[[str], ModuleType]
SGLANG_OPENAI, SGLANG_SERVING = "sglang.srt.entrypoints.openai.protocol", "sglang.srt.entrypoints.openai.serving_base"
SGLANG_NATIVE, SGLANG_RANKS = "sglang.srt.managers.io_struct", "sglang.srt.managers.data_parallel_controller"
VLLM_SERVING, VLLM_ENGINES = "vllm.entrypoints.generate.base.serving", "vllm.v1.engine.core_client"
DYNAMO = "dynamo.frontend.sglang_processor"
RANK = 3

MESSAGES = [
    {"role": "system", "content": "short"},
    {"role": "user", "content": [{"type": "text", "text": "what"}, {"type": "text", "text": "why"}]},
]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
BODIES: dict[str, dict[str, Any]] = {
    "ChatCompletionRequest": {"model": "m", "messages": MESSAGES, "tools": [TOOL], "n": 2, "stream": True},
    "CompletionRequest": {"model": "m", "prompt": [[1, 2], [3]], "max_tokens": 4, "n": 2},
    "ResponsesRequest": {"model": "m", "input": "what", "instructions": "short"},
}


def handed_over(engine: str, body: dict[str, Any], **more: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """The body and the headers that the engine gets."""
    content = json.dumps(body).encode()
    told = DOORS[engine](**more).hand_over(content, body, {}, RANK)
    assert told is not None
    return json.loads(told[0]), {name.decode(): value.decode() for name, value in told[1]}


def raw_request(headers: dict[str, str]) -> Any:
    from starlette.requests import Request

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": raw, "query_string": b""})


@pytest.mark.parametrize("engine", ["sglang", "sglang-disagg"])
@pytest.mark.parametrize("kind", BODIES)
def test_sglang_reads_the_rank_of_openai_requests(import_engine: Callable[..., Load], engine: str, kind: str) -> None:
    """All that the client wrote is read as without us."""
    for name in ("openai", "msgspec"):
        pytest.importorskip(name)
    load = import_engine("sglang", SGLANG_OPENAI)
    of = getattr(load(SGLANG_OPENAI), kind)
    body, headers = handed_over(engine, BODIES[kind])
    request = of.model_validate(body)
    ranks = {"routed_dp_rank": RANK} | ({"disagg_prefill_dp_rank": RANK} if engine == "sglang-disagg" else {})
    assert headers == {}
    assert {name: getattr(request, name) for name in ranks} == ranks
    own = {"created_at", "request_id", "metadata", "_", *ranks}
    plain = of.model_validate(BODIES[kind])
    assert request.model_dump(exclude=own) == plain.model_dump(exclude=own)


def test_sglang_sends_the_request_to_the_rank(
    import_engine: Callable[..., Load], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its controller of data-parallel ranks, whatever its policy is."""
    for name in ("setproctitle", "zmq"):
        monkeypatch.setitem(sys.modules, name, StandIn(name))
    load = import_engine("sglang", SGLANG_RANKS)
    controller = load(SGLANG_RANKS)
    sent: list[tuple[str, Any]] = []
    controller.sock_send = lambda worker, request: sent.append((worker, request))
    body, _ = handed_over("sglang", {"text": "what"})
    request = SimpleNamespace(routed_dp_rank=body["routed_dp_rank"], bootstrap_room=1, input_ids=[1])
    workers = [f"worker {rank}" for rank in range(8)]
    state = SimpleNamespace(workers=workers, _active_workers=list(range(8)))
    state.maybe_external_dp_rank_routing = lambda one: controller.DataParallelController.maybe_external_dp_rank_routing(
        state, one
    )
    for policy in ("round_robin", "follow_bootstrap_room", "total_requests", "total_tokens"):
        getattr(controller.DataParallelController, f"{policy}_scheduler")(state, request)
    assert sent == [(f"worker {RANK}", request)] * 4


def test_sglang_knows_the_fields_of_native_requests(engine_source: Callable[[str], Any]) -> None:
    """`/generate` takes the fields of the dataclass `GenerateReqInput`; its module needs the whole engine."""
    import ast

    tree = ast.parse((engine_source("sglang") / "sglang/srt/managers/io_struct.py").read_text())
    (of,) = [one for one in tree.body if isinstance(one, ast.ClassDef) and one.name == "GenerateReqInput"]
    known = {one.target.id for one in of.body if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)}
    body, _ = handed_over("sglang-disagg", {"text": "what", "input_ids": [1], "sampling_params": {}})
    assert set(body) <= known


def test_vllm_reads_the_header_and_sends_the_request_to_the_rank(
    import_engine: Callable[..., Load], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its serving reads the rank of the header, its client of engine cores takes the core of this rank.

    The body is the client's own, which its request classes read as without us.
    """
    for name in ("zmq", "zmq.asyncio"):
        monkeypatch.setitem(sys.modules, name, StandIn(name))
    load = import_engine("vllm", VLLM_SERVING, VLLM_ENGINES)
    for module, name in (
        ("vllm.entrypoints.generate.beam_search.online", "BeamSearchOnlineMixin"),
        ("vllm.entrypoints.serve.engine.serving", "BaseServing"),
        ("vllm.entrypoints.serve.engine.typing", "AnyRequest"),
    ):
        setattr(load(module), name, type(name, (), {}))
    body, headers = handed_over("vllm", BODIES["ChatCompletionRequest"])
    assert body == BODIES["ChatCompletionRequest"]
    rank = load(VLLM_SERVING).GenerateBaseServing._get_data_parallel_rank(raw_request(headers))
    assert rank == RANK
    engines = load(VLLM_ENGINES)
    client = SimpleNamespace(
        streaming_reqs=set(),
        reqs_in_flight={},
        core_engines=[f"engine {one}" for one in range(8)],
        lb_engines=[[0, 0, 0.0]] * 8,
        engine_inflight=dict.fromkeys((f"engine {one}" for one in range(8)), 0),
        client_count=1,
        eng_start_index=0,
    )
    request = SimpleNamespace(request_id="r", resumable=False, data_parallel_rank=rank, pooling_params=None)
    chosen = engines.DPLBAsyncMPClient.get_core_engine_for_request(client, request)
    assert chosen == f"engine {RANK}"


@pytest.mark.parametrize("given", [None, {"extra_fields": ["timing"], "agent_hints": {"osl": 128}}])
@pytest.mark.parametrize("instances", [(), (2**64 - 1,)])
def test_dynamo_projects_the_rank_to_its_router(
    import_engine: Callable[..., Load], given: dict[str, Any] | None, instances: tuple[int, ...]
) -> None:
    """Rank and worker are where its router looks; what the client wrote into `nvext` is still there."""
    import_engine("sglang")
    load = import_engine("ai_dynamo", DYNAMO)
    processor = load(DYNAMO)
    processor.extract_mm_urls = lambda messages: ({}, {})
    asked = BODIES["ChatCompletionRequest"] | ({} if given is None else {"nvext": given})
    body, _ = handed_over("dynamo", asked, instances=instances)
    routing = processor._build_dynamo_preproc(body, [1], "m", None)["routing"]
    expected = {"dp_rank": RANK} | ({"backend_instance_id": instances[0]} if instances else {})
    assert {name: routing[name] for name in expected} == expected
    assert {name: body["nvext"][name] for name in given or {}} == (given or {})
    if given is not None:
        assert routing["expected_output_tokens"] == 128
