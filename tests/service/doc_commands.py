"""The commands of pages of docs/, and a folder in which bash runs them as they are written."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
BLOCK = re.compile(r"^```([\w-]+)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
ADDRESS = "127.0.0.1:8000"
COMMAND_S = 300


def blocks(page: str, *languages: str) -> list[str]:
    text = (REPOSITORY / "docs" / page).read_text()
    return [content for language, content in BLOCK.findall(text) if language in languages]


def commands(block: str) -> list[str]:
    """The commands of a block, each with its continued lines, without what is printed between them."""
    lines = block.replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


def console(page: str) -> list[str]:
    """The commands of a page that can run, in order."""
    return [line for block in blocks(page, "console") for line in commands(block)]


def documented(page: str, start: str) -> str:
    """The one command of a page that begins so."""
    found = {line for block in blocks(page, "console", "text") for line in commands(block) if line.startswith(start)}
    assert len(found) == 1, f"docs/{page} has {len(found)} commands that begin with {start!r}: {sorted(found)}"
    return found.pop()


def restored_to_another(postgres_server: Any, url: str, folder: Path) -> str:
    """The URL of a new database with the rows of this one, after `placement-data` in the folder was restored to
    `restored-data` too: by the commands of docs/service.md, with the programs of the server's own version."""
    name = f"d{uuid.uuid4().hex[:12]}"
    postgres_server.psql(f"CREATE DATABASE {name};")
    new = str(postgres_server.get_uri(name))
    programs = Path(postgres_server.get_postmaster_info().process.exe()).parent
    variables = {
        "PLACEMENT_DATABASE_URL": url,
        "NEW_DATABASE_URL": new,
        "PATH": f"{programs}:{os.environ['PATH']}",
    }
    box = Sandbox(folder)
    for start in ("pg_dump", "tar -C placement-data", "pg_restore", "mkdir restored-data"):
        box.run(documented("service.md", start), **variables)
    return new


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A folder with `placement` and `python` of this environment to be found."""

    folder: Path

    @staticmethod
    def make(folder: Path) -> Sandbox:
        (folder / "bin").mkdir()
        for name, words in (("python", ""), ("placement", "-c 'from placement.cli import main; main()'")):
            script = folder / "bin" / name
            script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {words} "$@"\n')
            script.chmod(0o755)
        return Sandbox(folder)

    def run(self, script: str, *, code: int = 0, **variables: str) -> str:
        """What a script printed that a user would run here, but that it ends at the first command that fails."""
        if shutil.which("bash") is None:
            pytest.skip("bash is not installed")
        environment = {**os.environ, "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", **variables}
        done = subprocess.run(
            ["bash", "-eu", "-o", "pipefail", "-c", script],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
        )
        assert done.returncode == code, f"{script}\n{done.stdout}\n{done.stderr}"
        return done.stdout
