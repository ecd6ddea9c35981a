"""The registry: an exporter is one file and one line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from placement.errors import OptionError
from placement.support.registry import Registry

if TYPE_CHECKING:
    from placement.exporters.base import Exporter, Importer

EXPORTERS: Registry[Exporter] = Registry(
    "--to ",
    {
        "native": "placement.exporters.native:Native",
        "sglang": "placement.exporters.sglang:SGLang",
        "vllm": "placement.exporters.vllm:VLLM",
        "vllm-plugin": "placement.exporters.vllm_plugin.exporter:VLLMPlugin",
        "vllm-ascend": "placement.exporters.vllm_ascend:VLLMAscend",
        "vllm-hygon": "placement.exporters.vllm_hygon:VLLMHygon",
        "tensorrt-llm": "placement.exporters.tensorrt_llm:TensorRTLLM",
        "lmdeploy": "placement.exporters.lmdeploy:LMDeploy",
        "omni-infer": "placement.exporters.omni_infer:OmniInfer",
        "deepseek-eplb": "placement.exporters.deepseek_eplb:DeepSeekEPLB",
    },
)


def get_exporter(name: str) -> Exporter:
    """The exporter of that name.

    Raises:
        OptionError: No exporter has the name; the message lists those there are.
    """
    return EXPORTERS.make(name)


def get_importer(name: str) -> Importer:
    """The exporter of that name, if its files can be read back.

    Raises:
        OptionError: No exporter has the name, or its files hold no map that can be read back.
    """
    from placement.exporters.base import Importer

    exporter = get_exporter(name) if name in EXPORTERS else None
    if not isinstance(exporter, Importer):
        readable = [other for other in EXPORTERS if isinstance(get_exporter(other), Importer)]
        raise OptionError(f"--from {name!r} has no map that can be read back; choose one of {', '.join(readable)}")
    return exporter


__all__ = ["EXPORTERS", "get_exporter", "get_importer"]
