"""From a template to one HTML page that fetches nothing."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from placement.report.drawing.numbers import number, percent

STYLE = "drawing/report.css"


def render(template: str, context: dict[str, Any]) -> str:
    """The page of a template in a folder of `placement.report`, with the style sheet in it."""
    import jinja2  # loaded only when a page is made

    folder = files("placement.report")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: folder.joinpath(name).read_text("utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"number": number, "percent": percent}
    return environment.get_template(template).render(style=folder.joinpath(STYLE).read_text("utf-8"), **context)
