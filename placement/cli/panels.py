"""Commands whose `--help` has a section for each topic, and which refuse by their new name what was renamed."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup

from placement.cli.renamed import COMMANDS, OPTIONS
from placement.errors import OptionError


class PanelCommand(TyperCommand):
    """A command with its options in panels by topic."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            row = parameter.get_help_record(ctx)
            if row is not None:
                given = "Arguments" if parameter.param_type_name == "argument" else "Options"
                panels.setdefault(getattr(parameter, "rich_help_panel", None) or given, []).append(row)
        for name, rows in ((name, rows) for name, rows in panels.items() if rows):
            with formatter.section(name):
                formatter.write_dl(rows)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = {name for parameter in self.get_params(ctx) for name in parameter.opts}
        for word in args[: args.index("--")] if "--" in args else args:
            name = word.split("=")[0]
            new = OPTIONS.get((str(self.name), name)) or OPTIONS.get(("", name))
            if new is not None and name not in known:
                raise OptionError(f"{name} of `placement {self.name}` was renamed: use {new}")
        return list(super().parse_args(ctx, args))


class PanelGroup(TyperGroup):
    """A group of commands; what was renamed is refused with its new name."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        new = COMMANDS.get((str(self.name), args[0])) if args else None
        if new is not None:
            raise OptionError(f"`{args[0]}` was renamed: use `{new}`")
        return super().resolve_command(ctx, args)
