"""A table for the terminal, as all commands show them."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text


def table_of(first: str, *others: str, title: str = "", caption: str = "") -> Table:
    """Columns of these headers and no rows; names stand in the first one, figures to the right in the others."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False)
    table.title = Text(title, style="bold") if title else None
    table.caption = Text(caption, style="dim") if caption else None
    table.title_justify = table.caption_justify = "left"
    table.add_column(Text(first), no_wrap=True)
    for header in others:
        table.add_column(Text(header), justify="right", no_wrap=True)
    return table


def short(name: str, width: int) -> str:
    """The beginning of a name that is too long."""
    return name if len(name) <= width else f"{name[: width - 1]}…"
