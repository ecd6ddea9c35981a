"""Changes to bytes that keep their structure: values in JSON, headers of arrays, members of zips with sums put right.

What a coverage-guided fuzzer seldom finds by itself: a changed member of a zip fails its checksum, a longer header of
safetensors its length.
"""

from __future__ import annotations

import copy
import io
import json
import random
import re
import struct
import zipfile
from typing import Any

EDGES = (255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30)
NUMBERS = (-1, 0, 1, 2, *EDGES)
VALUES: tuple[Any, ...] = (
    *NUMBERS, None, True, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", "x" * 300, "\ud800", "\x00", "../x", "é\n",
    "1", [], {}, [[]], [1] * 40, {"": 1}, [[[[1]]]],
)  # fmt: skip
DTYPES = ("|u1", "<i8", ">i4", "<f8", "<f2", "|O", "|V0", "<U0", "<U9", "|S3", "<M8[s]", "|b1", "<c16", "<f16", ">u8")
TENSOR_DTYPES = ("U8", "I64", "F64", "BF16", "F8_E4M3", "BOOL", "F4", "?", "U16", "I32")
PLAIN, MOST_BYTES = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED), 1 << 22


def mutated(data: bytes, kind: str, rng: random.Random) -> bytes:
    """One to three changes; falls back to changes of bytes where `data` has not the structure of its kind."""
    for _ in range(rng.randint(1, 3)):
        change = KINDS.get(kind, any_bytes) if rng.random() < 0.8 else any_bytes
        try:
            data = change(data, rng)
        except Exception:  # whatever its structure was, it is no longer that
            data = any_bytes(data, rng)
    return data


def any_bytes(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    end = min(at + rng.choice((1, 2, 4, 8, 40)), len(data))
    piece = rng.choice(
        (
            rng.randbytes(end - at),
            b"",
            data[at:end] * 2,
            (rng.choice(NUMBERS) % 2**64).to_bytes(8, "little")[: max(end - at, 1)],
            str(rng.choice(NUMBERS)).encode(),
        )
    )
    return data[:at] if rng.random() < 0.05 else data[:at] + piece + data[end:]


def json_value(value: Any, rng: random.Random) -> Any:
    """A copy with one node replaced, removed, doubled, renamed or moved."""
    value = copy.deepcopy(value)
    holders: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        one = waiting.pop()
        inner = list(one.items()) if isinstance(one, dict) else list(enumerate(one)) if isinstance(one, list) else []
        holders += [(one, key) for key, _ in inner]
        waiting += [item for _, item in inner]
    if not holders or rng.random() < 0.03:
        return rng.choice(VALUES)
    holder, key = rng.choice(holders)
    kind = rng.random()
    if kind < 0.55:
        old = holder[key]
        near = [old + 1, -old, old * 1000] if type(old) in (int, float) else []
        holder[key] = rng.choice([*near, *VALUES, *VALUES])
    elif kind < 0.7:
        del holder[key]
    elif kind < 0.85 and isinstance(holder, list):
        holder.insert(rng.randrange(len(holder) + 1), copy.deepcopy(holder[key]))
    elif kind < 0.9 and isinstance(holder, dict):
        holder[str(rng.choice((key, "x", "schema", 10**9, "\ud800", f"{key} ")))] = holder.pop(key)
    else:
        other, place = rng.choice(holders)
        holder[key] = copy.deepcopy(other.get(place) if isinstance(other, dict) else other[place : place + 1])
    return value


def json_text(data: bytes, rng: random.Random) -> bytes:
    text = json.dumps(json_value(json.loads(data), rng))
    if rng.random() < 0.1 and text.startswith("{") and len(text) > 2:  # every key twice
        text = text[:-1] + ", " + text[1:]
    return text.encode()


def json_lines(data: bytes, rng: random.Random) -> bytes:
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    lines[at] = json_text(lines[at], rng)
    return b"\n".join(lines)


def yaml_text(data: bytes, rng: random.Random) -> bytes:
    import yaml

    return json.dumps(json_value(yaml.safe_load(data), rng)).encode()


def npy(data: bytes, rng: random.Random) -> bytes:
    (length,) = struct.unpack("<H", data[8:10])
    header, body = data[10 : 10 + length].decode("latin1"), data[10 + length :]
    if rng.random() < 0.2:
        return data[: 10 + length] + any_bytes(body, rng)
    if rng.random() < 0.4:
        header = re.sub(r"'descr': '[^']*'", f"'descr': '{rng.choice(DTYPES)}'", header)
    elif rng.random() < 0.8:
        shape = [rng.choice((*NUMBERS, 3, 4, "True", "1.5", "()")) for _ in range(rng.randint(0, 4))]
        header = re.sub(r"'shape': \([^)]*\)", f"'shape': ({', '.join(map(str, shape))},)", header)
    else:
        header = any_bytes(header.encode("latin1"), rng).decode("latin1")
    encoded = header.encode("latin1")
    return data[:8] + struct.pack("<H", len(encoded) % 65536) + encoded + body


def safetensors(data: bytes, rng: random.Random) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    body = data[8 + length :]
    names = [name for name in header if name != "__metadata__"]
    kind = rng.random()
    if kind < 0.25:
        body = any_bytes(body, rng)
    elif kind < 0.45:
        header[rng.choice(names)]["dtype"] = rng.choice(TENSOR_DTYPES)
    elif kind < 0.6:
        shape = header[rng.choice(names)]["shape"]
        shape.insert(rng.randrange(len(shape) + 1), rng.choice(NUMBERS))
    elif kind < 0.7:
        name = rng.choice(names)
        header[name]["shape"] = [rng.choice(NUMBERS), 0]
        header[name]["data_offsets"][1] = header[name]["data_offsets"][0]
        body = b""
    elif kind < 0.8:
        name = rng.choice(names)
        header[re.sub(r"\d+", str(rng.choice(NUMBERS)), name)] = header.pop(name)
    else:
        header = json_value(header, rng)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def zipped(data: bytes, rng: random.Random) -> bytes:
    """One member changed by what its name says it is; a gzip or tar is changed as bytes."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if any(one.compress_type not in PLAIN or one.file_size > MOST_BYTES for one in archive.infolist()):
            return any_bytes(data, rng)  # a bomb, which is for the target to bear, not for us
        members = [(one.filename, archive.read(one), one.compress_type) for one in archive.infolist()]
    at = rng.randrange(len(members))
    name, content, form = members[at]
    if rng.random() < 0.1:
        name = rng.choice((name + "x", "../x", "", "a/../b", members[rng.randrange(len(members))][0]))
    else:
        content = mutated(content, name.rpartition(".")[2], rng)
    members[at] = (name, content, form)
    if rng.random() < 0.1:
        members.append(members[rng.randrange(len(members))])
    buffer = io.BytesIO()
    import warnings

    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as archive:
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, content, form in members:
            archive.writestr(name, content, form)
    return buffer.getvalue()


KINDS = {
    "json": json_text,
    "lines": json_lines,
    "yaml": yaml_text,
    "npy": npy,
    "safetensors": safetensors,
    "zip": zipped,
}
