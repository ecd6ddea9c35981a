"""The commands of docs/service.md and docs/deploy.md run as they are written, by bash, beside a server of their own.

Only the port is another. What needs a container engine or a cluster is not run; what it names exists.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from doc_commands import ADDRESS, BLOCK, REPOSITORY, Sandbox, blocks, commands, console
from tests_service import Server

# pytest imports tests by their path and leaves sys.path alone; this lets them import helm.py
sys.path += [str(Path(__file__).parents[1] / "deploy")]

import helm

SERVE = "placement serve"
OF_MACHINES = ("docker ", "kubectl ", "helm ")


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that has nothing but the examples."""
    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(REPOSITORY / "examples", folder / "examples")
    return folder


@pytest.fixture(scope="module")
def bash(sandbox: Path) -> Callable[..., str]:
    """Runs a script in the sandbox."""
    return Sandbox.make(sandbox).run


@pytest.fixture(scope="module")
def documented(make_server: Callable[..., Server], sandbox: Path) -> Iterator[Server]:
    """What the page's `placement serve` starts."""
    assert SERVE in console("service.md")
    server = make_server(sandbox / "placement-data")
    yield server
    server.kill(signal.SIGTERM)


def need(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


def test_the_commands_of_the_service_run(documented: Server, bash: Callable[..., str], sandbox: Path) -> None:
    """In order; the placement is what `placement submit` and a solve on this machine write, byte for byte."""
    need("curl", "tar")
    script = [line for line in console("service.md") if line != SERVE]
    assert len(script) >= 8
    text = "\n".join(script).replace(ADDRESS, f"127.0.0.1:{documented.port}")
    for _ in range(5):  # the same request is one job: asked again where kernels compile for longer than it waits
        for made in ("demo-data", "restored-data"):
            shutil.rmtree(sandbox / made, ignore_errors=True)
        bash(text)
        answer = json.loads((sandbox / "placement.json").read_text())
        if answer.get("schema") == "expert-placement/1":
            break
    assert answer["schema"] == "expert-placement/1", answer
    words = "placement solve examples/traces --nodes 4 --gpus-per-node 2 -o here.json"
    bash(words)
    assert (sandbox / "placement.json").read_bytes() == (sandbox / "here.json").read_bytes()
    assert (sandbox / "same.json").read_bytes() == (sandbox / "here.json").read_bytes()


def test_the_first_upload_of_the_page_says_what_was_left_out(documented: Server, bash: Callable[..., str]) -> None:
    """The folder of the example trace has a README, as many folders have."""
    need("curl", "tar")
    first = console("service.md")[1:3]
    text = "\n".join([*first, 'printf "%s" "$answer"']).replace(ADDRESS, f"127.0.0.1:{documented.port}")
    assert json.loads(bash(text))["notes"] == ["left out 1 file that holds no traffic: README.md"]


def test_the_python_of_the_service_runs(documented: Server, bash: Callable[..., str], sandbox: Path) -> None:
    found = blocks("service.md", "python")
    assert found
    (sandbox / "page.py").write_text("\n".join(found).replace(ADDRESS, f"127.0.0.1:{documented.port}"))
    bash("python page.py && python -c 'import os; os.remove(\"page.py\")'")


def test_the_token_of_a_deployment_opens_the_service(
    make_server: Callable[..., Server], bash: Callable[..., str], sandbox: Path
) -> None:
    """docs/deploy.md: a token made known from a file, then asked with as the page asks."""
    need("openssl", "curl")
    script = console("deploy.md")
    assert any("--token-file" in line for line in script)
    bash("\n".join(script))
    server = make_server(sandbox / "demo-data")
    assert httpx.get(f"{server.url}/v1/placements").status_code == 401
    asked = [line for block in blocks("deploy.md", "text") for line in commands(block) if line.startswith("curl ")]
    assert asked
    token = (sandbox / "token.txt").read_text().strip()
    for line in asked:
        text = line.replace(ADDRESS, f"127.0.0.1:{server.port}").replace("curl ", "curl -sS --fail ", 1)
        assert json.loads(bash(text, PLACEMENT_TOKEN=token)) == []
    server.kill(signal.SIGTERM)


def unrun() -> list[list[str]]:
    """The words of each command of docs/deploy.md that takes an engine of containers or a cluster."""
    lines = [line for block in blocks("deploy.md", "text") for line in commands(block)]
    found = [shlex.split(line) for line in lines if line.startswith(OF_MACHINES)]
    rest = [line for line in lines if not line.startswith((*OF_MACHINES, "curl ", "export "))]
    assert not rest, "mark what can run as `console`, or say here what it must name"
    return found


def test_what_the_image_is_asked_to_do_works_here(bash: Callable[..., str], sandbox: Path) -> None:
    """What `docker run` gives to the image is a command of ours."""
    runs = [words for words in unrun() if words[:2] == ["docker", "run"] and "--entrypoint" not in words]
    assert runs
    for words in runs:
        bash(shlex.join(["placement", *words[words.index("expert-placement") + 1 :]]))


@pytest.mark.skipif(helm.program() is None, reason="Helm is not installed: its wheel is for Linux on x86-64")
def test_what_is_not_run_names_what_exists() -> None:
    """Charts to install with their values, secrets and their keys, services to start, variables that they need."""
    for words in unrun():
        if words[:2] == ["docker", "build"]:
            assert words[-1] == "." and (REPOSITORY / "Dockerfile").is_file()
        elif words[:2] == ["docker", "compose"]:
            assert (REPOSITORY / "compose.yaml").is_file()
        elif words[0] == "helm":
            assert words[1:5] == ["upgrade", "--install", "placement", "deploy/helm"]
        elif words[:4] == ["kubectl", "create", "secret", "generic"]:
            used = secrets()
            name, keys = words[4], [word.removeprefix("--from-literal=").split("=")[0] for word in words[5:]]
            assert name in used, f"no manifest uses the secret {name}"
            assert set(keys) <= used[name] or not used[name], (name, keys)
        else:
            assert words[:2] == ["docker", "run"], words
    exported = {
        variable
        for block in blocks("deploy.md", "text")
        for line in commands(block)
        if line.startswith("export ")
        for variable in re.findall(r"(\w+)=", line)
    }
    compose = (REPOSITORY / "compose.yaml").read_text()
    needed = set(re.findall(r"\$\{(\w+):\?", compose))
    needed |= {one["environment"] for one in yaml.safe_load(compose)["secrets"].values()}
    assert needed == exported


def secrets() -> dict[str, set[str]]:
    """The keys of each secret that the page's charts name; none where all of them are taken."""
    found: dict[str, set[str]] = {}

    def look(value: Any) -> None:
        if isinstance(value, list):
            for one in value:
                look(one)
        if not isinstance(value, dict):
            return
        for key, one in value.items():
            if key in ("secretKeyRef", "credentials"):
                found.setdefault(one["name"], set()).add(one["key"])
            elif key == "secretRef":
                found.setdefault(one["name"], set())
            elif key == "secret" and "secretName" in one:
                found.setdefault(one["secretName"], set()).update(item["key"] for item in one.get("items", []))
            look(one)

    for words in unrun():
        if words[0] == "helm":
            look(list(helm.render(*(path_of(word) for word in words[5:]), release=words[3]).values()))
    return found


def path_of(word: str) -> str:
    return str(REPOSITORY / word) if (REPOSITORY / word).is_file() else word


def test_options_that_deploying_names_exist() -> None:
    """`--blobs` and its like, in the sentences of docs/deploy.md."""
    import typer

    from placement.cli import app

    commands_: Any = typer.main.get_command(app)
    known = {
        name
        for command in (commands_.commands["serve"], *commands_.commands["token"].commands.values())
        for param in command.params
        for name in param.opts
    }
    text = BLOCK.sub("", (REPOSITORY / "docs" / "deploy.md").read_text())
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
    assert named and named <= known
