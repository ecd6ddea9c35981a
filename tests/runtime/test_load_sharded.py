"""A model of which no process reads more than its share gives the logits of the whole model."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from models import FAMILIES, layer_ids, make_model, transformers
from moe import torch
from processes import run_processes
from safetensors.torch import load_file, save_file
from served_models import error, make_map, prompt, serve

from placement.errors import InputError, MapError
from placement.runtime import CapacityPolicy, Lockstep, load_sharded, torch_mesh
from placement.support.memory import give_back_freed

SHARDED = sorted(set(FAMILIES) - {"deepseek_v2"})
OPTIONS: dict[str, dict[str, Any]] = {"glm4_moe": {"overlap": True}, "olmoe": {"graph": True, "tokens": 14}}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """Folder and model of each family, as transformers saves it."""
    folder, found = tmp_path_factory.mktemp("saved"), {}
    for family in SHARDED:
        found[family] = folder / family, make_model(family)
        found[family][1].save_pretrained(folder / family)
    return found


def resident(what: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most."""
    (kilobytes,) = re.findall(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kilobytes) * 1024


def test_logits_of_seven_families_on_four_ranks(
    saved: dict[str, tuple[Path, Any]], tmp_path: Path, record_property: Any
) -> None:
    """Prefill and decode within 1e-5, with redundant experts, after a swap too; nothing is left on meta.

    One family in fixed shapes, one with its shared experts computed while tokens travel.
    """

    def program(rank: int) -> dict[str, list[Any]]:
        mesh, got = torch_mesh(2, 2, timeout_s=30), {}
        for family, (folder, whole) in saved.items():
            model, attached = load_sharded(folder, make_map(layer_ids(whole)), mesh, **OPTIONS.get(family, {}))
            assert type(model) is type(whole) and not model.training
            assert not any(one.is_meta for one in (*model.parameters(), *model.buffers()))
            assert [slots.num_slots for slots in attached.slots_L] == [3] * len(attached.layers)
            got[family] = [logits.numpy() for logits in serve(model, prompt(rank))]
            if family == "mixtral":
                attached.swap(make_map(layer_ids(whole), seed=1)).run()
                got["mixtral, swapped"] = [logits.numpy() for logits in serve(model, prompt(rank))]
        return got

    results = run_processes(4, tmp_path, program, seconds=120)
    largest: dict[str, float] = {}
    for rank, got in enumerate(results):
        assert not isinstance(got, Exception), got
        assert len(got) == 8
        for family, arrays in got.items():
            whole = saved[family.partition(",")[0]][1]
            found = error([torch.from_numpy(one) for one in arrays], serve(whole, prompt(rank)))
            largest[family] = max(largest.get(family, 0.0), found)
    record_property("largest difference of logits", largest)
    assert max(largest.values()) < 1e-5, largest


def test_a_rank_holds_its_share(tmp_path: Path, record_property: Any) -> None:
    """Resident memory rises by the bytes that the rank keeps, and at its peak by a tenth of the whole model more."""
    sizes = {"hidden_size": 256, "num_hidden_layers": 8, "vocab_size": 64, "num_attention_heads": 4}
    experts = {"num_experts": 16, "intermediate_size": 256, "num_experts_per_tok": 2}
    config = transformers.AutoConfig.for_model("olmoe", **sizes, **experts)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path / "in", max_shard_size="30MB")
    whole = sum(one.nbytes for one in model.parameters())
    small = make_model("olmoe")
    small.save_pretrained(tmp_path / "small")

    def program(rank: int) -> tuple[int, int]:
        mesh = torch_mesh(1, 4, timeout_s=30)
        load_sharded(tmp_path / "small", make_map((0, 1), num_nodes=1, gpus=4, slots=2), mesh)  # what it imports
        placement = make_map(tuple(range(8)), num_nodes=1, gpus=4, slots=4, experts=16)
        give_back_freed()  # what other tests left
        Path("/proc/self/clear_refs").write_text("5")  # from now on the peak is that since now
        before = resident("VmRSS")
        loaded, attached = load_sharded(tmp_path / "in", placement, mesh)
        kept = [*loaded.parameters(), *(one for slots in attached.slots_L for one in slots.tensors.values())]
        return sum(one.nbytes for one in kept), resident("VmHWM") - before

    def kept_to(share: int, peak: int) -> bool:
        return share / 2 < peak < share + 0.1 * whole  # memory was measured at all, and kept to

    assert whole > 90e6
    for last in (False, True):  # once more where resident memory holds what the system mapped or took meanwhile
        results = run_processes(4, tmp_path, program, seconds=120)
        record_property("bytes: whole, (share, peak) of each rank", (whole, results))
        assert not any(isinstance(one, Exception) for one in results), results
        assert all(share < 0.35 * whole for share, _ in results)
        if all(kept_to(*one) for one in results):
            break
        assert not last, results


def test_capacity_by_scores(saved: dict[str, tuple[Path, Any]]) -> None:
    """Policies find routers and their flags as in a model that is loaded whole."""
    folder, model = saved["mixtral"]

    def program(mesh: Any) -> int:
        mine, attached = load_sharded(
            folder, make_map(layer_ids(model)), mesh, capacity=CapacityPolicy(mode="drop", gamma=1.0)
        )
        serve(mine, prompt(mesh.rank), 0)
        return int(attached.stats[0].dropped)

    assert sum(Lockstep(2, 2).run(program)) > 0


def test_generation_goes_by_the_checkpoint(saved: dict[str, tuple[Path, Any]], tmp_path: Path) -> None:
    """Its small file of how to generate is read, and the type of weights can be chosen."""
    folder, model = saved["olmoe"]
    mine = tmp_path / "mine"
    mine.mkdir()
    for one in folder.iterdir():
        (mine / one.name).symlink_to(one)
    (mine / "generation_config.json").unlink(missing_ok=True)
    (mine / "generation_config.json").write_text(json.dumps({"eos_token_id": 7, "max_new_tokens": 3}))
    placement = make_map(layer_ids(model), num_nodes=1, gpus=1, slots=8)

    def program(mesh: Any) -> Any:
        return load_sharded(mine, placement, mesh, dtype=torch.bfloat16)

    ((loaded, attached),) = Lockstep(1, 1).run(program)
    assert loaded.generation_config.eos_token_id == 7
    assert {one.dtype for one in loaded.parameters()} == {torch.bfloat16}
    assert attached.slots_L[0].tensors["down_proj"].dtype == torch.bfloat16


def test_checkpoints_and_maps_that_do_not_fit(saved: dict[str, tuple[Path, Any]], tmp_path: Path) -> None:
    """One line each, before the model is there."""
    folder, model = saved["qwen3_moe"]
    fits = make_map(layer_ids(model), num_nodes=1, gpus=1, slots=8)

    def on_one(path: Path, placement: Any = fits) -> None:
        Lockstep(1, 1).run(lambda mesh: load_sharded(path, placement, mesh))

    with pytest.raises(MapError, match=r"the map places layers \[2\]"):
        on_one(folder, make_map((0, 2), num_nodes=1, gpus=1, slots=8))
    with pytest.raises(MapError, match="2 nodes x 2 GPUs and the mesh has 1 x 1"):
        on_one(folder, make_map(layer_ids(model)))
    with pytest.raises(InputError, match=r"neither model\.safetensors nor"):
        on_one(tmp_path)

    def changed(name: str, **config: Any) -> Path:
        into = tmp_path / name
        into.mkdir()
        (into / "model.safetensors").symlink_to(folder / "model.safetensors")
        told = json.loads((folder / "config.json").read_text()) | config
        (into / "config.json").write_text(json.dumps(told))
        return into

    with pytest.raises(InputError, match="names the architecture NobodyForCausalLM"):
        on_one(changed("nobody", architectures=["NobodyForCausalLM"]))
    with pytest.raises(InputError, match=r"has not all of Qwen3MoeForCausalLM: missing are model.layers.2"):
        on_one(changed("deeper", num_hidden_layers=3))
    with pytest.raises(InputError, match=r"of another shape are model\.layers\.0\.mlp\.experts\.down_proj \["):
        on_one(changed("wider", moe_intermediate_size=24))
    (changed("torn") / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json cannot be read"):
        on_one(tmp_path / "torn")


@pytest.fixture
def variant(saved: dict[str, tuple[Path, Any]], tmp_path: Path) -> Callable[[str, str | dict[str, Any]], Path]:
    """A folder of Qwen3-MoE with the file `name` as told: text, or other keys in its JSON."""
    folder, _ = saved["qwen3_moe"]

    def make(name: str, told: str | dict[str, Any]) -> Path:
        into = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(folder, into)
        file = into / name
        file.write_text(told if isinstance(told, str) else json.dumps(json.loads(file.read_text()) | told))
        return into

    return make


def refuse(folder: Path, words: str, **options: Any) -> None:
    """An InputError of one line that has `words`, and no other error."""
    with pytest.raises(InputError, match=words) as caught:
        load_sharded(folder, make_map((0, 1), num_nodes=1, gpus=1, slots=8), Lockstep(1, 1).mesh(0), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ("null", r"config\.json cannot be read: a JSON object"),
        ({"hidden_size": "a"}, r"config\.json cannot be read by transformers .*hidden_size"),
        ({"dtype": "floaty"}, r"config\.json cannot be read by transformers .*floaty"),
        ({"quantization_config": "fp8"}, "has quantization_config 'fp8'"),
        ({"quantization_config": [1]}, r"has quantization_config \[1\]"),
        ({"architectures": [5]}, r"has architectures \[5\]"),
        ({"architectures": "Qwen3MoeForCausalLM"}, "has architectures 'Qwen3MoeForCausalLM'"),
        ({"architectures": ["AutoConfig"]}, "the architecture AutoConfig, which is no model"),
        ({"architectures": ["__version__"]}, "the architecture __version__, which is no model"),
        ({"architectures": ["LlamaForCausalLM"]}, "cannot make LlamaForCausalLM"),
        ({"num_hidden_layers": 0}, "no expert layers that are understood"),
        ({"num_attention_heads": 0}, "cannot make Qwen3MoeForCausalLM.*ZeroDivisionError"),
    ],
)
def test_a_configuration_that_is_wrong_is_one_line(
    variant: Callable[[str, str | dict[str, Any]], Path], told: str | dict[str, Any], words: str
) -> None:
    """Whatever transformers raises for values of config.json, the caller gets one error of this library."""
    refuse(variant("config.json", told), words)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ("{", "cannot be read: Expecting"),
        ("[]", "cannot be read: a JSON object"),
        ('{"max_new_tokens": -1}', "cannot be read by transformers .*max_new_tokens"),
        ('{"temperature": "x"}', "has temperature 'x'; a number"),
    ],
)
def test_a_file_of_how_to_generate_that_is_wrong_is_one_line(
    variant: Callable[[str, str | dict[str, Any]], Path], told: str, words: str
) -> None:
    """generation_config.json is refused by its name before weights are read."""
    refuse(variant("generation_config.json", told), rf"generation_config\.json {words}")


def test_a_device_that_is_not_there_is_told_first(tmp_path: Path) -> None:
    """The device is tried before any file: this folder is empty."""
    refuse(tmp_path, "device 'zzz' cannot be used", device="zzz")
    if not torch.cuda.is_available():
        refuse(tmp_path, "device 'cuda' cannot be used", device="cuda")


def test_tensors_that_the_model_has_no_place_for(variant: Callable[[str, str | dict[str, Any]], Path]) -> None:
    """A model of fewer layers than the checkpoint, or a tensor of another model, is not loaded without a word."""
    folder = variant("config.json", {})
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"foo.bar": torch.zeros(3)}, folder / "model.safetensors", metadata={"format": "pt"})
    refuse(folder, r"has more than Qwen3MoeForCausalLM .*foo\.bar of 1 tensors")
    refuse(variant("config.json", {"num_hidden_layers": 1}), r"has more than .*model\.layers\.1\.")


def test_layers_that_draft_are_left_out_and_counted(
    variant: Callable[[str, str | dict[str, Any]], Path], caplog: pytest.LogCaptureFixture
) -> None:
    """A checkpoint brings MTP layers, as its configuration says, which the model's class has no place for."""
    folder = variant("config.json", {"num_nextn_predict_layers": 1})
    tensors = load_file(folder / "model.safetensors")
    more = {"model.layers.2.eh_proj.weight": torch.zeros(3), "model.layers.2.enorm.weight": torch.zeros(3)}
    save_file(tensors | more, folder / "model.safetensors", metadata={"format": "pt"})
    with caplog.at_level("INFO", logger="placement"):
        load_sharded(folder, make_map((0, 1), num_nodes=1, gpus=1, slots=8), Lockstep(1, 1).mesh(0))
    assert "left out 2 tensors" in caplog.text
    save_file(
        tensors | {"model.layers.3.enorm.weight": torch.zeros(3)},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    refuse(folder, r"has more than .*model\.layers\.3\.")


def test_a_tensor_of_another_shape_is_named(variant: Callable[[str, str | dict[str, Any]], Path]) -> None:
    """The message has the name and both shapes."""
    refuse(variant("config.json", {"vocab_size": 65}), r"lm_head\.weight \[64, 32\] for \[65, 32\]")
