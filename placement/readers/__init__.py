"""The registry: a reader is one file and one line here. `placement.readers.convert` writes what they read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from placement.errors import OptionError, TraceError
from placement.support.registry import Registry

if TYPE_CHECKING:
    from placement.readers.base import Reader

AUTO = "auto"
READERS: Registry[Reader] = Registry(
    "--from ",
    {
        "sglang": "placement.readers.sglang:SGLang",
        "sglang-responses": "placement.readers.sglang_responses:SGLangResponses",
        "vllm": "placement.readers.vllm:VLLM",
        "routing-log": "placement.readers.routing_log:RoutingLog",
        "megatron": "placement.readers.megatron:Megatron",
        "tensorrt-llm": "placement.readers.tensorrt_llm:TensorRTLLM",
        "llama-cpp": "placement.readers.llama_cpp:LlamaCpp",
        "arrays": "placement.readers.arrays:Arrays",
        "parquet": "placement.readers.parquet:Parquet",
    },
    others=(AUTO,),
)
get_reader = READERS.make


def detect(path: str | Path) -> tuple[Reader, str]:
    """The reader that takes `path`, and why.

    Raises:
        TraceError: No reader takes the path.
        OptionError: Several readers do; the message names them.
    """
    from placement.readers.base import check_exists

    path = Path(path)
    check_exists(path)
    readers = [get_reader(name) for name in READERS]
    found = [(reader, why) for reader in readers if (why := reader.sniff(path)) is not None]
    if not found:
        if (path / "trace.json").exists():
            raise TraceError(f"{path} is an expert-trace/1 already; every command takes it as it is")
        if not (any(path.iterdir()) if path.is_dir() else path.stat().st_size):
            raise TraceError(f"{path} is empty; give what an engine recorded")
        raise TraceError(f"{path} is of no known format; name it with --from: one of {', '.join(READERS)}")
    if len(found) > 1:
        raise OptionError(
            f"{path} may be of several formats: {'; '.join(f'{reader.name} ({why})' for reader, why in found)}; "
            f"choose one with --from"
        )
    return found[0]


__all__ = ["AUTO", "READERS", "detect", "get_reader"]
