"""An engine's recorder is started, dumped before every look and stopped: the engine here is a server on loopback."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from placement.analysis.watch.sglang_recorder import SGLangRecorder
from placement.errors import InputError, OptionError

GOLDEN = Path(__file__).parent.parent / "golden" / "readers" / "sglang" / "per-token"


class Engine(ThreadingHTTPServer):
    """Answers the three paths as SGLang does: a dump is a new file in its folder, of what came since the last."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.asked: list[str] = []
        self.recording = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Engine

    def do_POST(self) -> None:
        verb = self.path.removeprefix("/").partition("_")[0]
        engine = self.server
        known = self.path == f"/{verb}_expert_distribution_record" and verb in ("start", "dump", "stop")
        if known:
            engine.asked.append(verb)
            if verb == "dump" and engine.recording:
                [golden] = GOLDEN.iterdir()
                shutil.copyfile(golden, engine.folder / f"expert_distribution_recorder_{len(engine.asked)}.5_0.pt")
            engine.recording = {"start": True, "stop": False}.get(verb, engine.recording)
        self.send_response(200 if known else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    (tmp_path / "dumps").mkdir()
    server = Engine(tmp_path / "dumps")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def current(tmp_path: Path, run_cli: Any, engine: Engine) -> Path:
    """A map for the model of the golden recording."""
    [golden] = GOLDEN.iterdir()
    assert run_cli("traces", "convert", golden, tmp_path / "trace").code == 0
    shape = ("--nodes", 2, "--gpus-per-node", 1, "--work-limit", 100, "--bound", "none")
    assert run_cli("solve", tmp_path / "trace", *shape, "-o", tmp_path / "now.json").code == 0
    return tmp_path / "now.json"


def test_the_command_follows_an_engine(
    engine: Engine, current: Path, tmp_path: Path, run_cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started once, dumped before each look, stopped at the end; what each dump holds is read, each once."""
    naps = iter([None, None, None])

    def nap(seconds: float) -> None:
        try:
            next(naps)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr("placement.cli.watch.time.sleep", nap)
    options = ("--engine", engine.url, "--window-tokens", 10**6, "-o", tmp_path / "out", "--json")
    result = run_cli("watch", engine.folder, "--from", current, *options)
    assert result.code == 0, result.stderr
    assert engine.asked == ["start", "dump", "dump", "dump", "stop"]
    events = [json.loads(line) for line in result.stdout.splitlines()]
    read = [event for event in events if event["event"] == "read"]
    assert [event["tokens"] for event in read] == [17, 17]  # the third dump is not yet known to be whole
    assert len({event["path"] for event in read}) == 2


def test_once_takes_what_was_recorded(engine: Engine, current: Path, tmp_path: Path, run_cli: Any) -> None:
    """A recorder that somebody started is neither emptied by another start nor stopped."""
    engine.recording = True
    options = ("--engine", engine.url, "--once", "--window-tokens", 10**6, "-o", tmp_path / "out", "--json")
    result = run_cli("watch", engine.folder, "--from", current, *options)
    assert engine.asked == ["dump"] and engine.recording
    assert json.loads(result.stdout.splitlines()[-1])["tokens"] == 17


def test_an_engine_that_does_not_do_it(engine: Engine, current: Path, run_cli: Any, tmp_path: Path) -> None:
    """One line that says what was asked of whom."""
    with pytest.raises(InputError, match="404"):
        SGLangRecorder(url=f"{engine.url}/v1").start()
    with pytest.raises(OptionError, match="no address"):
        SGLangRecorder(url="localhost:30000")
    gone = engine.url
    engine.shutdown()
    engine.server_close()
    with pytest.raises(InputError, match="does not answer"):
        SGLangRecorder(url=gone).dump()
    result = run_cli("watch", engine.folder, "--from", current, "--engine", gone, "-o", tmp_path / "out")
    assert result.code == 2 and "does not answer" in result.stderr
