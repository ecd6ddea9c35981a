"""S3-compatible buckets through s3fs. Endpoint and keys come from the environment (or fsspec's configuration) alone."""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from placement.errors import OptionError
from placement_api.problems import Problem
from placement_api.store.files import Entry

URL = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])((?:/[A-Za-z0-9._=-]+)*)/?")
PATIENCE = {"connect_timeout": 5, "read_timeout": 60, "retries": {"max_attempts": 3, "mode": "standard"}}
PAGE = 1000
log = logging.getLogger("placement.service")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A folder of a bucket: its name, and the key without slashes around it (empty: the whole bucket)."""

    bucket: str
    key: str

    @staticmethod
    def parse(url: str) -> Place:
        """Of s3://bucket/folder: plain letters alone, nothing that leads elsewhere. Raises OptionError."""
        found = URL.fullmatch(url)
        if found is None or any(set(part) == {"."} for part in found[2].split("/") if part):
            raise OptionError(f"{url[:200]!r} is no place in a bucket; give s3://BUCKET/FOLDER of plain letters")
        return Place(bucket=found[1], key=found[2].strip("/"))

    def holds(self, other: Place) -> bool:
        inside = not self.key or other.key == self.key or other.key.startswith(f"{self.key}/")
        return self.bucket == other.bucket and inside

    def below(self, key: str) -> Place:
        return Place(bucket=self.bucket, key=f"{self.key}/{key}".strip("/"))

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


class Buckets:
    """What the keys of the environment open. Every method raises Problem (503) where it does not answer."""

    def __init__(self) -> None:
        try:
            import s3fs
        except ImportError:
            raise OptionError(
                "a bucket needs s3fs, which is not installed; pip install 'expert-placement[s3]'"
            ) from None
        self._s3: Any = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False, config_kwargs=PATIENCE)

    def write(self, place: Place, content: bytes) -> None:
        with _asking():
            self._s3.pipe_file(_path(place), content)

    def upload(self, place: Place, file: Path) -> None:
        with _asking():
            self._s3.put_file(str(file), _path(place))

    def download(self, place: Place, file: Path) -> None:
        """Stream an object to a new file. Raises OSError of the disk."""
        file.parent.mkdir(parents=True, exist_ok=True)
        with _asking():
            self._s3.get_file(_path(place), str(file))

    def remove(self, place: Place) -> None:
        """The object, and those below it."""
        for entry in [*self.list(place)]:
            with _asking():
                self._s3.call_s3("delete_object", Bucket=place.bucket, Key=entry.key)

    def list(self, place: Place) -> Iterator[Entry]:
        """The object of that key, and those below it, page by page; keys are those of the bucket."""
        asked: dict[str, Any] = {"Bucket": place.bucket, "Prefix": place.key, "MaxKeys": PAGE}
        while True:
            with _asking():
                page = self._s3.call_s3("list_objects_v2", **asked)
            for one in page.get("Contents", ()):
                if place.holds(Place(bucket=place.bucket, key=one["Key"])) and not one["Key"].endswith("/"):
                    modified = one["LastModified"].timestamp()
                    yield Entry(key=one["Key"], num_bytes=one["Size"], modified=modified)
            if not page.get("IsTruncated"):
                return
            asked["ContinuationToken"] = page["NextContinuationToken"]


def _path(place: Place) -> str:
    return f"{place.bucket}/{place.key}"


@contextmanager
def _asking() -> Iterator[None]:
    """Nothing of what the store said is told or logged: it may name its address."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        log.error("the bucket does not answer: %s", type(error).__name__)
        what = f"the store of files does not answer: {type(error).__name__}"
        raise Problem(503, what, "try again later", Retry_After="5") from None
