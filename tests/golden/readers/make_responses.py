"""Writes responses of SGLang and vLLM in the forms of their versions, and the arrays that vLLM stores."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
from recorded_routing import REQUESTS, TOP_K, expect, folder, hidden, lists_of, npy_text, tokens_of


def sglang_responses() -> None:
    path = folder("sglang-responses/generate")
    with (path / "responses.jsonl").open("w") as file:
        for name, (prompt, answer) in REQUESTS.items():
            data = hidden(name).astype("<i4").tobytes()
            meta = {"id": name, "prompt_tokens": prompt, "completion_tokens": answer + 1}
            meta["routed_experts"] = base64.b64encode(data).decode()
            file.write(json.dumps({"text": "", "meta_info": meta}) + "\n")
    expect("sglang-responses/generate", {name: tokens_of(name) for name in REQUESTS}, "generate", {"top_k": TOP_K})
    path = folder("sglang-responses/chat")
    documents = []
    for name, (prompt, answer) in REQUESTS.items():
        text = base64.b64encode(hidden(name).astype("<i4").tobytes()).decode()
        usage = {"prompt_tokens": prompt, "completion_tokens": answer + 1, "total_tokens": prompt + answer + 1}
        documents.append({"id": name, "choices": [], "usage": usage, "sglext": {"routed_experts": text}})
    (path / "responses.json").write_text(json.dumps(documents, indent=1))
    expect("sglang-responses/chat", {name: tokens_of(name) for name in REQUESTS}, "chat", {"top_k": TOP_K})


def vllm() -> None:
    path = folder("vllm/responses")
    with (path / "responses.jsonl").open("w") as file:
        for name, (prompt, answer) in REQUESTS.items():
            buffer = io.BytesIO()
            np.save(buffer, hidden(name).astype(np.uint8))
            usage = {"prompt_tokens": prompt, "completion_tokens": answer + 1, "total_tokens": prompt + answer + 1}
            choice = {"index": 0, "text": "", "routed_experts": base64.b64encode(buffer.getvalue()).decode()}
            file.write(json.dumps({"id": name, "choices": [choice], "usage": usage}) + "\n")
    expect("vllm/responses", {name: tokens_of(name) for name in REQUESTS}, "responses")
    path = folder("vllm/arrays")
    for name in REQUESTS:
        np.save(path / f"{name}.npy", hidden(name).astype(np.uint8))
    expect("vllm/arrays", {name: tokens_of(name, phases=False) for name in REQUESTS}, "arrays")


def responses_by_version() -> None:
    """The forms of routed_experts of other versions, and a log with what has none."""

    def log(case: str, responses: dict[str, Any], options: Any = None, **more: Any) -> None:
        lines = [responses["a"], {"error": {"message": "too long", "code": 400}}, responses["b"], None, responses["c"]]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder(case) / "responses.jsonl").write_text(text + '{"id": "d", "choi\n')
        requests = more.pop("requests", None) or {name: tokens_of(name) for name in REQUESTS}
        expect(case, requests, case.split("/")[1], options, **more)

    def usage(name: str) -> dict[str, int]:
        prompt, answer = REQUESTS[name]
        return {"prompt_tokens": prompt, "completion_tokens": answer + 1, "total_tokens": prompt + answer + 1}

    arrays = {name: hidden(name) for name in REQUESTS}
    apart, payloads, generated, typed = {}, {}, {}, {}
    for name, (prompt, answer) in REQUESTS.items():
        array = arrays[name].astype(np.uint8)
        choice = {"index": 0, "routed_experts": npy_text(array[prompt:].astype(np.int32))}
        apart[name] = {"id": name, "choices": [choice], "prompt_routed_experts": npy_text(array[:prompt])}
        apart[name] |= {"usage": usage(name)}
        data = base64.b64encode(array.astype("<u2").tobytes()).decode()
        payload = {"data": data, "shape": list(array.shape), "dtype": "uint16", "start": 0}
        payloads[name] = {"id": name, "choices": [{"index": 0, "routed_experts": payload}], "usage": usage(name)}
        choice = {"index": 0, "token_ids": list(range(answer + 1)), "routed_experts": npy_text(array)}
        generated[name] = {"request_id": name, "choices": [choice]}
        meta = usage(name) | {"id": name, "routed_experts_dtype": "uint8"}
        meta["routed_experts"] = base64.b64encode(array.tobytes()).decode()
        typed[name] = {"text": "", "meta_info": meta}
    requests = {name: [one | {"token": -1} for one in tokens_of(name)] for name in REQUESTS}  # of a prompt untold
    for name, (prompt, _) in REQUESTS.items():
        requests[name][prompt:] = [one | {"token": one["position"] - prompt} for one in requests[name][prompt:]]
    log("vllm/prompts-apart", apart)
    log("vllm/payloads", payloads)
    log("vllm/generate", generated, requests=requests)
    log("sglang-responses/typed", typed, {"top_k": TOP_K})


def token_ids() -> None:
    """Responses with the ids of their tokens; the rows of b begin behind a prefix that was cached."""
    cached = 2
    expected = {name: tokens_of(name, ids=True) for name in REQUESTS}
    expected["b"] = expected["b"][cached:]
    chats, natives = [], []
    for name, (prompt, answer) in REQUESTS.items():
        array = hidden(name)[cached:] if name == "b" else hidden(name)
        usage = {"prompt_tokens": prompt, "completion_tokens": answer + 1, "total_tokens": prompt + answer + 1}
        asked, given = lists_of(name)
        choice = {"index": 0, "token_ids": given, "routed_experts": npy_text(array.astype(np.uint8))}
        chats.append({"id": name, "choices": [choice], "prompt_token_ids": asked, "usage": usage})
        meta = {"id": name, "prompt_tokens": prompt, "completion_tokens": answer + 1}
        meta["routed_experts"] = base64.b64encode(array.astype("<i4").tobytes()).decode()
        natives.append({"text": "", "output_ids": given, "prompt_token_ids": asked, "meta_info": meta})
    for case, documents, options in (
        ("vllm/token-ids", chats, {}),
        ("sglang-responses/token-ids", natives, {"top_k": TOP_K}),
    ):
        text = "".join(json.dumps(one) + "\n" for one in documents)
        (folder(case) / "responses.jsonl").write_text(text)
        expect(case, expected, "token-ids", options, prompts={"b": lists_of("b")[0]})
