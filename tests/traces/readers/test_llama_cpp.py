"""llama.cpp's importance matrices: which tensors count experts, and layers that differ."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from placement.errors import OptionError, TraceError
from placement.readers.base import ReadOptions
from placement.readers.convert import convert
from placement.workload.counts_file import read_counts

Array = npt.NDArray[Any]


def imatrix(path: Path, counts: dict[str, Array]) -> Path:
    """A GGUF file with these counts, by the name of the weight."""

    def text(word: str) -> bytes:
        return struct.pack("<Q", len(word)) + word.encode()

    infos = data = b""
    for name, values in counts.items():
        infos += text(f"{name}.weight.counts") + struct.pack("<IQQIQ", 2, 1, len(values), 0, len(data))
        data += np.asarray(values, dtype="<f4").tobytes()
        data += b"\0" * (-len(data) % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(counts), 0) + infos
    path.write_bytes(head + b"\0" * (-len(head) % 32) + data)
    return path


def loads(seed: int, experts: int, tokens: int = 64, top_k: int = 4) -> Array:
    """How often each expert is in the top-k sets of so many tokens."""
    sets = np.argsort(np.random.default_rng(seed).random((tokens, experts)), axis=1)[:, :top_k]
    return np.bincount(sets.reshape(-1), minlength=experts)


@pytest.mark.parametrize(
    "others",
    [
        {"ffn_down_chexps": 8, "ffn_gate_chexps": 8, "ffn_up_chexps": 8},  # GroveMoE: sorted before the experts
        {"ffn_norm_exps": 1, "ffn_down_shexp": 1},  # Arctic, DeepSeek
        {"a_ffn_up_exps": 3, "ffn_up_exps_b": 5, "ffn_exps": 7, "ffn_xexps": 9},  # parts of the name
    ],
)
def test_only_whole_names_of_experts_count(others: dict[str, int], tmp_path: Path) -> None:
    """What has a part of the name, before or after the experts in the file, is never taken for experts."""
    rows = [loads(layer, 16) for layer in range(3)]
    counts = {f"blk.{layer}.{name}": np.full(size, 64) for name, size in others.items() for layer in range(3)}
    counts |= {f"blk.{layer}.ffn_{part}_exps": rows[layer] for layer in range(3) for part in ("down", "gate", "up")}
    counts |= {"blk.1.zz_chexps": np.ones(2), "blk.2.attn_q": np.array([64])}
    done = convert(imatrix(tmp_path / "imatrix.gguf", counts), tmp_path / "out.npz")
    assert (done.model.num_experts, done.model.top_k, done.model.layer_ids) == (16, 4, (0, 1, 2))
    assert np.array_equal(read_counts(tmp_path / "out.npz").load_LE(), rows)
    assert any("chunk experts" in note and "8 a layer" in note for note in done.notes) == ("ffn_up_chexps" in others)


def test_fused_gate_and_up(tmp_path: Path) -> None:
    """The weights of gate and up may be one tensor."""
    path = imatrix(tmp_path / "imatrix.gguf", {"blk.3.ffn_gate_up_exps": loads(0, 6)})
    assert convert(path, tmp_path / "out.npz", options=ReadOptions(top_k=4)).model.num_experts == 6


def test_chunk_experts_alone_are_no_experts(tmp_path: Path) -> None:
    path = imatrix(tmp_path / "imatrix.gguf", {"blk.0.ffn_down_chexps": loads(0, 8)})
    with pytest.raises(TraceError, match=r"has no ffn_\*_exps"):
        convert(path, tmp_path / "out.npz", reader="llama-cpp")


def test_layers_with_different_numbers_of_experts(tmp_path: Path) -> None:
    """One line names the layers of each number; converted apart, each number is a file that can be balanced."""
    sizes = {0: 16, 1: 12, 3: 12, 4: 12, 5: 8, 7: 16}
    counts = {f"blk.{layer}.ffn_up_exps": loads(layer, size) for layer, size in sizes.items()}
    path = imatrix(tmp_path / "imatrix.gguf", counts)
    with pytest.raises(
        TraceError, match=r"16 in layers 0, 7; 12 in layers 1, 3 to 4; 8 in layer 5; .*ids 0,7$"
    ) as told:
        convert(path, tmp_path / "out.npz", options=ReadOptions(top_k=4))
    assert "\n" not in str(told.value)
    for layers, size in (((0, 7), 16), ((1, 3, 4), 12), ((5,), 8)):
        done = convert(path, tmp_path / f"{size}.npz", options=ReadOptions(top_k=4, layer_ids=layers))
        assert (done.model.layer_ids, done.model.num_experts) == (layers, size)
        assert np.array_equal(read_counts(done.output).load_LE(), [loads(layer, size) for layer in layers])
        assert any("--layer-ids does not name them" in note for note in done.notes)
    with pytest.raises(OptionError, match="has no experts in layer 2; "):
        convert(path, tmp_path / "out.npz", options=ReadOptions(top_k=4, layer_ids=(0, 2, 7)))


@pytest.mark.parametrize("inside", [".", "./", "../Model-3.5-moe", "../Model-3.5-moe/.", "below/.."])
def test_a_model_is_called_as_its_folder(inside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the folder is named on the command line, and with all of its name."""
    folder = tmp_path / "Model-3.5-moe"
    (folder / "below").mkdir(parents=True)
    imatrix(folder / "imatrix.gguf", {"blk.0.ffn_up_exps": loads(0, 6)})
    monkeypatch.chdir(folder)
    assert convert(inside, tmp_path / "out.npz", options=ReadOptions(top_k=4)).model.name == "Model-3.5-moe"
    assert convert("imatrix.gguf", tmp_path / "2.npz", options=ReadOptions(top_k=4)).model.name == "imatrix"
