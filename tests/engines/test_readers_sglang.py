"""SGLang's own recorder writes dumps that the reader reads: the routing that went in comes out."""

from __future__ import annotations

import ast
import base64
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from placement.readers.base import ReadOptions
from placement.readers.convert import Conversion, convert
from placement.readers.sglang_passes import DECODES, IDLE, MIXED, OF_DRAFT_MODEL, VERIFY
from placement.traces.trace import open_trace
from placement.workload.counts_file import read_counts

pytestmark = pytest.mark.engines
NAME = "sglang.srt.eplb.expert_distribution"
SLOTS = [[0, 1, 2, 3, 4, 5, 0, 1], [0, 1, 2, 3, 4, 5, 0, 1], [5, 4, 3, 2, 1, 0, 5, 4]]  # layer 0 is dense
EXTEND, DECODE = 1, 2
# (mode, positions, lengths of its requests) of each pass
PASSES = [(EXTEND, [0, 1, 2, 0, 1], [3, 2]), (DECODE, [3, 2], None), (EXTEND, [0, 1], [2]), (DECODE, [4, 3, 2], None)]


class Withable:
    """What the recorder needs of the class of that name."""

    def __init__(self) -> None:
        self.value: Any = None

    @contextmanager
    def with_value(self, value: Any) -> Iterator[None]:
        self.value = value
        yield
        self.value = None


@pytest.fixture
def record(
    import_engine: Callable[..., Callable[[str], ModuleType]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Path]:
    """`record(mode)`: the folder of the dumps of PASSES, whose physical ids are PHYSICAL."""
    import torch

    monkeypatch.setitem(sys.modules, "einops", ModuleType("einops"))
    module = import_engine("sglang", NAME)(NAME)
    names: dict[str, Any] = vars(module)

    def run(mode: str, buffer: int = 8, ranks: int = 1) -> Path:
        folder = tmp_path / mode
        moe = SimpleNamespace(
            expert_distribution_recorder_mode=mode,
            expert_distribution_recorder_buffer_size=buffer,
            moe_a2a_backend="none",
            eplb_min_rebalancing_utilization_threshold=1.0,
        )
        environment = SimpleNamespace(get=lambda: str(folder))
        stand_ins = {
            "Withable": Withable,
            "get_exec": lambda: SimpleNamespace(moe=moe, overlap=SimpleNamespace(enable_two_batch_overlap=False)),
            "get_platform": lambda: SimpleNamespace(is_hip=False),
            "get_schedule": lambda: SimpleNamespace(chunked_prefill_size=4),
            "get_device": lambda: "cpu",
            "get_device_namespace": lambda: SimpleNamespace(device="cpu"),
            "reports_expert_balancedness": lambda: False,
            "envs": SimpleNamespace(SGLANG_EXPERT_DISTRIBUTION_RECORDER_DIR=environment),
        }
        for name, value in stand_ins.items():
            assert name in names, f"the recorder has no {name} any more"
            monkeypatch.setattr(module, name, value)
        monkeypatch.setattr(torch, "get_device_module", lambda: SimpleNamespace(empty_cache=lambda: None))
        monkeypatch.setattr(torch.distributed, "all_reduce", lambda *_, **__: None)
        metadata = SimpleNamespace(
            num_layers=3,
            num_physical_experts=8,
            num_logical_experts=6,
            num_local_physical_experts=2,
            ep_size=4,
            physical_to_logical_map=torch.tensor(SLOTS),
        )
        for rank in range(ranks):
            recorder = module.ExpertDistributionRecorder.init_new(metadata, rank)
            recorder.start_record()
            for number, (forward, positions, lengths) in enumerate(PASSES):
                batch = SimpleNamespace(
                    input_ids=torch.zeros(len(positions), dtype=torch.int64),
                    positions=torch.tensor(positions),
                    extend_seq_lens_cpu=lengths,
                    forward_mode=SimpleNamespace(value=forward),
                )
                with recorder.with_forward_pass(number, batch):
                    for layer in (1, 2):
                        with recorder.with_current_layer(layer):
                            recorder.on_select_experts(torch.tensor(physical(number)[layer - 1]))
            recorder.dump_record()
        return folder

    return run


def physical(number: int) -> np.ndarray[Any, Any]:
    """Slots that the tokens of a pass go to, int64 [2, T, 2]: the two of a set hold different experts."""
    rng = np.random.default_rng(number)
    size = len(PASSES[number][1])
    found = np.zeros((2, size, 2), dtype=np.int64)
    for layer, row in enumerate(np.array(SLOTS)[1:]):
        for token in range(size):
            for k, expert in enumerate(rng.permutation(6)[:2]):
                found[layer, token, k] = rng.choice(np.flatnonzero(row == expert))
    return found


def logical(number: int) -> np.ndarray[Any, Any]:
    return np.stack([np.array(row)[ids] for row, ids in zip(SLOTS[1:], physical(number), strict=True)])


def counts() -> np.ndarray[Any, Any]:
    """[passes, layers, experts]."""
    return np.stack(
        [np.stack([np.bincount(ids.reshape(-1), minlength=6) for ids in logical(n)]) for n in range(len(PASSES))]
    )


def check_counts(done: Conversion) -> None:
    assert done.reader == "sglang"
    assert np.array_equal(read_counts(done.output).count_QLE, counts())
    assert done.model.layer_ids == (1, 2)


@pytest.mark.parametrize("ranks", [1, 2])
def test_per_token(record: Callable[..., Path], ranks: int, tmp_path: Path) -> None:
    """Logical ids, requests followed through the passes, phases; what a second rank repeats counts once."""
    done = convert(record("per_token", ranks=ranks), tmp_path / "out")
    assert (done.reader, done.model.layer_ids, done.model.top_k, done.model.num_experts) == ("sglang", (1, 2), 2, 6)
    block = next(open_trace(tmp_path / "out").blocks())
    found = np.stack([block.ids_TK(layer) for layer in range(2)])
    assert np.array_equal(found, np.concatenate([logical(number) for number in range(len(PASSES))], axis=1))
    assert block.request_T.tolist() == [0, 0, 0, 1, 1, 0, 1, 2, 2, 0, 1, 2]
    assert block.column_T("position").tolist() == [position for _, positions, _ in PASSES for position in positions]
    assert block.column_T("phase").tolist() == [0] * 5 + [1] * 2 + [0] * 2 + [1] * 3


def test_per_pass(record: Callable[..., Path], tmp_path: Path) -> None:
    """Counts of the passes by logical experts."""
    check_counts(convert(record("per_pass"), tmp_path / "out.npz", options=ReadOptions(top_k=2)))


@pytest.mark.parametrize("buffer", [8, -1])
def test_stat(record: Callable[..., Path], buffer: int, tmp_path: Path) -> None:
    """The same from a ring buffer that is half empty, and from an endless one."""
    done = convert(record("stat", buffer=buffer), tmp_path / "out.npz", options=ReadOptions(top_k=2))
    check_counts(done)
    assert any("4 unused rows" in note for note in done.notes) == (buffer == 8)


def test_responses(import_engine: Callable[..., Callable[[str], ModuleType]], monkeypatch: pytest.MonkeyPatch) -> None:
    """SGLang's own way to take the ids out of a response agrees with our golden responses."""
    name = "sglang.srt.state_capturer.routed_experts"
    monkeypatch.setitem(sys.modules, "pybase64", base64)
    base = "sglang.srt.state_capturer.base"
    module = import_engine("sglang", name, base, "sglang.srt.state_capturer")(name)
    golden = Path(__file__).parents[1] / "golden" / "readers" / "sglang-responses" / "generate"
    expected = json.loads(golden.with_suffix(".json").read_text())
    for line in (golden / "responses.jsonl").read_text().splitlines():
        response = json.loads(line)
        values = module.extract_routed_experts_from_meta_info(response)
        tokens = response["meta_info"]["prompt_tokens"] + response["meta_info"]["completion_tokens"] - 1
        ids_TLK = values.reshape(tokens, 3, 2)[:, 1:]
        assert ids_TLK.tolist() == [one["ids"] for one in expected["requests"][response["meta_info"]["id"]]]


def test_numbers_of_forward_modes(engine_source: Callable[[str], Path]) -> None:
    """The modes that the reader knows by number are those of the engine; drafts are extended under 6."""
    source = engine_source("sglang") / "sglang/srt/model_executor/forward_batch_info.py"
    tree = ast.parse(source.read_text())
    (found,) = [one for one in tree.body if isinstance(one, ast.ClassDef) and one.name == "ForwardMode"]
    names = [
        one.targets[0].id for one in found.body if isinstance(one, ast.Assign) and isinstance(one.targets[0], ast.Name)
    ]
    known = {"DECODE": DECODES, "MIXED": MIXED, "IDLE": IDLE, "TARGET_VERIFY": VERIFY}
    assert {name: number for number, name in enumerate(names, start=1) if name in known} == known
    assert names[OF_DRAFT_MODEL[0] - 1].startswith("DRAFT_EXTEND")
