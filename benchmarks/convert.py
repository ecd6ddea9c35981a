"""How fast a dump of SGLang's recorder (mode per_token, the size of DeepSeek-V3) is converted, and in how much memory.

    python benchmarks/convert.py [--gigabytes 2] [--folder /tmp]

The dump is made and converted in processes of their own; the memory is the most that the converting one ever had.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from machine import describe_machine, output_folder

LAYERS, DENSE, EXPERTS, TOP_K, PASS_TOKENS = 61, 3, 256, 8, 8192
CONVERT = """
import resource, sys, time
from placement.readers.convert import convert
import torch
begin = time.monotonic()
done = convert(sys.argv[1], sys.argv[2])
seconds = time.monotonic() - begin
print(done.num_tokens, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def write_dump(path: Path, num_tokens: int, seed: int = 0) -> None:
    """A dump with passes of PASS_TOKENS tokens, each a prefill of four requests."""
    import torch

    rng = np.random.default_rng(seed)
    steps = np.cumsum(rng.integers(1, EXPERTS // TOP_K, size=TOP_K)).astype(np.int32)
    records = []
    for number, start in enumerate(range(0, num_tokens, PASS_TOKENS)):
        size = min(PASS_TOKENS, num_tokens - start)
        ids = rng.integers(0, EXPERTS, size=(LAYERS, size, 1), dtype=np.int32) + steps
        ids %= EXPERTS
        ids[:DENSE] = -1
        lengths = [len(part) for part in np.array_split(np.arange(size), 4)]
        records.append(
            {
                "forward_pass_id": number,
                "rank": 0,
                "gatherer_key": "primary",
                "input_ids": [1000] * size,
                "positions": [position for length in lengths for position in range(length)],
                "extend_seq_lens": lengths,
                "forward_mode": 1,
                "topk_ids_of_layer": torch.from_numpy(ids),
                "misc_objects": [],
                "global_physical_count": torch.zeros((LAYERS, EXPERTS), dtype=torch.int32),
            }
        )
    slots = torch.arange(EXPERTS).repeat(LAYERS, 1)
    torch.save({"records": records, "last_physical_to_logical_map": slots}, path)


def measure(dump: Path, output: Path) -> tuple[int, float, int]:
    """(tokens, seconds, most bytes of memory) of a conversion in a process of its own; torch is imported before."""
    command = [sys.executable, "-c", CONVERT, str(dump), str(output)]
    tokens, seconds, memory_bytes = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return int(tokens), float(seconds), int(memory_bytes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--folder", type=output_folder, default=Path(tempfile.gettempdir()))
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    print(f"# Converting a recording\n\n{describe_machine()}\n")
    print("| tokens | dump, GB | seconds | million ids/s | most memory, MB |\n|---|---|---|---|---|")
    token_bytes = LAYERS * TOP_K * 4
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for tokens in (20_000, int(arguments.gigabytes * 1e9 / token_bytes)):
            dump = Path(folder) / f"{tokens}.pt"
            code = "import sys, pathlib; sys.path.insert(0, sys.argv[3]); from convert import write_dump; "
            code += "write_dump(pathlib.Path(sys.argv[1]), int(sys.argv[2]))"
            here = str(Path(__file__).parent)
            subprocess.run([sys.executable, "-c", code, str(dump), str(tokens), here], check=True)
            runs = [
                measure(dump, Path(folder) / f"{tokens}-{number}") for number in range(3 if tokens <= 20_000 else 1)
            ]
            seconds, memory_bytes = min(run[1] for run in runs), max(run[2] for run in runs)
            rate = tokens * LAYERS * TOP_K / seconds
            print(
                f"| {tokens:,} | {dump.stat().st_size / 1e9:.2f} | {seconds:.2f} | {rate / 1e6:.1f} | "
                f"{memory_bytes / 1e6:.0f} |"
            )


if __name__ == "__main__":
    main()
