"""Starts, swaps, ends and limits: a broken file never runs, a wrong one never replaces a sound one."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine, plain, stream
from route_front import WORDS, Front, Sample, arguments, environment

EVENTS = [b"data: %d\n\n" % at for at in range(5)]


def copy(sample: Sample, folder: Path) -> Sample:
    """The same files, to be changed."""
    files = {name: folder / path.name for name in Sample.__slots__ if (path := getattr(sample, name))}
    for name, path in files.items():
        shutil.copy(getattr(sample, name), path)
    return Sample(**files)


def broken(sample: Sample, what: str) -> list[str]:
    """Makes the files broken; the arguments that then name them."""
    backends = ["http://127.0.0.1:1"]
    engine = ["--engine", "vllm"]
    grouping = json.loads(sample.grouping.read_text())
    if what == "no grouping":
        sample.grouping.unlink()
    elif what == "half a grouping":
        sample.grouping.write_text(sample.grouping.read_text()[:-500])
    elif what == "a grouping of another map":
        sample.grouping.write_text(json.dumps(grouping | {"placement_hash": "sha256:0"}))
    elif what == "a damaged predictor":
        grouping["router"]["predictor"]["tables"] = "AAAA"
        sample.grouping.write_text(json.dumps(grouping))
    elif what == "no map":
        sample.map_file.write_bytes(b"\x00\x01")
    elif what == "no tokenizer":
        sample.tokenizer.write_text('{"version": "1.0"}')
    elif what == "no engine":
        engine = []
    elif what == "another engine":
        engine = ["--engine", "else"]
    elif what == "no address":
        backends = ["ftp://x"]
    elif what == "three backends":
        backends, engine = ["http://127.0.0.1:1"] * 3, []
    elif what == "three ranks":
        engine += ["--ranks", "3"]
    elif what == "ranks over two nodes":
        engine += ["--ranks", "2"]
    given = arguments(sample, *engine)
    for one in backends:
        given += ["--backend", one]
    return given


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("no grouping", "grouping.json"),
        ("half a grouping", "grouping.json"),
        ("a grouping of another map", "another map"),
        ("a damaged predictor", "router.predictor.tables"),
        ("no map", "placement.json"),
        ("no tokenizer", "is no tokenizer"),
        ("no engine", "vllm, sglang"),
        ("another engine", "vllm, sglang"),
        ("no address", "ftp://x is no address"),
        ("three backends", "4 nodes and 8 GPUs"),
        ("three ranks", "4 nodes and 8 GPUs"),
        ("ranks over two nodes", "more than one node"),
    ],
)
def test_what_is_broken_is_refused_at_the_start(
    sample: Sample, tmp_path: Path, run_cli: Callable[..., Any], what: str, said: str
) -> None:
    """One line, exit code 2."""
    result = run_cli("route", *broken(copy(sample, tmp_path), what))
    assert result.code == 2, result.stderr
    assert result.stderr.startswith("placement: error: ") and result.stderr.count("\n") == 1
    assert said in result.stderr


@pytest.fixture
def swapped(
    fronts: Callable[..., Front], sample: Sample, engine: FakeEngine, tmp_path: Path
) -> Iterator[tuple[Front, Sample]]:
    """A proxy and its files, which a test may change."""
    mine = copy(sample, tmp_path)
    front = fronts(*arguments(mine, engine.url, "--engine", "vllm"), shared=False)
    yield front, mine
    front.stop()


def rank(front: Front, engine: FakeEngine, word: str) -> int:
    front.client.post("/v1/completions", json={"prompt": f"{word} {word}"})
    return int(engine.last().header("x-data-parallel-rank") or -1)


def replace(path: Path, content: str) -> None:
    """As a program that writes files whole does."""
    (path.parent / "new").write_text(content)
    (path.parent / "new").rename(path)


def wait_for(front: Front, name: str, least: float = 1.0, wait_s: float = 15.0) -> None:
    end = time.monotonic() + wait_s
    while front.series().get(name, 0) < least:
        assert time.monotonic() < end, front.series()
        time.sleep(0.05)


@pytest.mark.parametrize("by_signal", [False, True])
def test_a_grouping_is_swapped_in_live_and_a_wrong_one_is_refused(
    swapped: tuple[Front, Sample], engine: FakeEngine, by_signal: bool
) -> None:
    """Here words change nodes: the weights of the planted predictor are turned round."""
    from placement.grouping.grouping_file import load_grouping
    from placement.grouping.router_part import PredictorPart

    front, mine = swapped
    assert front.process is not None
    assert rank(front, engine, WORDS[0]) // 2 == 0
    good = mine.grouping.read_text()
    for wrong in ("{}", good[:-300], json.dumps(json.loads(good) | {"placement_hash": "sha256:1"})):
        before = front.series().get('placement_route_swaps_total{result="refused"}', 0)
        replace(mine.grouping, wrong)
        if by_signal:
            front.process.send_signal(signal.SIGHUP)
        wait_for(front, 'placement_route_swaps_total{result="refused"}', before + 1)
        assert rank(front, engine, WORDS[0]) // 2 == 0
    part = load_grouping(write(mine.grouping, good)).router.predictor
    assert part is not None
    predictor = part.predictor()
    turned = PredictorPart.of(type(predictor)(**fields(predictor) | {"weight_NF": predictor.weight_NF[::-1]}))
    document = json.loads(good)
    document["router"]["predictor"] = turned.model_dump()
    replace(mine.grouping, json.dumps(document))
    if by_signal:
        front.process.send_signal(signal.SIGHUP)
    end = time.monotonic() + 15
    while rank(front, engine, WORDS[0]) // 2 != 3:
        assert time.monotonic() < end, "the new grouping is not used"
        time.sleep(0.05)
    assert front.series()['placement_route_swaps_total{result="taken"}'] >= 1


def write(path: Path, content: str) -> Path:
    replace(path, content)
    return path


def fields(predictor: Any) -> dict[str, Any]:
    names = ("idf_F", "weight_NF", "mean_N", "worth_tokens", "least_worth_tokens")
    return {name: getattr(predictor, name) for name in names}


def test_a_stream_ends_before_the_proxy_does(fronts: Callable[..., Front], sample: Sample, engine: FakeEngine) -> None:
    """SIGTERM in the middle of an answer: the answer comes whole, new clients are refused, the process ends."""
    front = fronts(*arguments(sample, engine.url, "--engine", "vllm"), shared=False)
    assert front.process is not None
    engine.answer = stream(EVENTS, pause_s=0.3)
    with front.client.stream("POST", "/v1/completions", json={"prompt": WORDS[0]}) as answer:
        parts = answer.iter_raw()
        came = next(parts)
        front.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://127.0.0.1:{front.port}/healthz", trust_env=False)
        came += b"".join(parts)
    assert came == b"".join(EVENTS)
    front.process.wait(10)
    assert "Traceback" not in front.stop()


def test_kill_9_loses_no_backend(fronts: Callable[..., Front], sample: Sample, engine: FakeEngine) -> None:
    """The engine hears that its client is gone, and answers the next proxy."""
    given = arguments(sample, engine.url, "--engine", "vllm")
    front = fronts(*given, shared=False)
    assert front.process is not None
    engine.answer = stream(EVENTS, pause_s=5)
    asking = threading.Thread(target=lambda: quietly(front.client, {"prompt": WORDS[1]}))
    asking.start()
    seen = engine.last()
    front.process.kill()
    front.process.wait()
    assert seen.gone.wait(5)
    asking.join()
    engine.answer = plain
    again = fronts(*given, shared=False)
    assert again.chat(f"{WORDS[1]} {WORDS[1]}").status_code == 200
    assert engine.last().header("x-data-parallel-rank") in ("2", "3")
    again.stop()


def quietly(client: httpx.Client, body: dict[str, Any]) -> None:
    with contextlib.suppress(httpx.TransportError):
        client.post("/v1/completions", json=body)


@pytest.fixture(scope="module")
def narrow(fronts: Callable[..., Front], sample: Sample, engine_for_all: FakeEngine) -> Front:
    """A proxy with small limits."""
    limits = ("--max-body-mib", "1", "--max-requests", "2", "--head-seconds", "0.5")
    return fronts(*arguments(sample, engine_for_all.url, "--engine", "vllm", *limits))


@pytest.mark.parametrize("chunked", [False, True])
def test_a_huge_body_is_refused(narrow: Front, engine: FakeEngine, chunked: bool) -> None:
    body = b"x" * ((1 << 20) + 1)
    answer = narrow.client.post("/v1/completions", content=iter([body]) if chunked else body)
    assert (answer.status_code, answer.json()["error"]["type"]) == (413, "placement_route")
    assert engine.seen == []
    assert narrow.client.post("/v1/completions", content=body[:-1]).status_code == 200


def test_too_many_requests_at_a_time_are_refused(narrow: Front, engine: FakeEngine) -> None:
    engine.answer = stream(EVENTS[:1], pause_s=1.5)
    running = [threading.Thread(target=quietly, args=(narrow.client, {"prompt": WORDS[0]})) for _ in range(2)]
    for one in running:
        one.start()
    engine.last(2)
    refused = narrow.client.post("/v1/completions", json={"prompt": WORDS[0]})
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    for one in running:
        one.join()
    engine.answer = plain
    assert narrow.chat("alpha").status_code == 200


def test_a_head_that_comes_slowly_is_cut_off(narrow: Front, engine: FakeEngine) -> None:
    with socket.create_connection(("127.0.0.1", narrow.port), timeout=10) as connection:
        start = time.monotonic()
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nX: ")
        assert ended(connection) == b""
        assert 0.3 < time.monotonic() - start < 5
    assert narrow.chat("alpha").status_code == 200


def test_a_port_in_use_is_refused_at_the_start(narrow: Front, sample: Sample, run_cli: Callable[..., Any]) -> None:
    given = arguments(sample, "http://127.0.0.1:1", "--engine", "vllm")
    result = run_cli("route", *given, "--port", str(narrow.port))
    assert result.code == 2 and result.stderr.count("\n") == 1
    assert f"cannot listen on 127.0.0.1:{narrow.port}" in result.stderr


def test_a_head_without_end_is_refused(narrow: Front) -> None:
    with socket.create_connection(("127.0.0.1", narrow.port), timeout=10) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"GET / HTTP/1.1\r\n")
            for _ in range(2000):
                connection.sendall(b"X-Header: " + b"x" * 90 + b"\r\n")
        assert ended(connection)[:12] in (b"", b"HTTP/1.1 400")


def ended(connection: socket.socket) -> bytes:
    """What still comes until the other side closes."""
    came = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(1 << 16):
            came += part
    return came


def test_prompts_are_in_no_log_and_no_series(fronts: Callable[..., Front], sample: Sample, engine: FakeEngine) -> None:
    """Nor in what is said of a fault."""
    front = fronts(*arguments(sample, engine.url, "--engine", "vllm"), shared=False)
    for body in (b'{"prompt": "secretword"}', b'{"prompt": "secretword"', b'{"prompt": [-1, "secretword"]}'):
        front.client.post("/v1/completions?secretword=1", content=body, headers={"X-Session-ID": "secretword"})
    series = front.client.get("/metrics").text
    assert "secretword" not in series and "secretword" not in front.stop()


def test_what_is_absent_is_named(sample: Sample) -> None:
    """Without the packages of the extra."""
    code = (
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'httptools' else find(name, *a)\n"
        "from placement.cli import main; main()"
    )
    given = [sys.executable, "-c", code, "route", *arguments(sample, "http://127.0.0.1:1", "--engine", "vllm")]
    result = subprocess.run(given, capture_output=True, text=True, env=environment(), check=False)
    assert result.returncode == 2
    assert "needs httptools" in result.stderr and "expert-placement[route]" in result.stderr
