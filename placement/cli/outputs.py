"""Options and arguments that name what a command writes: checked while the command line is parsed, before any work.

`output_file`, `output_folder` and `new_folder` declare such an option; `check_apart` refuses an output that is an input
or is in the way of another output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import typer

from placement.errors import OptionError
from placement.support.atomic_files import check_folder, check_new_folder, check_writable

FILES_OF_FOLDERS = ("trace.json", "counts.json", "config.json", "manifest.json", "model.safetensors.index.json")


def output_file(*names: str, help: str, panel: str | None = None) -> Any:
    """The option of a file to write."""
    return typer.Option(*names, help=help, callback=checked_by(check_writable), rich_help_panel=panel)


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
        OptionError: Two outputs are the same path or lie within one another, an output is an input or a file of an
            input folder, or an input file lies in a folder that is written to.
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
            if path.is_dir() and written.is_file() and _within(written, path) and _is_read(written):
                raise OptionError(f"{name} {written} is a file of the input {path}; give another path to {name}")


def _is_read(file: Path) -> bool:
    """Traces, counts and checkpoints have files of this name; an output of ours beside them may be replaced."""
    return file.name in FILES_OF_FOLDERS or file.suffix == ".safetensors"


def _same(one: Path, other: Path) -> bool:
    if one.exists() and other.exists():
        return one.samefile(other)  # by a hard link, too
    return one.resolve() == other.resolve()


def _within(inner: Path, outer: Path) -> bool:
    return inner.resolve().is_relative_to(outer.resolve())
