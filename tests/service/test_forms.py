"""What the page proposes, and how an engine's start command is told from the notes beside it."""

from __future__ import annotations

import numpy as np
import pytest
from placement_api.bodies import PlacementBody
from placement_api.pages.forms import FIELDS, body_of, proposal, values_of
from placement_api.pages.recording_form import READ_AS, read_as_of
from placement_api.pages.start import start_of
from placement_api.problems import Problem
from placement_api.store.tables import TraceRow

from placement.core.model import Model
from placement.core.placement import Placement
from placement.documents.cluster_yaml import cluster_of
from placement.exporters import EXPORTERS, get_exporter
from placement.exporters.base import ExportOptions


@pytest.mark.parametrize("kind", ["trace", "counts"])
def test_the_form_that_is_proposed_is_accepted_whatever_the_trace(kind: str) -> None:
    """Every number of experts gets a cluster that they fit and a request that the service takes as it is."""
    for num_experts in range(1, 520):
        values = proposal(TraceRow(kind=kind, num_experts=num_experts))
        body = PlacementBody.model_validate(body_of("0f", values))
        cluster = cluster_of(body.cluster, num_experts)
        assert cluster.num_ranks <= max(num_experts, 2)
        assert cluster.num_nodes > 1
        assert body.options.objective == ("locality" if kind == "trace" else "balance")


def test_a_request_becomes_the_form_that_made_it() -> None:
    """What "change and solve again" shows."""
    row = TraceRow(kind="trace", num_experts=32)
    values = proposal(row) | {"balance_weight": "0.25", "group": "1", "max_imbalance": "1.5", "solver": "balance"}
    request = PlacementBody.model_validate(body_of("0f", values)).model_dump()
    shown = values_of(request, 32)
    assert body_of("0f", shown) == body_of("0f", values)
    assert {field.name for field in FIELDS} == set(shown)


def test_a_cluster_that_was_given_otherwise_is_shown_as_the_form_has_it() -> None:
    """Slots of a GPU become redundant experts; what does not fit stays as it was."""
    body = {"traces": ["0f"], "cluster": {"num_nodes": 2, "slots_per_gpu": 5}}
    shown = values_of(PlacementBody.model_validate(body).model_dump(), 32)
    ranks = int(shown["num_nodes"]) * int(shown["gpus_per_node"])
    assert ranks * 5 == 32 + int(shown["redundant_experts"])
    body["cluster"] = {"num_nodes": 2, "gpus_per_node": 3}
    assert values_of(PlacementBody.model_validate(body).model_dump(), 32)["gpus_per_node"] == "3"


@pytest.mark.parametrize("engine", [name for name in EXPORTERS if name != "native"])
def test_every_engine_has_a_start_command_to_copy(engine: str) -> None:
    """It names the file that is downloaded, none of the other hints is lost, and none is in it twice."""
    model = Model(name="m", layer_ids=(0, 1), num_experts=8, top_k=2)
    rows = np.tile(np.arange(8), (2, 1))
    placement = Placement(model=model, num_nodes=2, gpus_per_node=2, slots_per_gpu=2, phy2log_LP=rows)
    hints = get_exporter(engine).export(placement, ExportOptions()).hints
    start = start_of(hints, "file.json")
    assert start.command
    assert ("FILE" not in start.command) and (("file.json" in start.command) == any("FILE" in hint for hint in hints))
    assert len(start.notes) == len(hints) - 1


def test_a_list_of_layers_that_is_none_is_told_by_its_label() -> None:
    """The page shows labels: the option of the command line, and the key of a body, say nothing to who fills it in."""
    assert read_as_of({"layer_ids": "3-5"}).options().layer_ids == (3, 4, 5)
    with pytest.raises(Problem) as caught:
        read_as_of({"layer_ids": "5-"})
    assert caught.value.body.detail.startswith(f"{READ_AS['layer_ids']}: '5-' is no list")
    assert "layer_ids" not in caught.value.body.detail
