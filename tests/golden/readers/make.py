"""Writes the recordings beside this file, without the library: `python tests/golden/readers/make.py [FOLDER]`.

`<case>.json` beside the folder of a recording says what must come out, and the options it needs. Needs torch and
pyarrow. `recorded_routing.py` has what all of them record.
"""

from __future__ import annotations

from make_dumps import sglang, speculative
from make_files import arrays, llama_cpp, megatron, parquet, routing_log, tensorrt_llm
from make_responses import responses_by_version, sglang_responses, token_ids, vllm

if __name__ == "__main__":
    for write in (sglang, sglang_responses, vllm, routing_log, megatron, tensorrt_llm, llama_cpp, arrays, parquet):
        write()
    for write in (responses_by_version, token_ids, speculative):
        write()
