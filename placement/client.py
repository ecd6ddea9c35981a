"""The service from Python: the library's types in and out, over the standard library's HTTP."""

from __future__ import annotations

import json
import logging
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from placement.core.cluster import Cluster
from placement.core.placement import Placement
from placement.documents.parts import ClusterDetail
from placement.documents.placement import PlacementFile, load_placement
from placement.errors import InputError, OptionError, OutputError, PlacementError, TraceError, error_of_type
from placement.readers import AUTO
from placement.readers.base import ReadOptions
from placement.solvers.options import Options
from placement.support.progress import Listener, Progress, ignore
from placement.support.same_origin import open_same_origin
from placement.traces.storage.litter import is_litter, left_out
from placement.traces.storage.stored_path import is_url
from placement.traces.trace import open_trace

log = logging.getLogger("placement")
TIMEOUT_S = 60.0  # longest silence; a job sends an event at least every 15 s
READING_S = 900.0  # longest wait until the service has read, and perhaps converted, an upload


class Client:
    """A service, for Python. The token goes to that server alone: a redirect to another is refused.

    Example::

        client = Client("http://127.0.0.1:8000")
        placement, file = client.solve([client.upload("traces/")], cluster, Options())

    Args:
        url: Address of the service.
        token: Where the service asks for one.

    Raises:
        InputError: The service refuses a request, or does not answer.
        PlacementError: The service fails; otherwise what the library would raise, as the service words it.
    """

    def __init__(self, url: str, token: str | None = None) -> None:
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
            raise OptionError(f"server {url!r} is no address; give http://HOST:PORT or https://HOST")
        self.url = url.rstrip("/")
        self._token = token

    def upload(
        self, path: str | Path, top_k: int | None = None, *, reader: str = AUTO, options: ReadOptions | None = None
    ) -> str:
        """The id of what lies at `path`, after it was uploaded: a trace folder (or a folder of such), a file of counts,
        or a file or folder that an engine recorded, which the service converts.

        `reader` and `options` are those of `placement.readers.convert.convert`.
        """
        self._ask("GET", "/v1/traces?limit=1")  # the service refuses a wrong token before the upload, not amid it
        given = options or ReadOptions()
        fields = {
            "from": None if reader == AUTO else reader,
            "experts": given.num_experts,
            "top_k": top_k or given.top_k,
            "layer_ids": None if given.layer_ids is None else ",".join(map(str, given.layer_ids)),
            "model": given.model,
            "keep_unwritten": given.keep_unwritten or None,
        }
        with tempfile.TemporaryDirectory() as folder:
            source = Path(path)
            packed = source
            if source.is_dir() and not any(found for one in ("", "*/") for found in source.glob(f"{one}trace.json")):
                packed = Path(folder) / f"{source.resolve().name}.tar"
                files = [file for file in sorted(source.iterdir()) if file.is_file()]
                _pack([(file, file.name) for file in files if not is_litter(file.name)], packed)
                for note in left_out([file.name for file in files if is_litter(file.name)]):
                    log.info("%s: %s", source, note)
            elif not source.is_file() or source.name == "trace.json":
                packed = Path(folder) / "trace.tar"
                _pack(_trace_files(path), packed)
            said = {name: str(value) for name, value in fields.items() if value is not None}
            with _multipart(Path(folder) / "body", packed, said) as (body, length, media):
                answer = self._ask("POST", "/v1/traces", body, media, length, READING_S)
        return str(json.loads(answer)["id"])

    def solve(
        self,
        traces: Sequence[str],
        cluster: Cluster,
        options: Options | None = None,
        *,
        holdout: float = 0.2,
        robust: str | None = None,
        current: str | None = None,
        listener: Listener = ignore,
    ) -> tuple[Placement, PlacementFile]:
        """As `placement.solve`, on the service: ids of traces and of the current placement in, its answer out."""
        job = self.submit(traces, cluster, options, holdout=holdout, robust=robust, current=current)
        self.wait(job, listener)
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            file.write(self.placement(job))
            file.flush()
            return load_placement(file.name)

    def submit(
        self,
        traces: Sequence[str],
        cluster: Cluster,
        options: Options | None = None,
        *,
        holdout: float = 0.2,
        robust: str | None = None,
        current: str | None = None,
    ) -> str:
        """The id of the job, which is that of the placement when it is done; the same request twice is one job."""
        body = {
            "traces": list(traces),
            "cluster": ClusterDetail.of(cluster).model_dump(),
            "options": asdict(options or Options()),
            "holdout": holdout,
            "robust": robust,
            "current": current,
        }
        return str(json.loads(self._ask("POST", "/v1/placements", json.dumps(body).encode()))["id"])

    def placement(self, placement: str) -> bytes:
        """The placement file, as `placement solve -o` writes it."""
        return self._ask("GET", f"/v1/placements/{placement}")

    def wait(self, job: str, listener: Listener = ignore) -> dict[str, Any]:
        """The job when it is done; its progress meanwhile.

        Raises:
            PlacementError: The job failed or was cancelled.
        """
        now: dict[str, Any] = {}
        told: Progress | None = None
        with self._open("GET", f"/v1/jobs/{job}/events") as events:
            for line in events:
                if line.startswith(b"data: "):
                    now = json.loads(line[6:])
                    event = Progress(**{name: now["progress"].get(name) for name in ("stage", "done", "total", "best")})
                    if event.stage and event != told:
                        listener(event)
                    told = event
        state = now.get("state")
        if state == "done":
            return now
        if state == "failed":
            raise _error(now["error"])
        raise PlacementError(f"job {job} is {state}: the answer was cut off or it was cancelled; ask {self.url} again")

    def report(self, placement: str) -> bytes:
        """The HTML report of a placement."""
        return self._ask("GET", f"/v1/placements/{placement}/report")

    def cancel(self, job: str) -> None:
        """End a job that is waiting or running."""
        self._ask("POST", f"/v1/jobs/{job}/cancel")

    def _ask(
        self,
        method: str,
        path: str,
        body: bytes | IO[bytes] | None = None,
        media: str = "application/json",
        length: int | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> bytes:
        with self._open(method, path, body, media, length, timeout_s) as answer:
            content: bytes = answer.read()
            return content

    @contextmanager
    def _open(
        self,
        method: str,
        path: str,
        body: bytes | IO[bytes] | None = None,
        media: str = "application/json",
        length: int | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> Iterator[Any]:
        headers = {"Accept": "application/json"} | ({} if body is None else {"Content-Type": media})
        if length is not None:
            headers["Content-Length"] = str(length)
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        request = urllib.request.Request(self.url + path, data=body, headers=headers, method=method)
        try:
            with open_same_origin(request, timeout_s) as answer:
                yield answer
        except urllib.error.HTTPError as error:
            try:
                raise _error(json.loads(error.read())) from None
            except (ValueError, KeyError, TypeError):
                raise InputError(f"{self.url} answers {error.code} and no reason; is it a placement service?") from None
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise InputError(f"{self.url} does not answer: {reason}; is the service running there?") from None
        except HTTPException as error:
            raise InputError(f"{self.url} broke off amid its answer: {error!r}; ask again") from None


def _error(problem: dict[str, Any]) -> PlacementError:
    """The error that the library would raise here; of others, whether the request or the service is at fault."""
    known = error_of_type(problem["type"])
    message = f"{problem['detail']}; {problem['mend']}"
    return (known or (InputError if problem["status"] < 500 else PlacementError))(message)


def _trace_files(path: str | Path) -> list[tuple[Path, str]]:
    """The files of the traces at a path, and what to call them. Raises TraceError."""
    if is_url(path):
        raise TraceError(f"{path} is on shared storage, a service is sent files of this machine; copy it here")
    folders = sorted({Path(str(shard.path.parent)) for shard in open_trace(path).shards})
    return [
        (file, file.name if len(folders) == 1 else f"{number:05d}/{file.name}")
        for number, folder in enumerate(folders)
        for file in [folder / "trace.json", *sorted(folder.glob("shard-*.safetensors"))]
    ]


def _pack(files: list[tuple[Path, str]], target: Path) -> None:
    """A tar of files under new names. Raises OutputError."""
    try:
        with tarfile.open(target, "w") as tar:
            for file, name in files:
                tar.add(file.resolve(), name)
    except OSError as error:
        raise OutputError(f"cannot pack {target.name}: {error.strerror}; free space in {target.parent}") from None


@contextmanager
def _multipart(target: Path, file: Path, fields: dict[str, str]) -> Iterator[tuple[IO[bytes], int, str]]:
    """A body of multipart/form-data on disk: uploads may be larger than memory."""
    edge = uuid.uuid4().hex
    with target.open("w+b") as body:
        for name, value in fields.items():
            body.write(f'--{edge}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode())
        body.write(f'--{edge}\r\nContent-Disposition: form-data; name="file"; filename="{file.name}"\r\n\r\n'.encode())
        with file.open("rb") as content:
            shutil.copyfileobj(content, body, 1 << 20)
        body.write(f"\r\n--{edge}--\r\n".encode())
        length = body.tell()
        body.seek(0)
        yield body, length, f"multipart/form-data; boundary={edge}"
