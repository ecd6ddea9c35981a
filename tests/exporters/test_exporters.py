"""Every registered exporter keeps the contract; each format has a golden file."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from placement.core.placement import Placement
from placement.documents.placement import load_placement
from placement.errors import MapError, OptionError
from placement.exporters import EXPORTERS, get_exporter, get_importer
from placement.exporters.base import Exporter, ExportOptions
from placement.exporters.engine_layers import described, layer_numbers
from placement.testing.exporters import ExporterContract, exported, small_placement

GOLDEN = Path(__file__).parent.parent / "golden"


def with_mtp() -> Placement:
    """Of a model of four layers, of which the last three are MoE layers, and an MTP layer."""
    one = small_placement()
    rows = np.vstack([one.phy2log_LP, one.phy2log_LP[::-1]])
    model = replace(one.model, layer_ids=(1, 2, 3, 4), num_hidden_layers=4)
    return replace(one, model=model, phy2log_LP=rows)


def one_gpu() -> Placement:
    one = small_placement(redundant=False)
    return replace(one, num_nodes=1, gpus_per_node=1, slots_per_gpu=6)


class TestContract(ExporterContract):
    @pytest.fixture(params=sorted(EXPORTERS))
    def exporter(self, request: pytest.FixtureRequest) -> Exporter:
        return get_exporter(request.param)


@pytest.mark.parametrize("name", sorted(EXPORTERS))
def test_golden_file(name: str) -> None:
    """The bytes that engines load change only on purpose. The map is the golden fixture of engines' own parsers."""
    exporter = get_exporter(name)
    golden = GOLDEN / f"export-{name}{exporter.suffixes[0]}"
    assert exported(exporter, small_placement(layer_ids=(1, 3))).content == golden.read_bytes()


@pytest.mark.parametrize("name", ["native", "vllm-plugin"])
def test_native_loads_back(name: str, tmp_path: Path) -> None:
    """Both are placement files, with all that is known of the model."""
    placement = with_mtp()
    path = tmp_path / "p.json"
    path.write_bytes(get_exporter(name).export(placement).content)
    loaded, _ = load_placement(path)
    assert np.array_equal(loaded.phy2log_LP, placement.phy2log_LP)
    assert loaded.model == placement.model


class TestSGLang:
    def rows(self, placement: Placement) -> list[list[int]]:
        document = json.loads(get_exporter("sglang").export(placement).content)
        assert list(document) == ["physical_to_logical_map"]
        rows: list[list[int]] = document["physical_to_logical_map"]
        return rows

    def test_rows_are_hidden_layers(self) -> None:
        """SGLang indexes rows by absolute layer and refuses any further key; rows of dense layers are sound maps."""
        placement = small_placement(layer_ids=(1, 3))
        rows = self.rows(placement)
        assert len(rows) == 4
        assert [rows[1], rows[3]] == placement.phy2log_LP.tolist()
        assert all(set(row) == set(range(6)) for row in rows)

    def test_dense_layers_at_the_end_have_rows(self) -> None:
        """A map with too few rows is taken without a word by the engine."""
        placement = small_placement(layer_ids=(1, 3))
        rows = self.rows(replace(placement, model=replace(placement.model, num_hidden_layers=7)))
        assert len(rows) == 7
        assert rows[4] == rows[6] == [0, 1, 2, 3, 4, 5, 0, 1]

    def test_mtp_layers_are_left_out_and_named(self) -> None:
        """The engine gives layers beyond the map the trivial one."""
        assert self.rows(with_mtp()) == [[0, 1, 2, 3, 4, 5, 0, 1], *with_mtp().phy2log_LP[:3].tolist()]
        assert any("MTP layers 4 are left out" in hint for hint in get_exporter("sglang").export(with_mtp()).hints)

    def test_says_what_it_took_for_the_last_layer(self) -> None:
        """Only where the number of layers is unknown."""
        exporter = get_exporter("sglang")
        assert any("--num-hidden-layers" in hint for hint in exporter.export(small_placement()).hints)
        assert not any("--num-hidden-layers" in hint for hint in exporter.export(with_mtp()).hints)

    def test_hints_name_the_flags(self) -> None:
        hints = " ".join(get_exporter("sglang").export(small_placement()).hints)
        assert "--ep-num-redundant-experts 2" in hints
        assert "--init-expert-location FILE" in hints

    def test_torch_file_has_the_same_rows(self) -> None:
        """int64, as SGLang's own maps are."""
        torch = pytest.importorskip("torch")
        content = get_exporter("sglang").export(with_mtp(), ExportOptions(suffix=".pt")).content
        loaded = torch.load(io.BytesIO(content), weights_only=True)
        assert list(loaded) == ["physical_to_logical_map"]
        assert loaded["physical_to_logical_map"].dtype == torch.int64
        assert loaded["physical_to_logical_map"].tolist() == self.rows(with_mtp())


def test_layers_of_vllm_are_moe_layers_without_mtp() -> None:
    """Pull request #49572 wants as many rows as the model itself has MoE layers."""
    assert json.loads(get_exporter("vllm").export(with_mtp()).content) == with_mtp().phy2log_LP[:3].tolist()
    assert "experimental" in get_exporter("vllm").export(with_mtp()).hints[0]


def test_vllm_ascend_goes_by_position() -> None:
    """MoE layers from 0, MTP layers after them; devices in rank order; the redundancy is a flag of its own."""
    export = get_exporter("vllm-ascend").export(with_mtp())
    document = json.loads(export.content)
    assert document["moe_layer_count"] == 4
    for index, layer in enumerate(document["layer_list"]):
        assert (layer["layer_id"], layer["device_count"]) == (index, 4)
        assert [device["device_id"] for device in layer["device_list"]] == [0, 1, 2, 3]
        held = [expert for device in layer["device_list"] for expert in device["device_expert"]]
        assert held == with_mtp().phy2log_LP[index].tolist()
    assert any('"num_redundant_experts": 2' in hint for hint in export.hints)


def test_tensorrt_llm_has_absolute_layers() -> None:
    """MTP layers included, which the engine looks up as well, and no key but those of its strict model."""
    document = yaml.safe_load(get_exporter("tensorrt-llm").export(with_mtp()).content)
    assert document == {
        "num_slots": 8,
        "layer_updates_per_iter": 0,
        "initial_global_assignments": dict(zip((1, 2, 3, 4), with_mtp().phy2log_LP.tolist(), strict=True)),
    }


def test_omni_infer_is_told_the_number_of_layers() -> None:
    """It checks the shape against its configuration, and places the layers beyond in its own way."""
    export = get_exporter("omni-infer").export(with_mtp())
    assert np.load(io.BytesIO(export.content)).shape == (4, 3, 6)
    assert "max_moe_layer_num: 3" in export.hints[0]


class TestLMDeploy:
    def test_loads_are_written_as_they_are(self) -> None:
        """The golden statistics of the engine's format, in rows of hidden layers."""
        rows = json.loads(exported(get_exporter("lmdeploy"), small_placement(layer_ids=(1, 3))).content)
        assert [rows[1], rows[3]] == [[9.0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 9.0]]
        assert len(rows) == 4 and rows[0] == [1.0] * 6

    def test_refuses_redundant_experts_without_loads(self) -> None:
        """EPLB would copy and place experts as it likes."""
        with pytest.raises(MapError, match="--load TRACES"):
            get_exporter("lmdeploy").export(small_placement())

    def test_refuses_one_expert_a_gpu(self) -> None:
        """There EPLB does not pack at all."""
        placement = replace(small_placement(redundant=False), gpus_per_node=3, slots_per_gpu=1)
        with pytest.raises(MapError, match="expert e on GPU e"):
            get_exporter("lmdeploy").export(placement)

    def test_refuses_loads_of_another_shape(self) -> None:
        with pytest.raises(MapError, match=r"\[3, 6\].*\[2, 6\]"):
            get_exporter("lmdeploy").export(small_placement(), ExportOptions(load_LE=np.ones((3, 6))))

    def test_groups_are_kept_where_nodes_divide_them(self) -> None:
        """Where they do not, EPLB would copy experts without packing them: one group and one node are asked for."""
        for groups, flags in (
            (2, "NUM_GROUPS=2 LMDEPLOY_EPLB_RANKS_PER_NODE=2 "),
            (3, "NUM_GROUPS=1 LMDEPLOY_EPLB_RANKS_PER_NODE=4 "),
        ):
            placement = replace(small_placement(), model=replace(small_placement().model, num_groups=groups))
            assert flags in exported(get_exporter("lmdeploy"), placement).hints[0]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("sglang", r"Mixtral and OLMoE.* without a word; .*SGLANG_LOG_EXPERT_LOCATION_METADATA=1"),
        ("tensorrt-llm", r"other than DeepSeek-V3.*GPT-OSS.*Qwen3\.5 MoE.*expert parallelism or attention DP"),
        ("vllm", r"--expert-placement-strategy out: .*round_robin"),
        ("vllm-plugin", r"--expert-placement-strategy out: .*round_robin"),
        ("vllm-hygon", r"vLLM stops where it runs another, or a draft model"),
    ],
)
def test_hints_say_when_an_engine_sets_a_file_aside(name: str, told: str) -> None:
    """What no error tells: for which models and settings the file is not read."""
    assert re.search(told, "\n".join(exported(get_exporter(name), small_placement()).hints))


class TestHygon:
    def test_keys_that_its_loader_asks_for(self) -> None:
        """By the class of the model; MTP layers are of another class."""
        content = get_exporter("vllm-hygon").export(with_mtp(), ExportOptions(model_class="MoeForCausalLM")).content
        document = json.loads(content)
        assert document.keys() == {"version", "format", "model_maps"} and document["model_maps"].keys() == {
            "MoeForCausalLM"
        }
        entry = document["model_maps"]["MoeForCausalLM"]
        assert (entry["record_kind"], entry["model_class"], entry["model_name"]) == (
            "proposal",
            "MoeForCausalLM",
            "small",
        )
        assert entry["physical_to_logical_map"] == with_mtp().phy2log_LP[:3].tolist()
        counts = ("num_moe_layers", "num_logical_experts", "num_physical_experts", "num_redundant_experts")
        assert [entry[key] for key in counts] == [3, 6, 8, 2]

    def test_a_name_is_no_class(self) -> None:
        """Of most placements the name is one of a file or a repository: the engine would not find its map."""
        model = replace(small_placement().model, name="deepseek-ai/DeepSeek-V3")
        with pytest.raises(OptionError, match=r"'deepseek-ai/DeepSeek-V3' is not; give --model-class"):
            get_exporter("vllm-hygon").export(replace(small_placement(), model=model))

    def test_maps_of_several_models_are_not_guessed(self) -> None:
        """Its recorder puts a model and its draft model in one file."""
        document = json.loads(get_exporter("vllm-hygon").export(small_placement()).content)
        document["model_maps"]["Draft"] = document["model_maps"]["small"]
        with pytest.raises(MapError, match=r"has 2 models \(small, Draft\); leave the one to import"):
            get_importer("vllm-hygon").read(json.dumps(document).encode(), ".json")


@pytest.mark.parametrize("name", ["vllm-plugin", "vllm-ascend", "vllm-hygon", "tensorrt-llm", "lmdeploy", "omni-infer"])
def test_one_gpu_is_refused(name: str) -> None:
    """Engines leave a map aside where expert parallelism is off, and say nothing."""
    with pytest.raises(MapError, match="1 GPU"):
        get_exporter(name).export(one_gpu())


class TestDescribed:
    def test_shifts_layers(self) -> None:
        """A map that counts MoE layers only gets absolute numbers."""
        placement = described(small_placement(), layer_ids=(3, 4), num_hidden_layers=5)
        assert placement.model.layer_ids == (3, 4)
        assert placement.model.num_hidden_layers == 5

    def test_relative_layers_are_suspected(self) -> None:
        """A map whose last MoE layer is not the last layer may be numbered otherwise: it must be said."""
        with pytest.raises(OptionError, match="--moe-layers 3-4"):
            described(small_placement(), num_hidden_layers=5)
        assert described(small_placement(), num_hidden_layers=5, layer_ids=(0, 1)).model.layer_ids == (0, 1)

    def test_adds_mtp_layers_that_are_missing(self) -> None:
        """With the trivial map; those that the map has stay."""
        placement = described(with_mtp(), num_mtp_layers=2)
        assert placement.model.layer_ids == (1, 2, 3, 4, 5)
        assert placement.phy2log_LP[3].tolist() == with_mtp().phy2log_LP[3].tolist()
        assert placement.phy2log_LP[4].tolist() == [0, 1, 2, 3, 4, 5, 0, 1]
        assert placement.model.num_main_layers == 3

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ({"layer_ids": (3,)}, "names 1 layers; the map has 2"),
            ({"num_hidden_layers": 0}, "leaves out every MoE layer"),
            ({"num_mtp_layers": 1}, "give --num-hidden-layers"),
        ],
    )
    def test_contradictions(self, options: dict[str, int], told: str) -> None:
        with pytest.raises(OptionError, match=told):
            described(small_placement(), **options)  # type: ignore[arg-type]

    def test_what_the_file_says_is_not_overruled(self) -> None:
        with pytest.raises(OptionError, match="is not what the map says, 4"):
            described(with_mtp(), num_hidden_layers=5)

    def test_layer_numbers(self) -> None:
        assert layer_numbers("3-6") == (3, 4, 5, 6)
        assert layer_numbers("1, 3,5-6") == (1, 3, 5, 6)

    @pytest.mark.parametrize("text", ["", "a", "3-", "5-3", "1,1", "3,2", "-1", "1-2-3", "1,,2", "99999"])
    def test_layer_numbers_that_are_none(self, text: str) -> None:
        with pytest.raises(OptionError, match="--moe-layers"):
            layer_numbers(text)


def test_unknown_exporter() -> None:
    with pytest.raises(OptionError, match="native, sglang"):
        get_exporter("nothing")
    with pytest.raises(OptionError, match="choose one of sglang, vllm, vllm-ascend, vllm-hygon"):
        get_importer("lmdeploy")
