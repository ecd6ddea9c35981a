"""Options and arguments that name what a command writes: checked while the command line is parsed, before any work.

`output_file`, `output_folder` and `new_folder` declare such an option; `Commands` is the typer application
whose commands also refuse an output that is an input or is in the way of another output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, get_type_hints

import typer

from placement.errors import OptionError
from placement.support.atomic_files import check_folder, check_new_folder, check_writable


def output_file(*names: str, help: str) -> Any:
    """The option of a file to write."""
    return typer.Option(*names, help=help, callback=checked_by(check_writable))


def output_folder(*names: str, help: str) -> Any:
    """The option of a folder to write files to; it is made where it is absent."""
    return typer.Option(*names, help=help, callback=checked_by(check_folder))


def new_folder(*names: str, help: str) -> Any:
    """The option of a folder to make, in which nothing is overwritten."""
    return typer.Option(*names, help=help, callback=checked_by(check_new_folder))


def checked_by(check: Callable[[Path], None]) -> Callable[[Path | None], Path | None]:
    """The callback of a parameter that is an output: `check` refuses a path that could not be written."""

    def output_callback(path: Path | None) -> Path | None:
        if path is not None:
            check(path)
        return path

    return output_callback


def check_apart(outputs: Mapping[str, Path], inputs: Iterable[str | Path]) -> None:
    """Refuse outputs that would overwrite each other or an input.

    Args:
        outputs: Path by the name of its option.
        inputs: What is read; paths that do not exist are left to whoever reads them.

    Raises:
        OptionError: Two outputs are the same path or lie within one another, an output is an input, or an input file
            lies in a folder that is written to.
    """
    before: dict[str, Path] = {}
    for name, path in outputs.items():
        for other, there in before.items():
            if _same(path, there):
                raise OptionError(f"{other} and {name} are both {path}; give each its own path")
            if _within(path, there) or _within(there, path):
                raise OptionError(f"{name} {path} and {other} {there} overlap; give each a folder of its own")
        before[name] = path
    for path in map(Path, inputs):
        for name, written in outputs.items():
            if path.exists() and (_same(path, written) or (path.is_file() and _within(path, written))):
                raise OptionError(f"{name} {written} would overwrite the input {path}; give another path to {name}")


class Commands(typer.Typer):
    """A typer application whose commands refuse, before they run, outputs in the way of each other or of an input."""

    def command(self, name: str | None = None, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:  # type: ignore[override]
        register = super().command(name, **options)

        def of(function: Callable[..., Any]) -> Callable[..., Any]:
            @wraps(function)
            def run(**given: Any) -> Any:
                _check_given(function, given)
                return function(**given)

            register(run)
            return function

        return of


def _check_given(function: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """`check_apart` for what a command was called with: paths that no output option took are inputs."""
    outputs: dict[str, Path] = {}
    inputs: list[str | Path] = []
    for parameter, hint in get_type_hints(function, include_extras=True).items():
        value = given.get(parameter)
        for declared in getattr(hint, "__metadata__", ()):
            if value is not None and getattr(declared.callback, "__name__", None) == "output_callback":
                outputs[declared.metavar or f"--{parameter.replace('_', '-')}"] = value
            elif isinstance(value, Path | list):
                inputs += value if isinstance(value, list) else [value]
    check_apart(outputs, inputs)


def _same(one: Path, other: Path) -> bool:
    if one.exists() and other.exists():
        return one.samefile(other)  # by a hard link, too
    return one.resolve() == other.resolve()


def _within(inner: Path, outer: Path) -> bool:
    return inner.resolve().is_relative_to(outer.resolve())
