"""The lock: what is installed is what was tested, today and in a year."""

from __future__ import annotations

import platform
import re
import sysconfig
import tomllib
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

REPOSITORY = Path(__file__).parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
OURS = canonicalize_name(PROJECT["project"]["name"])
PYTHONS = [line.rpartition(" ")[2] for line in PROJECT["project"]["classifiers"] if ":: 3." in line]


def locked(python: str) -> dict[str, Version]:
    """The version of each distribution that lock.txt names for Linux and a Python such as 3.11.0."""
    minor = ".".join(python.split(".")[:2])
    environment = {"python_version": minor, "python_full_version": python, "sys_platform": "linux"}
    found: dict[str, Version] = {}
    for line in (REPOSITORY / "lock.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            assert requirement.name not in found, f"{requirement.name} is locked twice for Python {python}"
            found[canonicalize_name(requirement.name)] = Version(str(requirement.specifier).removeprefix("=="))
    return found


def asked() -> Iterator[tuple[str, Requirement]]:
    """(where, what) for every requirement that pyproject.toml writes down."""
    project: dict[str, Any] = PROJECT["project"]
    tables = {"dependencies": project["dependencies"], "build-system": PROJECT["build-system"]["requires"]}
    tables |= project["optional-dependencies"] | PROJECT["dependency-groups"]
    return ((table, Requirement(line)) for table, lines in tables.items() for line in lines)


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_satisfies_the_project(python: str) -> None:
    """A requirement that was added or raised without `make lock` would be installed in any version."""
    versions = locked(f"{python}.0")
    environment = {"python_version": python, "sys_platform": "linux", "platform_machine": "x86_64"}
    for table, requirement in asked():
        if requirement.marker is None or requirement.marker.evaluate(environment):
            version = versions.get(canonicalize_name(requirement.name))
            assert version is not None and version in requirement.specifier, f"{table}: {requirement}, locked {version}"


def test_what_is_installed_is_locked() -> None:
    """Every line of `pip freeze`: a distribution that the lock lacks is another one on the next machine."""
    versions = locked(platform.python_version())
    here = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}  # Ray puts copies of others on sys.path
    found = distributions(path=sorted(here))
    installed = {canonicalize_name(one.metadata["Name"]): Version(one.version).public for one in found}
    other = {name: version for name, version in installed.items() if name != OURS}
    assert not [f"{name}=={version}" for name, version in other.items() if str(versions.get(name)) != version]


def test_every_installation_uses_the_lock() -> None:
    """Of the Makefile and the Dockerfile, each `pip install` but those of `make test-newest`."""
    for name in ("Makefile", "Dockerfile"):
        text = (REPOSITORY / name).read_text().replace("\\\n", " ")
        text = re.sub(r"^test-newest:.*?\n\n", "", text, flags=re.MULTILINE | re.DOTALL)
        installs = re.findall(r"pip install [^&\n]*", text)
        assert installs and all(re.search(r"--constraint (/src/)?lock\.txt", line) for line in installs), installs


def test_the_lock_covers_every_group() -> None:
    """`make lock` names the groups one by one."""
    groups = re.search(r"^GROUPS := (.*)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert groups is not None and set(groups[1].split()) == set(PROJECT["dependency-groups"])
