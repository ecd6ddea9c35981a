"""Kernels that only kernels call are safe from Python; what another version compiled is not read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numba as nb
import pytest

from placement.support.kernel import inner_kernel

REPOSITORY = Path(__file__).parents[1]


@inner_kernel
def doubled(x: int) -> int:
    """Twice a number."""
    return 2 * x


@nb.njit
def doubled_plus_one(x: int) -> int:
    return doubled(x) + 1


def test_kernels_compile_it_and_python_runs_it() -> None:
    """Without numba's door to Python a compiled call from there would end the process: Python takes the source."""
    assert doubled(4) == 8
    assert doubled.signatures == []  # type: ignore[attr-defined]
    assert doubled_plus_one(4) == 9
    assert len(doubled.signatures) == 1  # type: ignore[attr-defined]
    assert doubled(4) == 8
    assert (doubled.__name__, doubled.__doc__) == ("doubled", "Twice a number.")


def test_without_compiling_kernels_are_the_functions_that_they_are() -> None:
    """Under numba's switch for fuzzing and debuggers, kernels of every kind can be called."""
    script = (
        "from tests.test_kernel import doubled; from placement.traces.checked import check_ids; import numpy as np\n"
    )
    script += "print(doubled(4), check_ids(np.array([[0, 9]], np.uint8), 4))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=REPOSITORY,
        env=os.environ | {"NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "8 (1, 0)\n"


KERNEL = """
from typing import NamedTuple
from placement.support.kernel import kernel
class NAME(NamedTuple):
    x: int
@kernel
def add(pair):
    return pair.x + STEP
print(add(NAME(1)))
"""


@pytest.mark.parametrize(("version", "answer"), [("2", "11\n"), ("1", "")])
def test_a_new_version_compiles_anew(version: str, answer: str, tmp_path: Path) -> None:
    """A class of a signature got another name: what the old version left is not read. With the old version it is, which
    protects this test."""

    def run(name: str, step: int, version: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "kept.py").write_text(KERNEL.replace("NAME", name).replace("STEP", str(step)))
        code = f"import placement; placement.__version__ = {version!r}; import kept"
        environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(REPOSITORY), str(tmp_path)))}
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)

    assert run("Old", 1, "1").stdout == "2\n"
    found = run("New", 10, version)
    assert found.stdout == answer, found.stderr
    assert ("Can't get attribute 'Old'" in found.stderr) == (not answer)
