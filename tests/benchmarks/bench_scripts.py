"""The scripts of benchmarks/ and examples/: the arguments that each declares, and what it says to bad ones."""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import runpy
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).parents[2]
BENCHMARKS, EXAMPLES = REPOSITORY / "benchmarks", REPOSITORY / "examples"
SHARED = BENCHMARKS / "machine.py"  # by all of them
SCRIPTS = [*sorted({*BENCHMARKS.rglob("*.py")} - {SHARED}), *sorted(EXAMPLES.glob("*.py"))]
LONGEST_S = 300  # until a script has refused: it imports its libraries first


@dataclass(frozen=True, slots=True, kw_only=True)
class Argument:
    """An argument of a script, by its longest name; `kind` is the name of its type, empty where it is text."""

    name: str
    kind: str
    choices: tuple[str, ...]

    @property
    def positional(self) -> bool:
        return not self.name.startswith("-")

    def given(self, value: str) -> list[str]:
        """The words that give it that value."""
        return [value] if self.positional else [self.name, value]

    def good(self, room: Path) -> str:
        """A value that is accepted; files of it are made in `room`."""
        (room / "config.json").write_text("{}")
        if self.choices:
            return self.choices[0]
        trace, file = str(EXAMPLES / "traces"), str(room / "config.json")
        of_kind = {"int": "1", "input_trace": trace, "input_case": f"{trace}:4x2:0", "input_file": file}
        return of_kind.get(self.kind, str(room))


def arguments(path: Path) -> Iterator[Argument]:
    """What a script declares, in order."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            names = [str(one.value) for one in node.args if isinstance(one, ast.Constant)]
            words = {str(word.arg): word.value for word in node.keywords}
            choices = words.get("choices")
            literal = ast.literal_eval(choices) if isinstance(choices, ast.Tuple | ast.List) else ()
            kind = ast.unparse(words["type"]) if "type" in words else ""
            yield Argument(name=max(names, key=len), kind=kind, choices=tuple(literal))
        elif isinstance(node.func, ast.Name) and node.func.id == "trace_and_seeds":
            yield Argument(name="trace", kind="input_trace", choices=())


def with_kinds(*kinds: str) -> list[object]:
    """(script, argument) for every argument of these types."""
    return [
        pytest.param(path, one, id=f"{path.relative_to(REPOSITORY)} {one.name}")
        for path in SCRIPTS
        for one in arguments(path)
        if one.kind in kinds
    ]


def before(path: Path, argument: Argument, room: Path) -> list[str]:
    """Good values of the positional arguments that come before this one."""
    words = []
    for one in arguments(path):
        if one == argument:
            break
        words += [one.good(room)] if one.positional else []
    return words


def refusal(path: Path, words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The last line that a script says to arguments which it must refuse with exit code 2, before any work."""
    code, said = _run_here(path, words, monkeypatch)
    assert code == 2, said
    assert "Traceback" not in said
    return said.splitlines()[-1]


def _run_here(path: Path, words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> tuple[object, str]:
    """(exit code, what is said) of a script run in this process, which has most libraries.

    A benchmark that gets beyond its parser has accepted the words; examples, which share no code with us, check them
    later, and are stopped if they go on.
    """
    parse = argparse.ArgumentParser.parse_args

    def parse_args(parser: argparse.ArgumentParser) -> argparse.Namespace:
        accepted = parse(parser)
        if not path.is_relative_to(EXAMPLES):
            pytest.fail(f"accepted: {accepted}")
        return accepted

    said = io.StringIO()
    with monkeypatch.context() as patch, contextlib.redirect_stderr(said), _modules_apart():
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        patch.setattr(sys, "argv", [str(path), *words])
        handler = signal.signal(signal.SIGALRM, lambda *_: pytest.fail(f"{path} went on for {LONGEST_S} s"))
        signal.alarm(LONGEST_S)
        patch.setattr(sys, "path", [str(path.parent), *sys.path])
        try:
            runpy.run_path(str(path), run_name="__main__")
        except SystemExit as stop:
            return stop.code, said.getvalue()
        except ModuleNotFoundError as error:
            if list(BENCHMARKS.rglob(f"{error.name}.py")):
                raise
            pytest.skip(str(error))
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, handler)
    return 0, said.getvalue()


@contextlib.contextmanager
def _modules_apart() -> Iterator[None]:
    """Modules of scripts that are loaded within are forgotten after: folders have some of the same name."""

    def take() -> dict[str, ModuleType]:
        files = {name: getattr(module, "__file__", None) or "" for name, module in sys.modules.items()}
        ours = (f"{BENCHMARKS}/", f"{EXAMPLES}/")
        return {name: sys.modules.pop(name) for name, file in files.items() if file.startswith(ours)}

    before = take()
    try:
        yield
    finally:
        take()
        sys.modules.update(before)
