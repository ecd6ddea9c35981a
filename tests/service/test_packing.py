"""What the client sends: a body that the service's parser reads back, and words where the body cannot be made."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import UploadFile
from starlette.requests import Request

from placement.client.packing import multipart
from placement.errors import InputError, OutputError

NAMES = st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=20).filter(
    lambda name: name.strip(".") != ""
)


def parsed(content: bytes, media: str) -> tuple[dict[str, str], str | None, bytes]:
    """The fields, the file's name and the file, by the parser that the service uses."""

    async def read() -> tuple[dict[str, str], str | None, bytes]:
        async def receive() -> dict[str, object]:
            return {"type": "http.request", "body": content, "more_body": False}

        head = [(b"content-type", media.encode())]
        async with Request({"type": "http", "method": "POST", "headers": head}, receive).form() as form:
            file = form["file"]
            assert isinstance(file, UploadFile)
            fields = {name: value for name, value in form.items() if isinstance(value, str)}
            return fields, file.filename, await file.read()

    return asyncio.run(read())


@given(name=NAMES, content=st.binary(max_size=200), value=st.text(st.characters(codec="utf-8"), max_size=20))
def test_the_service_reads_what_was_packed(
    tmp_path_factory: pytest.TempPathFactory, name: str, content: bytes, value: str
) -> None:
    """Any name of a file, with quotes and ends of lines, stays within its header; the content comes whole."""
    folder = tmp_path_factory.mktemp("packed")
    file = folder / name
    try:
        file.write_bytes(content)
    except OSError:  # longer in bytes than the file system takes
        return
    with multipart(folder / ".body", file, {"model": value}) as (body, length, media):
        packed = body.read()
    assert length == len(packed)
    fields, filename, got = parsed(packed, media)
    assert (fields, got) == ({"model": value}, content)
    assert filename == name.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")


def test_a_body_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """No traceback where the disk for temporary files is full or absent, or the file may not be read."""
    (tmp_path / "counts.npz").write_bytes(b"x")
    with (
        pytest.raises(OutputError, match=r"cannot pack counts\.npz: .*; free space in"),
        multipart(tmp_path / "absent" / "body", tmp_path / "counts.npz", {}),
    ):
        pass
    with (
        pytest.raises(InputError, match=r"cannot read .*gone\.npz"),
        multipart(tmp_path / "b", tmp_path / "gone.npz", {}),
    ):
        pass
