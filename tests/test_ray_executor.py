"""Tasks on a Ray cluster: a real one of two workers, on loopback, started here."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

from placement import Cluster, Options, solve
from placement.documents.placement import PlacementFile
from placement.errors import MapError, OptionError, PlacementError, WorkerError
from placement.pipeline.solution import solution_document
from placement.support.progress import Progress
from placement.support.ray_executor import ATTEMPTS, RayExecutor, _silence
from placement.traces.trace import open_trace
from placement.workload.count import count

# Ray reads these once, when it is loaded
os.environ |= {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else it listens on every address of the machine
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "of-these-tests-alone-0123456789",
}
NODES = ("--nodes", 2, "--gpus-per-node", 2)
NODES_OF_THE_GUIDE = ("--nodes", 4, "--gpus-per-node", 2)
REPOSITORY = Path(__file__).parents[1]


def test_a_ray_that_cannot_be_silenced_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """The one name of Ray that is not public: the installed Ray has it; without it a warning says what may happen."""
    ray = pytest.importorskip("ray")
    assert hasattr(ray._private.worker, "print_to_stdstream")
    for other in (SimpleNamespace(__version__="9"), SimpleNamespace(__version__="9", _private=SimpleNamespace())):
        caplog.clear()
        _silence(other)
        assert "Ray 9 may write messages of its own to stdout" in caplog.text


@dataclass(frozen=True, slots=True, kw_only=True)
class RayCluster:
    """Its processes are a session of their own."""

    address: str
    session: int

    def busy_workers(self) -> list[int]:
        """Ids of the processes that run a task of ours now."""
        found = [(process.pid, process.info["cmdline"]) for process in psutil.process_iter(["cmdline"])]
        tasks = [pid for pid, words in found if words and words[0].startswith("ray::_run")]
        return [pid for pid in tasks if os.getsid(pid) == self.session]


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket of an S3 server on loopback, which the environment names, also to the cluster."""
    server, s3fs = pytest.importorskip("moto.server"), pytest.importorskip("s3fs")
    moto = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*moto.get_host_and_port()))
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
                patch.setenv(name, "us-east-1")
            s3fs.S3FileSystem.clear_instance_cache()
            s3fs.S3FileSystem().makedirs("bucket", exist_ok=True)  # the buckets of a process outlive servers
            yield "s3://bucket"
    finally:
        moto.stop()
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, bucket: str) -> Iterator[RayCluster]:
    """A cluster with two workers."""
    pytest.importorskip("ray")
    folder = tmp_path_factory.mktemp("r")
    log = folder / "log"
    with pytest.MonkeyPatch.context() as patch, log.open("wb") as out:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=2"]
        command += ["--node-ip-address=127.0.0.1", "--port=0", "--include-dashboard=false", "--disable-usage-stats"]
        command += [f"--temp-dir={folder}", "--object-store-memory=100000000"]
        head = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
        try:
            end = time.monotonic() + 120
            while b"block forever" not in log.read_bytes():
                assert head.poll() is None and time.monotonic() < end, log.read_text()
                time.sleep(0.1)
            yield RayCluster(address=(folder / "ray_current_cluster").read_text().strip(), session=head.pid)
        finally:
            os.killpg(head.pid, signal.SIGKILL)
            head.wait()


@pytest.fixture(scope="module")
def executor(cluster: RayCluster) -> Iterator[RayExecutor]:
    with RayExecutor(cluster.address) as executor:
        yield executor


def refused(act: Callable[[], object], kind: type[PlacementError], *words: str) -> None:
    """`act` raises an error of one line that has these words."""
    with pytest.raises(kind) as caught:
        act()
    told = str(caught.value)
    assert "\n" not in told and len(told) < 400
    assert not [word for word in words if word not in told], told


def where(number: int) -> tuple[int, int, str | None]:
    time.sleep(0.3)
    return number**2, os.getpid(), os.environ.get("OMP_NUM_THREADS")


def test_answers_come_from_workers_in_order(executor: RayExecutor) -> None:
    """Two processes beside this one work at once, each with one core."""
    answers = list(executor.map(where, range(4)))
    assert [answer for answer, _, _ in answers] == [0, 1, 4, 9]
    assert len({pid for _, pid, _ in answers} - {os.getpid()}) == 2
    assert {threads for _, _, threads in answers} == {"1"}


def test_what_a_function_is_bound_to_is_sent_once(executor: RayExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten tasks on one large array put it into the object store once, not ten times."""
    put: list[object] = []
    real = executor._ray.put
    monkeypatch.setattr(executor._ray, "put", lambda value: put.append(value) or real(value))
    ones = np.ones(1_000_000)
    task = partial(scaled_sum, ones)
    assert list(executor.map(task, range(10))) == [1_000_000.0 * factor for factor in range(10)]
    assert put == [task]


def scaled_sum(values: Any, factor: int) -> float:
    return float(values.sum() * factor)


def fail(message: str) -> None:
    raise MapError(message, faults=("one", "two"))


def test_errors_of_tasks_are_our_own(executor: RayExecutor) -> None:
    """The error tree survives the way back, without Ray's wrapping."""
    future = executor.submit(fail, "slot 3 is empty")
    refused(future.result, MapError, "slot 3 is empty")
    assert future.exception().faults == ("one", "two")
    assert type(future.exception()) is MapError


def wait_for_death(folder: Path, number: int) -> int:
    """The first attempt at number 1 says who it is and waits to be killed."""
    mark = folder / str(number)
    if number == 1 and not mark.exists():
        mark.with_suffix(".new").write_text(str(os.getpid()))
        mark.with_suffix(".new").rename(mark)
        time.sleep(60)
    return number + 10


def test_a_killed_worker_changes_nothing(executor: RayExecutor, tmp_path: Path) -> None:
    """`kill -9` in the middle of a task: it is run again, and the others do not notice."""
    futures = [executor.submit(partial(wait_for_death, tmp_path), number) for number in range(3)]
    while not (tmp_path / "1").exists():
        time.sleep(0.02)
    os.kill(int((tmp_path / "1").read_text()), signal.SIGKILL)
    assert [future.result(timeout=60) for future in futures] == [10, 11, 12]


def die(folder: Path) -> None:
    (folder / f"{os.getpid()}").touch()
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_task_that_always_dies_ends_in_an_error(executor: RayExecutor, tmp_path: Path, capfd: Any) -> None:
    """After as many attempts as are allowed, with an exit code of its own; Ray prints nothing where documents go."""
    refused(executor.submit(die, tmp_path).result, WorkerError, f"died {ATTEMPTS} times", "memory")
    time.sleep(0.5)  # it tells of deaths in a thread of its own
    assert capfd.readouterr().out == ""
    assert len(list(tmp_path.iterdir())) == ATTEMPTS
    assert WorkerError.exit_code == 6


def test_other_versions_are_refused(executor: RayExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker with another version would give another answer."""
    monkeypatch.setattr("placement.support.ray_executor.VERSIONS", "expert-placement 0.0.0")
    refused(executor.submit(where, 1).result, WorkerError, "expert-placement 0.0.0", "install the same")


def test_a_solve_is_byte_identical_though_a_worker_is_killed(
    cluster: RayCluster, executor: RayExecutor, tmp_path: Path, write_trace: Any
) -> None:
    """Counting and solving on Ray, with redundant slots, against threads; a worker dies on the way."""
    written = write_trace(tmp_path / "t", num_layers=5, num_experts=16, top_k=4, tokens=900, requests=12, num_shards=3)
    trace, options = open_trace(written.folder), Options(work_limit=20_000)
    shape = Cluster.fit(16, num_nodes=4, gpus_per_node=1, redundant_experts=4)
    killed: list[int] = []
    events: list[Progress] = []

    def listener(event: Progress) -> None:
        events.append(event)
        if event.stage == "solve" and event.done and not killed:  # another layer is being solved
            end = time.monotonic() + 30
            while not killed and time.monotonic() < end:
                killed.extend(cluster.busy_workers()[:1])
            os.kill(killed[0], signal.SIGKILL)

    here: list[Progress] = []
    ours = solve(trace, shape, options, workers=2, listener=here.append)
    theirs = solve(trace, shape, options, engine=executor, listener=listener)
    assert killed
    # `best` is of the layers that are done, whichever came first
    assert [replace(event, best=None) for event in events] == [replace(event, best=None) for event in here]
    assert PlacementFile.encode(solution_document(theirs)) == PlacementFile.encode(solution_document(ours))


def test_segments_are_counted_to_the_same_bytes(
    executor: RayExecutor, tmp_path: Path, write_trace: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every array of the workload, from many small segments."""
    monkeypatch.setattr("placement.workload.segment.SEGMENT_TOKENS", 100)
    written = write_trace(tmp_path / "t", tokens=1_000, requests=30, num_shards=3)
    trace = open_trace(written.folder)
    ours, theirs = count(trace, sample_tokens=200), count(trace, sample_tokens=200, executor=executor)
    for name in ours.__slots__:
        one, other = getattr(ours, name), getattr(theirs, name)
        assert one.tobytes() == other.tobytes() if isinstance(one, np.ndarray) else one == other, name


def nap(folder: Path) -> None:
    (folder / "pid.new").write_text(str(os.getpid()))
    (folder / "pid.new").rename(folder / "pid")
    time.sleep(60)


def test_leaving_by_an_exception_kills_what_runs(cluster: RayCluster, executor: RayExecutor, tmp_path: Path) -> None:
    """Ctrl-C does not wait for tasks: the worker of one that sleeps a minute is gone in seconds."""
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), RayExecutor(cluster.address) as hasty:
        future, late = hasty.submit(nap, tmp_path), [hasty.submit(nap, tmp_path) for _ in range(8)]
        while not (tmp_path / "pid").exists():
            time.sleep(0.02)
        raise KeyboardInterrupt
    assert time.monotonic() - start < 40
    assert all(one.cancelled() or one.exception() is not None for one in (future, *late))
    while psutil.pid_exists(int((tmp_path / "pid").read_text())):
        assert time.monotonic() - start < 50
        time.sleep(0.1)


def test_the_command_line_writes_the_same_file(
    cluster: RayCluster, executor: RayExecutor, tmp_path: Path, write_trace: Any, run_cli: Any
) -> None:
    """`placement solve` and `traces count` with `--workers HOST:PORT`; a trace that is wrong is told as without Ray."""
    folder = write_trace(tmp_path / "t", tokens=300, requests=8).folder
    ours = run_cli("solve", folder, *NODES, "-o", tmp_path / "a.json", "--json")
    theirs = run_cli("solve", folder, *NODES, "-o", tmp_path / "b.json", "--json", *far(cluster))
    assert (ours.code, theirs.code) == (0, 0), theirs.stderr
    assert theirs.stdout == ours.stdout
    assert (tmp_path / "b.json").read_bytes() == (tmp_path / "a.json").read_bytes()
    assert json.loads(theirs.stdout)["schema"] == "expert-placement/1"
    wrong = write_trace(tmp_path / "w", num_experts=8, ids_LTK=np.full((2, 60, 2), 3)).folder
    sides = {}
    for name, options in (("here", ()), ("far", far(cluster))):
        done = run_cli("traces", "count", folder, "-o", tmp_path / name, *options)
        assert done.code == 0, done.stderr
        sides[name] = [(tmp_path / name / file).read_bytes() for file in ("counts.json", "counts.safetensors")]
    assert sides["here"] == sides["far"]
    told = [run_cli("solve", wrong, *NODES, "-o", tmp_path / "c.json", *options) for options in ((), far(cluster))]
    assert told[0].code == told[1].code == 2
    assert told[0].stderr.splitlines()[-1] == told[1].stderr.splitlines()[-1]


def test_the_commands_of_the_guide(
    cluster: RayCluster,
    executor: RayExecutor,
    bucket: str,
    tmp_path: Path,
    run_cli: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """docs/scale.md from a bucket and on a cluster: the file is that of threads and disk, from Python too."""
    text = (REPOSITORY / "docs" / "scale.md").read_text()
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    examples = REPOSITORY / "examples" / "traces"
    storage = pytest.importorskip("fsspec").filesystem("s3")
    for file in sorted(examples.iterdir()):
        storage.pipe_file(f"{bucket}/trace/{file.name}", file.read_bytes())
    found = "".join(content for language, content in blocks if language == "shell").splitlines()
    (command,) = [shlex.split(line)[1:] for line in found if line.startswith("placement ")]
    done = run_cli(*[cluster.address if word == "head:6379" else word for word in command])
    assert done.code == 0, done.stderr
    written = Path("placement.json").read_bytes()
    assert run_cli("solve", examples, *NODES_OF_THE_GUIDE, "-o", "threads.json").code == 0
    assert written == Path("threads.json").read_bytes()
    (code,) = [content for language, content in blocks if language == "python"]
    names: dict[str, Any] = {}
    exec(compile(code.replace("head:6379", cluster.address), "scale.md", "exec"), names)  # noqa: S102  # ours
    assert PlacementFile.encode(solution_document(names["solution"])) == written


def far(cluster: RayCluster) -> tuple[str, ...]:
    return ("--workers", cluster.address)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:1", ("nothing answers", "127.0.0.1:1", "ray start")),
        ("ray://127.0.0.1:6379", ("'ray://127.0.0.1:6379'", "HOST:PORT")),
        ("nonsense", ("'nonsense'", "HOST:PORT")),
        ("127.0.0.1:port", ("HOST:PORT",)),
    ],
)
def test_wrong_addresses_are_told_at_once(
    address: str, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray itself would go on trying for minutes."""
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    refused(lambda: RayExecutor(address), OptionError, *words)


def test_without_ray_the_extra_is_named(
    tmp_path: Path, write_trace: Any, run_cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line that says what to install; nothing of it is loaded before."""
    monkeypatch.setitem(sys.modules, "ray", None)
    folder = write_trace(tmp_path / "t").folder
    done = run_cli("solve", folder, *NODES, "--workers", "ray", "-o", tmp_path / "a.json")
    assert (done.code, done.stderr.count("\n")) == (2, 1)
    assert "expert-placement[ray]" in done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--workers", "wheels"), ("'wheels'", "8@ray")),
        (("--workers", "0"), ("'0'", "from 1")),
        (("--workers", "3@4"), ("'3@4'", "HOST:PORT")),
        (("--engine", "ray"), ("--workers ray",)),
    ],
)
def test_options_that_do_not_go_together(
    options: tuple[str, ...], words: tuple[str, ...], tmp_path: Path, write_trace: Any, run_cli: Any
) -> None:
    """Told before any work."""
    folder = write_trace(tmp_path / "t").folder
    done = run_cli("solve", folder, *NODES, *options, "-o", tmp_path / "a.json")
    assert (done.code, done.stderr.count("\n")) == (2, 1)
    assert not [word for word in words if word not in done.stderr], done.stderr
