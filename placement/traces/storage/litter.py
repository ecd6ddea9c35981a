"""Files that travel with a folder and hold no traffic: a README, a licence, what file managers and archivers leave.

Whoever reads a folder or an archive leaves them out, and tells so with `left_out`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from placement.errors import printable

ABOUT = re.compile(r"(readme|licen[cs]e|copying|notice)([-_.].*)?", re.IGNORECASE)
DATA = (".safetensors", ".json", ".jsonl", ".npy", ".npz", ".parquet", ".gguf", ".pt")  # what readers read
LEFT_BY_SYSTEMS = re.compile(r"__MACOSX|PaxHeaders?(\.\d+)?|Thumbs\.db|desktop\.ini", re.IGNORECASE)
MOST_NAMED, LONGEST_SHOWN = 8, 80


def is_litter(name: str) -> bool:
    """Whether the file of this name (a path below its folder, with `/`) holds no traffic.

    Hidden files are litter and so is what lies in a hidden folder. A path that leads elsewhere is not judged: False.
    """
    parts = [part for part in name.split("/") if part != "."]
    if not all(parts) or ".." in parts:
        return False
    if any(part.startswith(".") or LEFT_BY_SYSTEMS.fullmatch(part) for part in parts):
        return True
    return bool(parts) and ABOUT.fullmatch(parts[-1]) is not None and not parts[-1].endswith(DATA)


def left_out(names: Sequence[str]) -> list[str]:
    """The note on files that were left out: how many and which, in one line; no note where there are none."""
    if not names:
        return []
    shown = ", ".join(printable(name[:LONGEST_SHOWN]) for name in names[:MOST_NAMED])
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    files = "1 file that holds" if len(names) == 1 else f"{len(names)} files that hold"
    return [f"left out {files} no traffic: {shown}{more}"]
