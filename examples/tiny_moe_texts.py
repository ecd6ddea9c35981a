"""Text of nine clear domains from Python itself and from Debian packages, split by document into training and held out.

Python's standard library and C headers are wherever Python is. The rest is read below a folder `root`, into which
Debian packages were unpacked without installing them (examples/README.md says which, and how); `/` reads the machine's.
"""

from __future__ import annotations

import gzip
import random
import re
import sysconfig
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

DOCUMENT_CHARS = 40_000
HELD_OUT = 0.1


def domains(root: Path, seed: int, chars: int) -> dict[str, tuple[list[str], list[str]]]:
    """(training, held-out) documents of every domain whose text is there, at most `chars` characters of each."""
    man = root / "usr/share/man"
    austen = root / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
    sources: dict[str, Callable[[], Iterator[str]]] = {
        "arithmetic": lambda: arithmetic(random.Random(seed)),
        "c": lambda: files(Path(sysconfig.get_path("include")), "*.h"),
        "english": lambda: manual_pages(man, "man[1-8]"),
        "french": lambda: manual_pages(man / "fr", "man[1-8]"),
        "german": lambda: manual_pages(man / "de", "man[1-8]"),
        "japanese": lambda: manual_pages(man / "ja", "man[1-8]"),
        "literature": lambda: novels(austen),
        "python": lambda: files(Path(sysconfig.get_path("stdlib")), "*.py"),
        "russian": lambda: manual_pages(man / "ru", "man[1-8]"),
    }
    found = {name: split(read(), random.Random(f"{seed} {name}"), chars) for name, read in sources.items()}
    return {name: parts for name, parts in found.items() if all(parts)}


def split(documents: Iterator[str], rng: random.Random, chars: int) -> tuple[list[str], list[str]]:
    """Whole documents for each side, equal ones once."""
    texts = sorted({text[:DOCUMENT_CHARS] for text in documents if len(text) >= 400})
    rng.shuffle(texts)
    kept, size = [], 0
    for text in texts:
        size += len(text)
        if size > chars:
            break
        kept.append(text)
    cut = max(1, round(HELD_OUT * len(kept))) if kept else 0
    return kept[cut:], kept[:cut]


def files(folder: Path, pattern: str) -> Iterator[str]:
    """Source files below `folder`, tests and installed packages left out."""
    for path in sorted(folder.rglob(pattern)):
        if not {"test", "tests", "site-packages", "lib2to3", "idlelib"} & set(path.relative_to(folder).parts):
            yield path.read_text(errors="ignore")


def manual_pages(folder: Path, sections: str) -> Iterator[str]:
    """Manual pages as plain text: requests of the formatter dropped, escapes of fonts and characters resolved."""
    for path in sorted(folder.glob(f"{sections}/*.gz")):
        lines = gzip.decompress(path.read_bytes()).decode(errors="ignore").splitlines()
        text = "\n".join(line for line in lines if not line.startswith((".", "'")))
        text = re.sub(r"\\f\[?[A-Z]+\]?|\\[&/,|:]|\\s[-+]?\d", "", text)
        yield re.sub(r"\\\(..|\\\[\w+\]|\\ ", " ", text).replace("\\-", "-").replace("\\e", "\\")


def novels(path: Path) -> Iterator[str]:
    """Chapters of Jane Austen's novels: each object of R's data base is a compressed vector of lines."""
    data = path.read_bytes() if path.exists() else b""
    for start in re.finditer(rb"x\x9c", data):
        try:
            packed = zlib.decompressobj().decompress(data[start.start() :])
        except zlib.error:
            continue
        lines = [line.decode(errors="ignore") for line in strings(packed)]
        yield from re.split(r"\n(?=CHAPTER |Chapter )", "\n".join(lines))


def strings(packed: bytes) -> Iterator[bytes]:
    """Strings of one R object in its XDR form: a header of four bytes that ends in 9, a length, the bytes."""
    at = packed.find(b"\x00\x04\x00\x09")
    while at >= 0 and at + 8 <= len(packed) and packed[at + 3] == 9:
        size = int.from_bytes(packed[at + 4 : at + 8], "big")
        yield packed[at + 8 : at + 8 + size]
        at += 8 + size


def arithmetic(rng: random.Random) -> Iterator[str]:
    """Pages of small sums, written in four ways."""
    for _ in range(800):
        lines = []
        for _ in range(40):
            a, b, c = rng.randrange(100), rng.randrange(100), rng.randrange(1, 13)
            sums = (f"{a} + {b} = {a + b}", f"{a + b} - {b} = {a}")
            products = (f"{a} * {c} = {a * c}", f"({a} + {b}) * {c} = {(a + b) * c}")
            lines.append(rng.choice((*sums, *products)))
        yield "\n".join(lines)
