"""The Dockerfile: linted, and its steps run where no engine of containers is."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# pytest imports tests by their path and leaves sys.path alone; this lets them import clean_root.py
sys.path += [str(Path(__file__).parent)]

from clean_root import CleanRoot, missing

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


def environment_of(steps: list[Step]) -> dict[str, str]:
    """What ENV says, with the PATH of the base image after it; of this machine only where packages come from."""
    kept = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "HTTP"))}
    base = os.pathsep.join([f"{sys.base_prefix}/bin", "/usr/sbin", "/usr/bin"])
    given = dict(word.split("=", 1) for rest in of(steps, "ENV") for word in shlex.split(rest))
    return kept | {name: value.replace("$PATH", base) for name, value in ({"PATH": "$PATH"} | given).items()}


def test_hadolint_finds_nothing() -> None:
    """Its rules of good Dockerfiles, all of them."""
    program = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("hadolint is not installed: its wheel is for Linux on x86-64")
    done = subprocess.run([program, "--no-color", "Dockerfile"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_image_is_small_and_without_root() -> None:
    """Two stages of one base with a digest, a numeric user, exec forms, a health check; only packages are fetched."""
    build, final = stages()
    for stage in (build, final):
        assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+@sha256:[0-9a-f]{64}( AS \w+)?", stage[0][1])
        assert not of(stage, "ADD")
        assert not [rest for rest in of(stage, "RUN") if re.search(r"curl|wget|https?:|sudo", rest)]
    assert build[0][1].split()[0] == final[0][1]
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
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CleanRoot]:
    """The root that both stages make: what they copy is copied, what they run is run, each in a root of its own."""
    if why := missing():
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("image")
    build, final = stages()
    first = CleanRoot(folder=folder / "build", bases=("/usr", "/etc", sys.base_prefix))
    second = CleanRoot(folder=folder / "final")
    for root, steps in ((first, build), (second, final)):
        root.folder.mkdir()
        root.make()
        given = environment_of(steps) | dict(rest.split("=", 1) for rest in of(steps, "ARG"))
        for word, rest in steps[1:]:
            if word == "COPY":
                *sources, target = rest.removeprefix("--from=build ").split()
                for source in sources:
                    copy(source, Path(f"{root.folder}{target}"), first.folder if "--from=" in rest else REPOSITORY)
            elif word == "RUN":
                done = root.run(rest, given)
                assert done.returncode == 0, done.stdout + done.stderr
    yield second
    shutil.rmtree(folder, ignore_errors=True)


def copy(source: str, target: Path, base: Path) -> None:
    found = base / source.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    if base != REPOSITORY:
        found.rename(target)
    elif found.is_dir():
        shutil.copytree(found, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(found, target)


def installed(image: CleanRoot) -> dict[str, str]:
    """The version of each distribution in the image."""
    found = (image.folder / "opt/placement/lib").glob("python*/site-packages/*.dist-info")
    return dict(path.name.removesuffix(".dist-info").lower().replace("_", "-").rsplit("-", 1) for path in found)


@pytest.mark.image
def test_what_the_image_installs_is_locked_and_listed(image: CleanRoot) -> None:
    """Each distribution has the version that lock.txt names, and is in the bill of materials (CycloneDX) with it."""
    locked = {line.partition(" ;")[0] for line in (REPOSITORY / "lock.txt").read_text().splitlines()}
    found = installed(image)
    ours = found.pop("expert-placement")
    assert len(found) > 40 and {f"{name}=={version}" for name, version in found.items()} <= locked
    bill = json.loads((image.folder / "opt/placement/sbom.cdx.json").read_text())
    assert bill["bomFormat"] == "CycloneDX"
    listed = {one["name"].lower().replace("_", "-"): one["version"] for one in bill["components"]}
    assert listed == found | {"expert-placement": ours}
    assert all(one["purl"].startswith("pkg:pypi/") for one in bill["components"] if one["name"] != "expert-placement")


@pytest.mark.image
def test_the_environment_is_small(image: CleanRoot) -> None:
    """Under 600 MB: nothing that the service does without, no tool that installs, no tests of others."""
    assert not {"torch", "pyarrow", "pip", "setuptools"} & set(installed(image))
    files = [path for path in (image.folder / "opt/placement").rglob("*") if not path.is_symlink()]
    assert not [path for path in files if path.is_dir() and path.name == "tests"]
    assert sum(path.stat().st_size for path in files if path.is_file()) < 600e6


@pytest.mark.image
def test_the_image_serves(image: CleanRoot) -> None:
    """As its user, without a right, a network, or a root that can be written: the health check answers, a trace is
    placed, nothing is compiled, SIGTERM ends it; Parquet is refused in words."""
    final = stages()[1]
    shutil.copytree(REPOSITORY / "examples" / "traces", image.folder / "data" / "traces")
    (image.folder / "data" / "one.parquet").write_bytes(b"PAR1")
    for path in [image.folder / "data", *(image.folder / "data").rglob("*")]:
        os.chown(path, *(int(one) for one in of(final, "USER")[-1].split(":")))
    check = shlex.join(json.loads(of(final, "HEALTHCHECK")[0].split("CMD", 1)[1]))
    serve = shlex.join([*json.loads(of(final, "ENTRYPOINT")[0]), "serve", "--data", "/data/store"])
    script = f"""
        echo user $(id -u); grep CapBnd /proc/self/status; echo devices $(grep -c : /proc/net/dev)
        if touch /x 2>/dev/null; then exit 9; fi
        compiled() {{ find /var/cache/placement -type f -readable | sort; }}
        compiled > /tmp/before
        {serve} 2>/tmp/log & server=$!
        until {check} 2>/dev/null; do kill -0 $server || {{ cat /tmp/log; exit 1; }}; sleep 0.5; done
        for page in readyz openapi.json ""; do
            python -c "from urllib.request import urlopen; print(urlopen('http://127.0.0.1:8000/$page').status)"
        done
        placement submit traces --nodes 4 --gpus-per-node 2 --server http://127.0.0.1:8000 -o /tmp/placement.json
        placement traces convert one.parquet /tmp/trace --from parquet || true
        test -s /tmp/before && compiled | cmp - /tmp/before && echo warm
        kill -TERM $server; wait $server || echo ended $?
        cat /tmp/log
    """
    volumes = ("/data", "/var/cache/placement")
    done = image.run(
        f"cd {of(final, 'WORKDIR')[0]}\n{script}", environment_of(final), user=of(final, "USER")[-1], volumes=volumes
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "user 10001\nCapBnd:\t0000000000000000\ndevices 1\n" in done.stdout, said
    assert "200\n200\n200\n" in done.stdout and "\nwarm\n" in done.stdout, said
    assert "expert-placement[parquet]" in said, said
