"""Writes the recordings beside this file, without the library: `python tests/golden/readers/make.py [FOLDER]`.

Every format records the same routing: three hidden layers of which the first is dense, six experts, top-2, requests a,
b and c with 8, 6 and 3 tokens of which 5, 4 and 3 are of the prompt. `<case>.json` beside the folder of a recording
says what must come out, and the options it needs. Needs torch and pyarrow.
"""

from __future__ import annotations

import base64
import io
import json
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
REQUESTS = {"a": (5, 3), "b": (4, 2), "c": (3, 0)}  # tokens of the prompt, of the answer
LAYERS, EXPERTS, TOP_K = (1, 2), 6, 2
SLOTS = [[0, 1, 2, 3, 4, 5, 0, 1], [0, 1, 2, 3, 4, 5, 0, 1], [5, 4, 3, 2, 1, 0, 5, 4]]  # expert of each slot
DUMMIES = 16
FIRST_ID = {"a": 1000, "b": 2000, "c": 3000}  # of the tokens of a request; the others follow

rng = np.random.default_rng(7)
IDS = {
    name: np.argsort(rng.random((sum(lengths), len(LAYERS), EXPERTS)), axis=2)[:, :, :TOP_K]
    for name, lengths in REQUESTS.items()
}
WEIGHTS = {name: np.sort(rng.random(ids.shape), axis=2)[:, :, ::-1].astype(np.float32) for name, ids in IDS.items()}


def token(name: str, position: int) -> dict[str, Any]:
    return {"position": position, "phase": int(position >= REQUESTS[name][0]), "ids": IDS[name][position].tolist()}


def expect(case: str, requests: dict[str, list[dict[str, Any]]], model: str, options: Any = None, **more: Any) -> None:
    """Tokens of every request by its name in the trace."""
    document = {
        "model": {"name": model, "layer_ids": LAYERS, "num_experts": EXPERTS, "top_k": TOP_K},
        "options": options or {},
        "requests": requests,
        **more,
    }
    (HERE / f"{case}.json").write_text(json.dumps(document) + "\n")


def expect_counts(case: str, counts: np.ndarray, model: str, options: Any = None, **more: Any) -> None:
    expect(case, {}, model, options, counts=counts.tolist(), **more)


def folder(case: str) -> Path:
    path = HERE / case
    path.mkdir(parents=True, exist_ok=True)
    return path


def tokens_of(name: str, *, phases: bool = True, ids: bool = False) -> list[dict[str, Any]]:
    """What must come out of a request; with the ids of its tokens where they were recorded."""
    found = [token(name, position) for position in range(sum(REQUESTS[name]))]
    found = [one | {"token": FIRST_ID[name] + one["position"]} for one in found] if ids else found
    return found if phases else [one | {"phase": 0} for one in found]


def lists_of(name: str) -> tuple[list[int], list[int]]:
    """Ids of the prompt, and of the answer, whose last token has no row."""
    prompt, answer = REQUESTS[name]
    ids = list(range(FIRST_ID[name], FIRST_ID[name] + prompt + answer + 1))
    return ids[:prompt], ids[prompt:]


def hidden(name: str) -> np.ndarray:
    """[T, hidden layers, K] with a dense layer's zeros."""
    ids = IDS[name]
    return np.concatenate([np.zeros_like(ids[:, :1]), ids], axis=1)


def total_counts() -> np.ndarray:
    count = np.zeros((len(LAYERS), EXPERTS), dtype=np.int64)
    for ids in IDS.values():
        for layer in range(len(LAYERS)):
            np.add.at(count[layer], ids[:, layer].reshape(-1), 1)
    return count


# passes of the server: (mode of SGLang, [(request, first token, tokens)])
PASSES = [
    (1, [("a", 0, 5), ("b", 0, 4)]),
    (2, [("a", 5, 1), ("b", 4, 1)]),
    (1, [("c", 0, 3)]),
    (2, [("a", 6, 1), ("b", 5, 1)]),
    (2, [("a", 7, 1)]),
]


def pass_counts() -> np.ndarray:
    counts = np.zeros((len(PASSES), len(LAYERS), EXPERTS), dtype=np.int64)
    for number, (_, parts) in enumerate(PASSES):
        for name, first, size in parts:
            for layer in range(len(LAYERS)):
                np.add.at(counts[number, layer], IDS[name][first : first + size, layer].reshape(-1), 1)
    return counts


def slots_of(experts: np.ndarray, layer: int, which: np.random.Generator) -> np.ndarray:
    """A slot of every expert, any of its replicas."""
    pick = [[slot for slot, held in enumerate(SLOTS[layer]) if held == expert] for expert in range(EXPERTS)]
    flat = [pick[expert][which.integers(len(pick[expert]))] for expert in experts.reshape(-1).tolist()]
    return np.array(flat).reshape(experts.shape)


def sglang() -> None:
    import torch

    which = np.random.default_rng(3)
    slot_map = torch.tensor(SLOTS)
    records, passes = [], []
    dummy = np.full((3, DUMMIES, 8), -1, dtype=np.int32)
    dummy[1:, :, :2] = [2, 3]
    rows: list[tuple[int, list[int], list[int], np.ndarray, list[int]]] = []
    rows.append((1, list(range(DUMMIES)), [DUMMIES], dummy, [7] * DUMMIES))
    for mode, parts in PASSES:
        ids = np.concatenate([IDS[name][first : first + size] for name, first, size in parts])
        physical = np.full((3, len(ids), 8), -1, dtype=np.int32)
        for number, layer in enumerate(LAYERS):
            physical[layer, :, :TOP_K] = slots_of(ids[:, number], layer, which)
        positions = [first + one for _, first, size in parts for one in range(size)]
        tokens = [FIRST_ID[name] + first + one for name, first, size in parts for one in range(size)]
        rows.append((mode, positions, [size for _, _, size in parts], physical, tokens))
    rows.append((4, [], [], np.full((3, 0, 8), -1, dtype=np.int32), []))
    for number, (mode, positions, lengths, physical, tokens) in enumerate(rows):
        count = np.zeros((3, 8), dtype=np.int32)
        for layer in LAYERS:
            used = physical[layer][physical[layer] >= 0]
            np.add.at(count[layer], used, 1)
        common = {"forward_pass_id": number, "rank": 0, "gatherer_key": "primary"}
        records.append(
            common
            | {
                "input_ids": tokens,
                "positions": positions,
                "extend_seq_lens": None if mode == 2 else lengths,
                "forward_mode": mode,
                "topk_ids_of_layer": torch.tensor(physical),
                "misc_objects": [],
                "global_physical_count": torch.tensor(count),
            }
        )
        passes.append(common | {"global_physical_count": torch.tensor(count)})
    path = folder("sglang/per-token")
    torch.save(
        {"records": records, "last_physical_to_logical_map": slot_map},
        path / "expert_distribution_recorder_1764000000.5_0.pt",
    )
    # the warm-up pass was request 0
    requests = {str(number): tokens_of(name, ids=True) for number, name in enumerate(REQUESTS, start=1)}
    expect("sglang/per-token", requests, "per-token", left_out={"warm-up tokens": DUMMIES})

    path = folder("sglang/per-pass")
    for rank in range(2):  # two ranks with data parallel attention: halves of the counts
        mine = [one | {"rank": rank, "global_physical_count": one["global_physical_count"]} for one in passes[1:-1]]
        for one in mine:
            half = one["global_physical_count"] // 2
            one["global_physical_count"] = half if rank else one["global_physical_count"] - half
        torch.save(
            {"records": mine, "last_physical_to_logical_map": slot_map},
            path / f"expert_distribution_recorder_1764000000.5_{rank}.pt",
        )
    expect_counts("sglang/per-pass", pass_counts(), "per-pass", {"top_k": TOP_K})

    path = folder("sglang/stat")
    ring = np.zeros((8, 3, EXPERTS), dtype=np.int32)
    ring[: len(PASSES), 1:] = pass_counts()
    torch.save(
        {"rank": 0, "logical_count": torch.tensor(ring), "average_utilization_rate_over_window": None},
        path / "expert_distribution_recorder_1764000000.5.pt",
    )
    expect_counts("sglang/stat", pass_counts(), "stat", {"top_k": TOP_K}, left_out={"unused rows": 3})


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


def npy_text(array: np.ndarray) -> str:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return base64.b64encode(buffer.getvalue()).decode()


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


def speculative() -> None:
    """SGLang with one draft a request: a and b are verified, c joins without an answer, the draft model is recorded."""
    import torch

    other = np.random.default_rng(11)
    extra = {  # drafts: (request, position) -> their sets
        place: np.argsort(other.random((len(LAYERS), EXPERTS)), axis=1)[:, :TOP_K]
        for place in (("b", 5), ("a", 8), ("b", 6))
    }
    # (mode, rows of the pass as (request, position, set of a draft or of the token))
    passes: list[tuple[int, list[tuple[str, int, np.ndarray | None]], list[int] | None]] = []

    def rows(name: str, first: int, size: int) -> list[tuple[str, int, np.ndarray | None]]:
        return [(name, at, IDS[name][at]) for at in range(first, first + size)]

    passes.append((1, rows("a", 0, 5) + rows("b", 0, 4), [5, 4]))
    passes.append((5, [*rows("a", 5, 2), ("b", 4, IDS["b"][4]), ("b", 5, extra["b", 5])], None))  # b's was rejected
    passes.append((6, [("a", 6, None), ("a", 7, None), ("b", 5, None), ("b", 6, None)], [2, 2]))  # the draft model
    passes.append((1, rows("c", 0, 3), [3]))
    passes.append((1, [("c", at, None) for at in range(3)], [3]))
    last = [("a", 7, IDS["a"][7]), ("a", 8, extra["a", 8]), ("b", 5, IDS["b"][5]), ("b", 6, extra["b", 6])]
    passes.append((5, last, None))
    records = []
    for number, (mode, found, lengths) in enumerate(passes):
        ids = np.full((3, len(found), 8), -1, dtype=np.int32)
        for row, (_, _, sets) in enumerate(found):
            if sets is not None:
                ids[LAYERS, row, :TOP_K] = sets
        names = {"forward_pass_id": number, "rank": 0, "gatherer_key": "primary", "input_ids": [7] * len(found)}
        names |= {"positions": [position for _, position, _ in found], "extend_seq_lens": lengths, "forward_mode": mode}
        records.append(names | {"topk_ids_of_layer": torch.tensor(ids), "misc_objects": []})
    path = folder("sglang/speculative")
    torch.save(
        {"records": records, "last_physical_to_logical_map": torch.arange(EXPERTS)[None].repeat(3, 1)},
        path / "expert_distribution_recorder_1764000000.5_0.pt",
    )

    def draft(name: str, position: int, phase: int) -> dict[str, Any]:
        return {"position": position, "phase": phase, "ids": extra[name, position].tolist(), "token": 7}

    tokens = {name: [one | {"token": 7} for one in tokens_of(name)] for name in REQUESTS}
    tokens["a"].append(draft("a", 8, 1))  # of the last pass nothing says what was accepted
    tokens["b"][5:5] = [draft("b", 5, 2)]
    tokens["b"].append(draft("b", 6, 1))
    requests = {str(number): tokens[name] for number, name in enumerate(REQUESTS)}
    expect("sglang/speculative", requests, "speculative")


def routing_log() -> None:
    path = folder("routing-log/layer-major")
    with (path / "routes.jsonl").open("w") as file:
        meta = {"type": "meta", "model_id": "tiny", "layers_logged": LAYERS, "top_k": TOP_K, "num_experts": EXPERTS}
        file.write(json.dumps(meta) + "\n")
        index = 100  # token_idx counts the tokens of all calls
        calls: list[tuple[str, np.ndarray, np.ndarray]] = [(name, IDS[name], WEIGHTS[name]) for name in REQUESTS]
        dummy = np.broadcast_to(np.array([[0, 1], [0, 1]]), (DUMMIES, 2, 2))
        calls.insert(0, ("warm-up", dummy, np.full(dummy.shape, 0.5)))
        for name, ids, weights in calls:
            for number, layer in enumerate(LAYERS):
                for row in range(len(ids)):
                    line = {"type": "route", "req_id": name, "token_idx": index + row, "layer": layer}
                    line["topk_ids"] = ids[row, number].tolist()
                    line["topk_weights"] = [round(float(one), 4) for one in weights[row, number]]
                    file.write(json.dumps(line) + "\n")
            index += len(ids)
    requests = {name: tokens_of(name, phases=False) for name in REQUESTS}
    expect("routing-log/layer-major", requests, "tiny", weights=True, left_out={"padding rows": DUMMIES})


def megatron() -> None:
    path = folder("megatron/training")

    def lines(rank: int, step: int, names: str, block: str = "decoder") -> list[dict[str, Any]]:
        found = []
        for name in names:
            for number, layer in enumerate(LAYERS):
                ids = IDS[name][:, number]
                line = {"step": step, "stage": "pre_dispatch", "block": block, "layer": layer, "rank": rank}
                line |= {"num_tokens": len(ids), "topk": TOP_K, "top_indices": ids.tolist()}
                found.append(line | ({"mtp_idx": 0} if block == "mtp" else {}))
        return found

    ranks = [lines(0, 0, "ab") + lines(0, 0, "a", "mtp") + lines(0, 1, "c"), lines(1, 0, "a")]
    for rank, found in enumerate(ranks):
        text = "".join(json.dumps(line) + "\n" for line in found)
        (path / f"router_trace_rank{rank}.jsonl").write_text(text)
    requests = {
        f"router_trace_rank0/step {step}/{number}": tokens_of(name, phases=False)
        for name, step, number in (("a", 0, 0), ("b", 0, 1), ("c", 1, 0))
    }
    expect("megatron/training", requests, "training")


def tensorrt_llm() -> None:
    from safetensors.numpy import save_file

    meta = json.dumps({"num_experts": EXPERTS, "num_experts_per_token": TOP_K})
    path = folder("tensorrt-llm/counts")
    (path / "meta_info.json").write_text(meta)
    counts = pass_counts()
    for rank in range(2):
        tensors = {}
        for iteration in range(len(PASSES)):
            for number, layer in enumerate(LAYERS):
                half = counts[iteration, number] // 2
                tensors[f"{100 + iteration}_{layer}"] = half if rank else counts[iteration, number] - half
        save_file(tensors, path / f"rank{rank}.safetensors")
    expect_counts("tensorrt-llm/counts", counts, "counts")
    path = folder("tensorrt-llm/raw")
    (path / "meta_info.json").write_text(meta)
    tensors = {}
    requests = {}
    for number, name in enumerate(REQUESTS):
        for index, layer in enumerate(LAYERS):
            tensors[f"{100 + number}_{layer}"] = np.ascontiguousarray(IDS[name][:, index].astype(np.int32))
        requests[f"rank0_raw/{100 + number}"] = tokens_of(name, phases=False)
    save_file(tensors, path / "rank0_raw.safetensors")
    save_file({"100_1": np.zeros(EXPERTS, dtype=np.int64)}, path / "rank0.safetensors")
    expect("tensorrt-llm/raw", requests, "raw")


def llama_cpp() -> None:
    path = folder("llama-cpp/imatrix")

    def text(word: str) -> bytes:
        return struct.pack("<Q", len(word)) + word.encode()

    counts = total_counts()
    num_tokens = sum(map(sum, REQUESTS.values()))
    tensors: list[tuple[str, tuple[int, ...], np.ndarray]] = []
    for layer in (0, *LAYERS):
        tensors.append((f"blk.{layer}.attn_q.weight.in_sum2", (4, 1), np.arange(4)))
        tensors.append((f"blk.{layer}.attn_q.weight.counts", (1, 1), np.array([num_tokens])))
        if layer in LAYERS:
            row = counts[LAYERS.index(layer)]
            tensors.append((f"blk.{layer}.ffn_gate_exps.weight.in_sum2", (4, EXPERTS), np.ones(4 * EXPERTS)))
            tensors.append((f"blk.{layer}.ffn_gate_exps.weight.counts", (1, EXPERTS), row))
            tensors.append((f"blk.{layer}.ffn_down_exps.weight.counts", (1, EXPERTS), row))
    keys = [
        text("general.type") + struct.pack("<I", 8) + text("imatrix"),
        text("imatrix.datasets") + struct.pack("<IIQ", 9, 8, 1) + text("words.txt"),
        text("imatrix.chunk_count") + struct.pack("<II", 4, 3),
    ]
    data, infos = b"", b""
    for name, shape, values in tensors:
        infos += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
        infos += struct.pack("<IQ", 0, len(data))
        data += values.astype("<f4").tobytes()
        data += b"\0" * (-len(data) % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)) + b"".join(keys) + infos
    (path / "imatrix.gguf").write_bytes(head + b"\0" * (-len(head) % 32) + data)
    expect_counts("llama-cpp/imatrix", counts[None], "imatrix")


def arrays() -> None:
    names = [name for name in REQUESTS for _ in range(sum(REQUESTS[name]))]
    found = [token(name, position) for name in REQUESTS for position in range(sum(REQUESTS[name]))]
    path = folder("arrays/npz")
    np.savez(
        path / "routes.npz",
        expert_ids=np.concatenate(list(IDS.values())),
        expert_weights=np.concatenate(list(WEIGHTS.values())),
        request=np.array(names),
        position=np.array([one["position"] for one in found]),
        token=np.array([FIRST_ID[name] + one["position"] for name, one in zip(names, found, strict=True)]),
        phase=np.array([one["phase"] for one in found]),
        layer_ids=np.array(LAYERS),
        num_experts=np.array(EXPERTS),
        model=np.array("tiny"),
    )
    expect("arrays/npz", {name: tokens_of(name, ids=True) for name in REQUESTS}, "tiny", weights=True)
    path = folder("arrays/npy")
    np.save(path / "a.npy", hidden("a"))
    expect("arrays/npy", {"a": tokens_of("a", phases=False)}, "npy")
    short_sets()


def short_sets() -> None:
    """Four places a set: two experts of which every fourth token lacks one in the last layer, one that computes nothing
    (6 or 7), and -1; behind them rows of padding."""
    path, requests = folder("arrays/short"), {}
    for name, ids in IDS.items():
        tokens = tokens_of(name, phases=False)
        wide = np.full((*ids.shape[:2], 4), -1)
        wide[..., 1], wide[..., 3] = ids[..., 0], ids[..., 1]
        wide[..., 0] = 6 + np.arange(len(ids))[:, None] % 2
        for one in tokens[3::4]:
            wide[one["position"], -1, 3] = -1
            one["ids"] = [one["ids"][0], [one["ids"][1][0], -1]]
        padding = np.broadcast_to(np.arange(4), (20 - len(ids), len(LAYERS), 4))
        rows = np.concatenate([wide, padding])
        np.savez(path / f"{name}.npz", expert_ids=rows, num_experts=EXPERTS, layer_ids=np.array(LAYERS))
        requests[name] = tokens
    left_out = {"padding rows": 20 * len(IDS) - sum(map(len, IDS.values()))}
    expect("arrays/short", requests, "short", left_out=left_out)


def parquet() -> None:
    import pyarrow
    from pyarrow import parquet as files

    found = [(name, token(name, position)) for name in REQUESTS for position in range(sum(REQUESTS[name]))]
    table = pyarrow.table(
        {
            "request": [name for name, _ in found],
            "domain": ["words" for _ in found],
            "position": [one["position"] for _, one in found],
            "phase": [one["phase"] for _, one in found],
            "token": [FIRST_ID[name] + one["position"] for name, one in found],
            "expert_ids": [one["ids"] for _, one in found],
            "expert_weights": np.concatenate(list(WEIGHTS.values())).tolist(),
        }
    ).replace_schema_metadata({"layer_ids": "1-2", "num_experts": str(EXPERTS), "model": "tiny"})
    files.write_table(table, folder("parquet/table") / "routes.parquet")
    expect("parquet/table", {name: tokens_of(name, ids=True) for name in REQUESTS}, "tiny", weights=True)


if __name__ == "__main__":
    for write in (sglang, sglang_responses, vllm, routing_log, megatron, tensorrt_llm, llama_cpp, arrays, parquet):
        write()
    for write in (responses_by_version, token_ids, speculative):
        write()
