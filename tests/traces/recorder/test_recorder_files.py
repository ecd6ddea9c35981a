"""What a recorder writes is readable whenever the process ends; what it cannot record is one clear line."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from recorded_models import prompts, tiny, transformers

from placement.errors import InputError, OutputError, TraceError
from placement.traces.recorder import record
from placement.traces.trace import open_trace


def test_an_exception_leaves_no_hooks_and_keeps_what_was_recorded(tmp_path: Path) -> None:
    """The block fails after one forward."""
    model = tiny()
    ids, _ = prompts()
    with pytest.raises(ZeroDivisionError), record(model, tmp_path / "t"):
        model(input_ids=ids)
        raise ZeroDivisionError
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    model(input_ids=ids)
    assert open_trace(tmp_path / "t").num_tokens_stored == 24
    assert "recording" not in json.loads((tmp_path / "t" / "trace.json").read_text())


def test_what_was_flushed_is_readable_while_recording(tmp_path: Path) -> None:
    """Memory is bounded by a shard: tokens leave it as soon as one is full, or when told."""
    model = tiny()
    ids, _ = prompts()
    with record(model, tmp_path / "t", shard_tokens=16) as recorder:
        model(input_ids=ids)
        trace = open_trace(tmp_path / "t")
        assert (trace.num_tokens_stored, len(trace.requests)) == (16, 2)
        recorder.flush()
        assert open_trace(tmp_path / "t").num_tokens_stored == 24
    assert [shard.num_tokens for shard in open_trace(tmp_path / "t").shards] == [16, 8]


KILLED = """
import sys, torch
from types import SimpleNamespace
from placement.traces.recorder import record

class Experts(torch.nn.Module):
    num_experts, _is_expert_parallel = 300, False
    def forward(self, hidden, ids, weights):
        return hidden

class Layers(torch.nn.Module):
    config = SimpleNamespace(model_type="like a Hugging Face model")
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList([Experts(), Experts()])
    def forward(self, input_ids):
        ids = (input_ids.reshape(-1, 1) + torch.arange(4)) % 300
        for experts in self.layers:
            experts(None, ids, ids / 300)

model = Layers()
with record(model, sys.argv[1], shard_tokens=64):
    for number in range(10**9):
        model(torch.arange(number, number + 7)[None])
        if number % 100 == 99:
            print(number, flush=True)
"""


@pytest.fixture
def recording(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "t")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    yield process
    process.kill()
    process.communicate()


def test_a_trace_survives_sigkill(recording: subprocess.Popen[str], tmp_path: Path) -> None:
    """All whole shards but the last one at most are there, with the right tokens; nothing half-written is read."""
    assert recording.stdout is not None
    for _ in range(5):
        number = int(recording.stdout.readline())
    recording.send_signal(signal.SIGKILL)
    assert recording.wait(10) == -signal.SIGKILL
    trace = open_trace(tmp_path / "t")
    assert trace.num_tokens_stored >= 7 * number - 128
    for block in trace.blocks():
        first_T = block.request_T + block.column_T("position")
        assert np.array_equal(block.ids_TK(1), (first_T[:, None] + np.arange(4)) % 300)


def test_a_shard_beyond_the_manifest_is_ignored_while_recording_only(tmp_path: Path) -> None:
    """The moment between the two files: killed there, the trace ends where its manifest says."""
    model = tiny()
    ids, _ = prompts()
    folder = tmp_path / "t"
    with record(model, folder, shard_tokens=16):
        model(input_ids=ids)
    manifest = json.loads((folder / "trace.json").read_text()) | {"num_tokens": 16}
    (folder / "trace.json").write_text(json.dumps(manifest))
    with pytest.raises(TraceError, match="left over"):
        open_trace(folder)
    (folder / "trace.json").write_text(json.dumps(manifest | {"recording": True}))
    assert open_trace(folder).num_tokens_stored == 16


def test_what_cannot_be_recorded_is_one_clear_line(tmp_path: Path) -> None:
    """Dense models and things that are no models, folders that are taken, names that do not fit, odd masks."""
    dense = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=60, hidden_size=32, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
        )
    )
    for model in (dense, "a name"):
        with pytest.raises(InputError, match=r"OLMoE, Mixtral, .*GPT-OSS"), record(model, tmp_path / "t"):
            pass
    model = tiny()
    ids, mask = prompts()
    with pytest.raises(OutputError, match="nothing is overwritten"), record(model, tmp_path.parent):
        pass
    with record(model, tmp_path / "u") as recorder:
        recorder.requests(["a", "b"])
        with pytest.raises(TraceError, match="2 requests were named for a batch of 3 rows"):
            model(input_ids=ids)
        with pytest.raises(InputError, match="1 values of domain for 2 requests"):
            recorder.requests(["a", "b"], domain=["x"])
        with pytest.raises(TraceError, match="attention_mask of shape"):
            model(input_ids=ids, attention_mask=mask[:, None, None, :].bool())
        model(input_ids=ids)
    assert open_trace(tmp_path / "u").num_tokens_stored == 24
    with pytest.raises(TraceError, match="nothing was recorded"), record(model, tmp_path / "v"):
        pass


def test_the_recipe_of_the_documentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python block of the docs, with a tiny model where it says `path/to/model`."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = {letter: number for number, letter in enumerate([chr(code) for code in range(32, 92)])}
    plain = Tokenizer(models.WordLevel(letters, unk_token=" "))
    plain.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    folder = tmp_path / "path" / "to" / "model"
    transformers.PreTrainedTokenizerFast(tokenizer_object=plain, pad_token=" ").save_pretrained(folder)
    tiny().save_pretrained(folder)
    docs = Path(__file__).parents[3] / "docs"
    blocks = [b for page in docs.glob("*.md") for b in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)]
    (recipe,) = [block for block in blocks if "from placement.traces.recorder import record" in block]
    monkeypatch.chdir(tmp_path)
    exec(recipe, {})  # noqa: S102
    trace = open_trace("trace")
    assert [entry.domain for entry in trace.requests] == ["code", "code", "sums", "sums"]
    assert trace.tokens_Q().min() >= 15
