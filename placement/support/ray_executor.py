"""Many machines: a `concurrent.futures.Executor` whose tasks run on the workers of a Ray cluster.

A thread of this process waits for each task that runs, so futures queue, cancel and fail as those of a thread pool do.
A task may only return something: what it writes stays on its worker.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

import numba
import numpy as np
from threadpoolctl import threadpool_limits

from placement import __version__
from placement.errors import OptionError, WorkerError

P = ParamSpec("P")
T = TypeVar("T")

ATTEMPTS = 4
CONNECT_S = 5.0
VERSIONS = f"expert-placement {__version__}, numpy {np.__version__}, numba {numba.__version__}"

log = logging.getLogger("placement")


class RayExecutor(ThreadPoolExecutor):
    """Runs tasks on the Ray cluster at `address`, each on one core; a task whose worker dies is run again.

    address  HOST:PORT of the cluster that this machine belongs to, or `auto`: the one that runs on this machine
    workers  tasks that run at once; None: one for each core of the cluster

    The function of consecutive tasks, with all that it is bound to, is put into Ray's object store once. Leaving the
    `with` block by an exception, and `shutdown(cancel_futures=True)`, kill the tasks that run.

    Futures raise what their task raised, and WorkerError when a task died ATTEMPTS times with its worker or when
    the worker has other versions than this process: those would give other answers. Raises OptionError if there is no
    such cluster, or no Ray.
    """

    remote = True

    def __init__(self, address: str = "auto", *, workers: int | None = None) -> None:
        if workers is not None and workers < 1:
            raise OptionError(f"workers={workers} must be at least 1")
        self._ray, self._connected = _connect(address)
        cores = int(self._ray.cluster_resources().get("CPU", 0))
        if not cores:
            self._disconnect()
            raise OptionError(f"the Ray cluster at address={address!r} has no cores; start workers with `ray start`")
        super().__init__(workers or cores, thread_name_prefix="placement-ray")
        self._run = self._ray.remote(num_cpus=1, max_retries=0)(_run)
        self._guard = threading.Lock()
        self._stopped = False
        self._running: set[Any] = set()
        self._put: tuple[object, Any] = (None, None)

    def submit(self, task: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        with self._guard:
            if self._put[0] is not task:
                self._put = (task, self._ray.put(task))
            stored = self._put[1]
        return super().submit(self._attempt, stored, args, kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        if cancel_futures:
            with self._guard:
                self._stopped = True
                running = list(self._running)
            for task in running:
                self._ray.cancel(task, force=True)
        super().shutdown(wait, cancel_futures=cancel_futures)
        if wait:
            self._put = (None, None)
            self._disconnect()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.shutdown(cancel_futures=kind is not None)

    def _attempt(self, stored: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the task returns; runs in a thread of the pool."""
        errors = self._ray.exceptions
        why = ""
        for attempt in range(1, ATTEMPTS + 1):
            with self._guard:
                if self._stopped:
                    raise CancelledError
                running = self._run.remote(VERSIONS, stored, args, kwargs)
                self._running.add(running)
            try:
                return self._ray.get(running)
            except errors.RayTaskError as error:
                raise _cause(error) from None
            except errors.TaskCancelledError:
                raise CancelledError from None
            except errors.RayError as error:
                if self._stopped:
                    raise CancelledError from None
                why = f"{type(error).__name__}: {_first_line(error)}"
                log.warning("attempt %d of %d of a task died with its worker: %s", attempt, ATTEMPTS, why)
            finally:
                with self._guard:
                    self._running.discard(running)
        raise WorkerError(
            f"a task died {ATTEMPTS} times with its worker ({why}); see that the workers have memory enough and read "
            f"Ray's logs on their machines"
        )

    def _disconnect(self) -> None:
        if self._connected:
            self._connected = False
            self._ray.shutdown()


def _run(versions: str, task: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
    """Runs on a worker, which has one core for it: libraries that start threads of their own would take others'."""
    if versions != VERSIONS:
        raise WorkerError(
            f"the worker on {socket.gethostname()} has {VERSIONS}; this machine has {versions}; install the same there"
        )
    with threadpool_limits(1, user_api="blas"):
        return task(*args, **kwargs)


def _connect(address: str) -> tuple[Any, bool]:
    """The module `ray`, connected to the cluster, and whether that was done here."""
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")  # of 20 attempts to connect each takes half a minute
    try:
        import ray
    except ImportError:
        raise OptionError(
            "workers on Ray need Ray, which is not installed; pip install 'expert-placement[ray]'"
        ) from None
    if ray.is_initialized():
        return ray, False
    if address != "auto":
        _check_listens(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
    except (ray.exceptions.RayError, OSError, ValueError, RuntimeError, ImportError) as error:
        ray.shutdown()
        raise OptionError(
            f"no Ray cluster answers at address={address!r} ({_first_line(error)}); start one with `ray start --head` "
            f"and give --workers HOST:PORT"
        ) from None
    _silence(ray)
    return ray, True


def _silence(ray: Any) -> None:
    """Have the log say what Ray would write to stdout, where our documents go."""
    driver: Any = getattr(getattr(ray, "_private", None), "worker", None)
    if hasattr(driver, "print_to_stdstream"):
        driver.print_to_stdstream = _log_what_ray_says
    else:
        log.warning(
            "Ray %s may write messages of its own to stdout; write documents to files, with -o", ray.__version__
        )


def _log_what_ray_says(event: dict[str, Any], **_: object) -> None:
    log.info("Ray: %s", " ".join(event.get("lines", ())))


def _check_listens(address: str) -> None:
    """Raise OptionError if nothing listens there: Ray itself would go on trying for minutes."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise OptionError(f"address={address!r} is no address of a Ray cluster; give HOST:PORT or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        raise OptionError(
            f"nothing answers at address={address!r} ({error.strerror or error}); start a Ray cluster there with "
            f"`ray start --head`, or give the address that it printed"
        ) from None


def _cause(error: Any) -> BaseException:
    """What the task raised, without Ray's wrapping."""
    cause = error.cause
    if isinstance(cause, ImportError):
        return WorkerError(f"a worker cannot run our tasks ({_first_line(cause)}); install expert-placement there")
    return cause if isinstance(cause, BaseException) else WorkerError(f"a task failed: {_first_line(error)}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
