"""What whoever runs the service decides."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from socket import gaierror, getaddrinfo, gethostname

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from placement.errors import OptionError
from placement.support.parallel import usable_cores
from placement_api.store.s3 import Place

MIB = 1 << 20
GIB = 1 << 30
# of libpq: a database that vanished without a word is noticed within seconds, unless the URL says otherwise
NOTICE = {
    "connect_timeout": "5",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a request may ask for; beyond it the answer is 413 (bytes) or 422 (numbers)."""

    body_bytes: int = 4 * MIB
    upload_bytes: int = 4 * GIB
    unpacked_bytes: int = 16 * GIB
    archive_members: int = 20_000
    unpack_ratio: int = 100  # bytes out of an archive for each of its own; so many may anyhow:
    unpack_free_bytes: int = 64 * MIB
    reading_bytes: int = 4 * GIB  # of memory, of the process that reads what was sent
    reading_s: float = 600.0
    layers: int = 1_024
    experts: int = 4_096
    wait_s: float = 60.0
    stall_s: float = 60.0  # a client may be silent within a body
    head_s: float = 10.0  # and take so long for the head of a request
    connections: int = 4_096
    requests_per_s: float = 200.0
    strangers_per_s: float = 50.0  # requests of one address that name no token, or a wrong one
    job_time_limit_s: float = 3600.0  # of one beginning of a job
    max_queued: int = 100  # jobs of a token that wait
    work: int = 100_000_000_000  # moves of a layer: more than an hour of them
    slots: int = 16_384  # of a layer

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not getattr(self, name) > 0:
                raise OptionError(f"{name}={getattr(self, name)} must be more than 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """data           folder of the database, traces and results; made if absent
    database_url   `postgresql://...` to share one queue among hosts; empty: SQLite files in `data`
    host, port     where to listen
    max_jobs       solves side by side on this host; each gets an equal share of the cores
    executor       name of this host among those that share a database; coming back it goes on with its jobs at once
    trace_folders, trace_stores  folders, and places s3://bucket/folder, below which traces may be registered
    blobs          `s3://bucket/folder` for traces and results, to share among hosts; empty: files in `data`
    cache_bytes    what is read from there is kept in `data` up to so many bytes
    access_log     log requests that only read, too
    keep_days, keep_bytes  retention of traces and results that no job uses; None: for ever, any size
    """

    data: Path
    database_url: str = ""
    host: str = "127.0.0.1"
    port: int = 8000
    max_jobs: int = field(default_factory=lambda: max(usable_cores() // 2, 1))
    executor: str = field(default_factory=gethostname)
    trace_folders: tuple[Path, ...] = ()
    trace_stores: tuple[str, ...] = ()
    blobs: str = ""
    cache_bytes: int = 16 * GIB
    keep_days: float | None = None
    keep_bytes: int | None = None
    access_log: bool = False
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.max_jobs < 1:
            raise OptionError(f"max_jobs={self.max_jobs} must be at least 1")
        for url in (*self.trace_stores, *([self.blobs] if self.blobs else [])):
            Place.parse(url)
        if not 0 < self.port < 65536:
            raise OptionError(f"port={self.port} is out of range: 1 to 65535 are allowed")
        if self.database_url and not self.database_url.startswith(("postgresql://", "postgresql+psycopg://")):
            scheme = self.database_url.partition(":")[0]
            raise OptionError(f"a database of {scheme!r} is unknown; give postgresql://..., or nothing for SQLite")
        try:
            make_url(self.database_url or "sqlite://")
        except (ArgumentError, ValueError):
            raise OptionError("the database's URL cannot be read; give postgresql://USER@HOST:PORT/NAME") from None

    @property
    def workers(self) -> int:
        """Threads of one solve."""
        return max(usable_cores() // self.max_jobs, 1)

    @property
    def store_url(self) -> str:
        """SQLAlchemy's URL of our tables."""
        return self._postgres or f"sqlite:///{self.data / 'store.sqlite'}"

    @property
    def queue_url(self) -> str:
        """SQLAlchemy's URL of the tables of DBOS."""
        return self._postgres or f"sqlite:///{self.data / 'queue.sqlite'}"

    @property
    def uploads(self) -> Path:
        """Where uploads lie until they are taken in."""
        return self.data / "uploads"

    @property
    def loopback(self) -> bool:
        """Only this machine can reach the service: a name may stand for further addresses. Raises OptionError."""
        if not is_loopback(self.host):
            return False
        try:
            addresses = [str(found[4][0]) for found in getaddrinfo(self.host, None)]
        except gaierror:
            raise OptionError(
                f"host={self.host!r} is no address of this machine; give one, such as 127.0.0.1 or ::1"
            ) from None
        return all(is_loopback(address) for address in addresses)

    @property
    def _postgres(self) -> str:
        if not self.database_url:
            return ""
        url = make_url(self.database_url)
        url = url.set(drivername="postgresql+psycopg", query={**NOTICE, **url.query})
        return url.render_as_string(hide_password=False)


def is_loopback(host: str) -> bool:
    """True of names and addresses that only this machine can reach."""
    try:
        return host == "localhost" or ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
