"""The Dockerfile: linted, and its steps run where no engine of containers is."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
Step = tuple[str, str]  # instruction, what follows it


def stages() -> list[list[Step]]:
    """The instructions of each stage, lines that go on put together."""
    text = re.sub(r"^\s*#.*\n", "", (REPOSITORY / "Dockerfile").read_text(), flags=re.MULTILINE)
    steps = [tuple(line.split(None, 1)) for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    starts = [number for number, step in enumerate(steps) if step[0] == "FROM"]
    return [
        [(word, " ".join(rest.split())) for word, rest in steps[start:stop]]
        for start, stop in zip(starts, [*starts[1:], len(steps)], strict=True)
    ]


def of(steps: list[Step], word: str) -> list[str]:
    return [rest for one, rest in steps if one == word]


def test_hadolint_finds_nothing() -> None:
    """Its rules of good Dockerfiles, all of them."""
    program = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("hadolint is not installed: its wheel is for Linux on x86-64")
    done = subprocess.run([program, "--no-color", "Dockerfile"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_image_is_small_and_without_root() -> None:
    """Two stages of a pinned base, a numeric user, exec forms, a health check; nothing fetched but packages."""
    build, final = stages()
    for stage in (build, final):
        assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+( AS \w+)?", stage[0][1])
        assert not of(stage, "ADD")
        assert not [rest for rest in of(stage, "RUN") if re.search(r"curl|wget|https?:|sudo", rest)]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", of(final, "USER")[-1])
    assert of(final, "COPY") == ["--from=build /opt/placement /opt/placement"]
    assert json.loads(of(final, "ENTRYPOINT")[0]) == ["placement"]
    assert json.loads(of(final, "HEALTHCHECK")[0].split("CMD", 1)[1])


def test_the_image_is_warm_for_any_user() -> None:
    """What root compiles while it builds lies where the service looks, and whoever runs may add to it."""
    final = stages()[1]
    steps = [rest for rest in of(final, "RUN") if "placement warm-up" in rest]
    assert [re.search(r"warm-up && chmod -R a\+rwX /var/cache/placement/\*", rest) is not None for rest in steps] == [
        True
    ]
    assert "NUMBA_CACHE_DIR=/var/cache/placement" in of(final, "ENV")[0]


def test_the_build_context_has_what_is_copied_and_no_more() -> None:
    """Sources exist, and .dockerignore lets them through and nothing else: no data, no keys."""
    allowed = {line[1:] for line in (REPOSITORY / ".dockerignore").read_text().split() if line.startswith("!")}
    copied = {source for rest in of(stages()[0], "COPY") for source in rest.split()[:-1]}
    assert copied == allowed
    assert all((REPOSITORY / source).exists() for source in copied)
    assert (REPOSITORY / ".dockerignore").read_text().startswith("*\n")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What the build stage makes, with its paths below a folder; what it copies is copied, what it runs is run."""
    root = tmp_path_factory.mktemp("image")
    for word, rest in stages()[0][1:]:
        moved = re.sub(r"(?<![\w.])/(opt|src)\b", rf"{root}/\1", rest)
        if word == "COPY":
            *sources, target = moved.split()
            for source in sources:
                copy(REPOSITORY / source, Path(target))
        else:
            assert word == "RUN", word
            done = subprocess.run(["sh", "-ec", moved], capture_output=True, text=True, env=environment(root))
            assert done.returncode == 0, done.stderr
    yield root
    shutil.rmtree(root, ignore_errors=True)


def copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


def environment(root: Path) -> dict[str, str]:
    """Nothing of this process but where to find programs and packages."""
    kept = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "HTTP"))}
    path = f"{root}/opt/placement/bin{os.pathsep}{Path(sys.base_prefix) / 'bin'}{os.pathsep}{os.defpath}"
    return kept | {"PATH": path, "HOME": str(root), "NUMBA_CACHE_DIR": f"{root}/cache"}


@pytest.mark.image
def test_what_the_image_installs_is_locked(image: Path) -> None:
    """`pip freeze` in the image: each distribution has the version that lock.txt names."""
    pip = [image / "opt/placement/bin/pip", "freeze", "--all"]
    lines = subprocess.run(pip, env=environment(image), capture_output=True, text=True, check=True).stdout.split("\n")
    locked = {line.partition(" ;")[0] for line in (REPOSITORY / "lock.txt").read_text().splitlines()}
    installed = {line.lower().replace("_", "-") for line in lines if "==" in line}
    assert installed - locked <= {line for line in installed if line.startswith("setuptools==")}  # of venv itself


@pytest.mark.image
def test_the_image_serves(image: Path) -> None:
    """The service answers its health check as the Dockerfile asks; there is no torch; the command line runs too."""
    env = environment(image)
    python = image / "opt/placement/bin/python"
    absent = subprocess.run([python, "-c", "import torch"], env=env, capture_output=True, text=True)
    assert "No module named 'torch'" in absent.stderr
    shown = subprocess.run([image / "opt/placement/bin/placement", "--help"], env=env, capture_output=True, text=True)
    assert "solve" in shown.stdout, shown.stderr
    for module in ("s3fs", "pyarrow", "placement_api.pages"):
        subprocess.run([python, "-c", f"import {module}"], env=env, check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [image / "opt/placement/bin/placement", "serve", "--port", str(port), "--data", image / "data"]
    check = json.loads(of(stages()[1], "HEALTHCHECK")[0].split("CMD", 1)[1])
    check = [shlex.quote(word).replace("8000", str(port)) for word in check]
    with (image / "log").open("wb") as log:
        server = subprocess.Popen(command, env=env, cwd=image, stdout=log, stderr=subprocess.STDOUT)
        try:
            end = time.monotonic() + 240
            while subprocess.run(["sh", "-c", " ".join(check)], env=env, capture_output=True).returncode:
                assert server.poll() is None and time.monotonic() < end, (image / "log").read_text()
                time.sleep(0.5)
            for path in ("/readyz", "/", "/openapi.json"):
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=400) as answer:
                    assert answer.status == 200
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)
