"""The registry: an exporter is one file and one line here."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, cast

from placement.errors import OptionError

if TYPE_CHECKING:
    from placement.exporters.base import Exporter, Importer

EXPORTERS = {
    "native": "placement.exporters.native:Native",
    "sglang": "placement.exporters.sglang:SGLang",
    "vllm": "placement.exporters.vllm:VLLM",
    "vllm-plugin": "placement.exporters.vllm_plugin.exporter:VLLMPlugin",
    "vllm-ascend": "placement.exporters.vllm_ascend:VLLMAscend",
    "tensorrt-llm": "placement.exporters.tensorrt_llm:TensorRTLLM",
    "lmdeploy": "placement.exporters.lmdeploy:LMDeploy",
    "omni-infer": "placement.exporters.omni_infer:OmniInfer",
    "deepseek-eplb": "placement.exporters.deepseek_eplb:DeepSeekEPLB",
}


def get_exporter(name: str) -> Exporter:
    """The exporter of that name. Raises OptionError."""
    if name not in EXPORTERS:
        raise OptionError(f"--to {name!r} is unknown; choose one of {', '.join(EXPORTERS)}")
    return _made(name)


def get_importer(name: str) -> Importer:
    """The exporter of that name, if its files can be read back. Raises OptionError."""
    from placement.exporters.base import Importer

    exporter = _made(name) if name in EXPORTERS else None
    if not isinstance(exporter, Importer):
        readable = [other for other in EXPORTERS if isinstance(_made(other), Importer)]
        raise OptionError(f"--from {name!r} has no map that can be read back; choose one of {', '.join(readable)}")
    return exporter


def _made(name: str) -> Exporter:
    module, attribute = EXPORTERS[name].split(":")
    return cast("Exporter", getattr(import_module(module), attribute)())


__all__ = ["EXPORTERS", "get_exporter", "get_importer"]
