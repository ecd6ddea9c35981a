"""The typer application of our commands: options in groups and panels, outputs checked before a command runs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Any, get_type_hints

import typer

from placement.cli.outputs import check_apart
from placement.cli.panels import PanelCommand


class Commands(typer.Typer):
    """A typer application.

    A parameter of a command that is a dataclass stands for an option for each field. Commands refuse, before they run,
    outputs in the way of each other or of an input.
    """

    def command(self, name: str | None = None, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:  # type: ignore[override]
        register = super().command(name, cls=PanelCommand, **options)

        def of(function: Callable[..., Any]) -> Callable[..., Any]:
            flat = flattened(function)

            @wraps(flat)
            def run(**given: Any) -> Any:
                _check_given(flat, given)
                return flat(**given)

            register(run)
            return function

        return of


def flattened(function: Callable[..., None]) -> Callable[..., None]:
    """`function` with an option for each field of the groups among its parameters."""
    hints = get_type_hints(function, include_extras=True)
    groups = {name: kind for name, kind in hints.items() if inspect.isclass(kind) and is_dataclass(kind)}
    flat: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(function).parameters.items():
        if name not in groups:
            flat.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name]))
            continue
        of_field = get_type_hints(groups[name], include_extras=True)
        for field in fields(groups[name]):
            default = inspect.Parameter.empty if field.default is MISSING else field.default
            kind = inspect.Parameter.KEYWORD_ONLY
            flat.append(inspect.Parameter(field.name, kind, default=default, annotation=of_field[field.name]))

    def run(**given: Any) -> None:
        filled = {
            name: kind(**{field.name: given.pop(field.name) for field in fields(kind)}) for name, kind in groups.items()
        }
        function(**given, **filled)

    run.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in flat}
    run.__name__, run.__doc__, run.__module__ = function.__name__, function.__doc__, function.__module__
    return run


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
