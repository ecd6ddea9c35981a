"""What is sent to a service: the files of a trace in a tar, and that tar in a body of multipart/form-data."""

from __future__ import annotations

import shutil
import tarfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from placement.errors import InputError, OutputError, TraceError
from placement.traces.storage.stored_path import is_url
from placement.traces.trace import open_trace


def trace_files(path: str | Path) -> list[tuple[Path, str]]:
    """The files of the traces at a path, and what to call them. Raises TraceError."""
    if is_url(path):
        raise TraceError(f"{path} is on shared storage, a service is sent files of this machine; copy it here")
    folders = sorted({Path(str(shard.path.parent)) for shard in open_trace(path).shards})
    return [
        (file, file.name if len(folders) == 1 else f"{number:05d}/{file.name}")
        for number, folder in enumerate(folders)
        for file in [folder / "trace.json", *sorted(folder.glob("shard-*.safetensors"))]
    ]


def pack(files: list[tuple[Path, str]], target: Path) -> None:
    """A tar of files under new names. Raises OutputError."""
    try:
        with tarfile.open(target, "w") as tar:
            for file, name in files:
                tar.add(file.resolve(), name)
    except OSError as error:
        raise OutputError(f"cannot pack {target.name}: {error.strerror}; free space in {target.parent}") from None


@contextmanager
def multipart(target: Path, file: Path, fields: dict[str, str]) -> Iterator[tuple[IO[bytes], int, str]]:
    """A body of multipart/form-data on disk: uploads may be larger than memory. Raises OutputError, InputError."""
    edge = uuid.uuid4().hex
    head = "".join(
        f'--{edge}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    )
    head += f'--{edge}\r\nContent-Disposition: form-data; name="file"; filename="{_quoted(file.name)}"\r\n\r\n'
    try:
        content = file.open("rb")
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from None
    with content:
        try:
            with target.open("wb") as body:
                body.write(head.encode(errors="replace"))
                shutil.copyfileobj(content, body, 1 << 20)
                body.write(f"\r\n--{edge}--\r\n".encode())
        except OSError as error:
            raise OutputError(f"cannot pack {file.name}: {error.strerror}; free space in {target.parent}") from None
    with target.open("rb") as body:
        yield body, target.stat().st_size, f"multipart/form-data; boundary={edge}"


def _quoted(name: str) -> str:
    """A file's name as browsers write it in a header of a part."""
    for character, code in (('"', "%22"), ("\r", "%0D"), ("\n", "%0A")):
        name = name.replace(character, code)
    return name
