"""The service from Python: the library's types in and out, over the standard library's HTTP."""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from placement.client.packing import multipart, pack, trace_files
from placement.core.cluster import Cluster
from placement.core.placement import Placement
from placement.documents.parts import ClusterDetail
from placement.documents.placement import PlacementFile, load_placement
from placement.errors import InputError, PlacementError
from placement.readers import AUTO
from placement.readers.base import ReadOptions
from placement.solvers.options import Options
from placement.support.http_service import AwayError, HttpService, error_of
from placement.support.progress import Listener, Progress, ignore
from placement.traces.storage.content_digest import content_digest
from placement.traces.storage.litter import is_litter, left_out

OPEN = ("queued", "running")
log = logging.getLogger("placement")
PATIENCE_S = 60.0  # that a busy service is asked again, and that a job whose service is away is waited for
PAUSE_S = 1.0
READING_S = 900.0  # longest wait until the service has read, and perhaps converted, an upload


class Client:
    """A service, for Python. The token goes to that server alone: a redirect to another is refused.

    Example::

        client = Client("http://127.0.0.1:8000")
        placement, file = client.solve([client.upload("traces/")], cluster, Options())

    Args:
        url: Address of the service.
        token: Where the service asks for one.
        patience_s: How long a request is sent again while the service is busy (503, 429), and a job waited for whose
            service is away.

    Raises:
        InputError: The service refuses a request, or does not answer.
        PlacementError: The service fails; otherwise what the library would raise, as the service words it.
    """

    def __init__(self, url: str, token: str | None = None, patience_s: float = PATIENCE_S) -> None:
        self._service = HttpService(url=url.rstrip("/"), token=token, patience_s=patience_s)

    @property
    def url(self) -> str:
        """Address of the service."""
        return self._service.url

    def upload(
        self, path: str | Path, top_k: int | None = None, *, reader: str = AUTO, options: ReadOptions | None = None
    ) -> str:
        """The id of what lies at `path`, after it was uploaded: a trace folder (or a folder of such), a file of counts,
        or a file or folder that an engine recorded, which the service converts. A trace that the service has is not
        sent again.

        `reader` and `options` are those of `placement.readers.convert.convert`.
        """
        self._service.ask(
            "GET", "/v1/traces?limit=1"
        )  # the service refuses a wrong token before the upload, not amid it
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
                pack([(file, file.name) for file in files if not is_litter(file.name)], packed)
                for note in left_out([file.name for file in files if is_litter(file.name)]):
                    log.info("%s: %s", source, note)
            elif not source.is_file() or source.name == "trace.json":
                parts = trace_files(path)
                known = content_digest((name, file) for file, name in parts)
                if given == ReadOptions() and self._has(known):
                    return known
                packed = Path(folder) / "trace.tar"
                pack(parts, packed)
            said = {name: str(value) for name, value in fields.items() if value is not None}
            with multipart(Path(folder) / "body", packed, said) as (body, length, media):
                answer = self._service.ask("POST", "/v1/traces", body, media, length, READING_S)
        return str(json.loads(answer)["id"])

    def _has(self, trace: str) -> bool:
        """The service has a trace of this content: it need not be sent."""
        try:
            return bool(json.loads(self._service.ask("GET", f"/v1/traces/{trace}"))["id"] == trace)
        except InputError:
            return False

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
        return self._begin("/v1/placements", body)

    def study(
        self,
        traces: Sequence[str],
        *,
        by: str = "domain",
        num_nodes: int | None = None,
        gpus_per_node: int = 1,
        seed: int = 0,
        listener: Listener = ignore,
    ) -> dict[str, Any]:
        """What `placement traces info --study --json` prints, of ids of traces."""
        body = {"by": by, "num_nodes": num_nodes, "gpus_per_node": gpus_per_node, "seed": seed}
        job = self._begin("/v1/study", body | {"traces": list(traces)})
        self.wait(job, listener)
        return self._document(f"/v1/jobs/{job}/study")

    def front(
        self,
        traces: Sequence[str],
        cluster: Cluster,
        options: Options | None = None,
        *,
        holdout: float = 0.2,
        listener: Listener = ignore,
    ) -> tuple[dict[str, Any], dict[str, bytes]]:
        """What `placement front` writes: `front.json`, and the placement files that it names."""
        body = {
            "traces": list(traces),
            "cluster": ClusterDetail.of(cluster).model_dump(),
            "options": asdict(options or Options()),
            "holdout": holdout,
        }
        job = self._begin("/v1/front", body)
        self.wait(job, listener)
        front = self._document(f"/v1/jobs/{job}/front")
        files = [point["file"] for point in front["points"]]
        return front, {file: self._service.ask("GET", f"/v1/jobs/{job}/front/maps/{file}") for file in files}

    def placement(self, placement: str) -> bytes:
        """The placement file, as `placement solve -o` writes it."""
        return self._service.ask("GET", f"/v1/placements/{placement}")

    def wait(self, job: str, listener: Listener = ignore) -> dict[str, Any]:
        """The job when it is done; its progress meanwhile.

        Raises:
            PlacementError: The job failed or was cancelled.
        """
        told: Progress | None = None
        last = time.monotonic()
        while True:
            try:
                with self._service.open("GET", f"/v1/jobs/{job}/events") as events:
                    for line in events:
                        if not (line.startswith(b"data: ") and line.endswith(b"\n")):  # no event, or cut off
                            continue
                        last, now = time.monotonic(), json.loads(line[6:])
                        names = ("stage", "done", "total", "best")
                        event = Progress(**{name: now["progress"].get(name) for name in names})
                        if event.stage and event != told:
                            listener(event)
                        told = event
                        if now["state"] not in OPEN:
                            return self._ended(now)
            except AwayError:
                if time.monotonic() - last > self._service.patience_s:
                    raise
            if time.monotonic() - last > self._service.patience_s:
                raise PlacementError(f"job {job} goes on and there is no news of it; ask {self.url} again")
            time.sleep(PAUSE_S)  # the service is begun again, and the job goes on

    def _begin(self, path: str, body: dict[str, Any]) -> str:
        """The id of the job of a request; the same request twice is one job."""
        return str(json.loads(self._service.ask("POST", path, json.dumps(body).encode()))["id"])

    def _document(self, path: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._service.ask("GET", path))
        return found

    def _ended(self, job: dict[str, Any]) -> dict[str, Any]:
        if job["state"] == "failed":
            raise error_of(job["error"])
        if job["state"] != "done":
            raise PlacementError(f"job {job['id']} is {job['state']}; ask {self.url} for it again")
        return job

    def report(self, placement: str) -> bytes:
        """The HTML report of a placement."""
        return self._service.ask("GET", f"/v1/placements/{placement}/report")

    def cancel(self, job: str) -> None:
        """End a job that is waiting or running."""
        self._service.ask("POST", f"/v1/jobs/{job}/cancel")
