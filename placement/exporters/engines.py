"""The engines that maps are solved for: what `--for` sets, and whether the engine can load a map of such a shape."""

from __future__ import annotations

from typing import TYPE_CHECKING

from placement.core.choices import REPLICA_CHOICE
from placement.errors import MapError, OptionError

if TYPE_CHECKING:
    from placement.core.cluster import Cluster
    from placement.core.model import Model
    from placement.exporters.base import Exporter

ENGINES = {  # engine: the exporter of its file, which also knows the engine's rule and transport
    "vllm": "vllm-plugin",
    "vllm-hygon": "vllm-hygon",
    "vllm-ascend": "vllm-ascend",
    "sglang": "sglang",
    "tensorrt-llm": "tensorrt-llm",
    "lmdeploy": "lmdeploy",
    "omni-infer": "omni-infer",
    "runtime": "native",
}


def exporter_for(engine: str) -> Exporter:
    """The exporter of an engine's file.

    Raises:
        OptionError: No engine has the name; the message lists those there are.
    """
    from placement.exporters import get_exporter  # each exporter is loaded where it is asked for

    if engine not in ENGINES:
        raise OptionError(f"the engine {engine!r} is unknown; choose one of {', '.join(ENGINES)}")
    return get_exporter(ENGINES[engine])


def rules_of(engine: str) -> tuple[str, str]:
    """How an engine chooses among copies, and what it sends: names as of `--replica-choice` and `--transport`."""
    exporter = exporter_for(engine)
    return next(iter(exporter.replica_choices), REPLICA_CHOICE), exporter.transport


def check_loadable(engine: str, model: Model, cluster: Cluster) -> None:
    """Raise OptionError where the engine could load no map of this model on this cluster: before one is searched."""
    import numpy as np

    from placement.core.placement import Placement

    row_P = np.arange(cluster.num_slots) % model.num_experts
    trial = Placement(
        model=model,
        num_nodes=cluster.num_nodes,
        gpus_per_node=cluster.gpus_per_node,
        slots_per_gpu=cluster.slots_per_gpu,
        phy2log_LP=np.tile(row_P, (model.num_layers, 1)),
    )
    try:
        exporter_for(engine).export(trial)
    except MapError as error:
        raise OptionError(f"--for {engine}: {error}") from None
