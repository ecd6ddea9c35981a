"""From a template to one HTML page that fetches nothing."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from placement.errors import printable
from placement.report.drawing.numbers import change, human_bytes, mean_max, number, percent, plural

FILTERS = {"number": number, "percent": percent, "mean_max": mean_max, "bytes": human_bytes, "printable": printable}
GLOBALS = {"plural": plural, "change": change}
CHART_STYLE, PAGE_STYLE = "chart.css", "report.css"


def style(*names: str) -> str:
    """The style sheets of that name together; without a name all that a page needs."""
    folder = files("placement.report").joinpath("drawing")
    return "".join(folder.joinpath(name).read_text("utf-8") for name in names or (CHART_STYLE, PAGE_STYLE))


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
    environment.filters |= FILTERS
    environment.globals |= GLOBALS
    return environment.get_template(template).render(style=style(), **context)
