"""Templates and files of the page."""

from __future__ import annotations

import hashlib
import mimetypes
import re
import time
from contextvars import ContextVar
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
from fastapi.responses import HTMLResponse
from markupsafe import Markup, escape

from placement import __version__
from placement.report.drawing.page import CHART_STYLE, FILTERS, GLOBALS, PAGE_STYLE, style
from placement_api.pages.forms import FIELDS
from placement_api.pages.marks import change_mark, mean_mark

OF_REPORT = ("drawing/legend.html.j2", "drawing/grouping.html.j2")
STYLES = (CHART_STYLE, PAGE_STYLE)  # of the report: same colours, same letters
OWN = ("page.css", "page.js", "upload.js", "job.js")
VISITOR: ContextVar[str] = ContextVar("visitor", default="")  # name of the token that a browser logged in with
KEYS = re.compile(rf"\b(?:{'|'.join(field.name for field in FIELDS)})\b")

_folder = files("placement_api.pages")


def render(name: str, **context: Any) -> str:
    return _templates().get_template(f"{name}.html.j2").render(**context)


def page(name: str, status: int = 200, **context: Any) -> HTMLResponse:
    return HTMLResponse(render(name, **context), status_code=status)


def asset(name: str) -> tuple[bytes, str] | None:
    """Content and media type of a file of the page; None if there is none of that name."""
    return _read(name) if name in (*STYLES, *OWN) else None


@cache
def _read(name: str) -> tuple[bytes, str]:
    content = style(name).encode() if name in STYLES else _folder.joinpath("static", name).read_bytes()
    return content, mimetypes.guess_type(name)[0] or "text/plain"


@cache
def address(name: str) -> str:
    """Where the page finds a file: another address for another content, so that browsers may keep it."""
    found = asset(name)
    if found is None:
        raise LookupError(name)
    return f"/static/{name}?v={hashlib.sha256(found[0]).hexdigest()[:12]}"


def _template(name: str) -> str:
    folder = files("placement.report") if name in OF_REPORT else _folder.joinpath("templates")
    return folder.joinpath(name).read_text("utf-8")


def codes(text: str) -> Markup:
    """Words in backticks as code."""
    parts = [str(escape(part)) for part in text.split("`")]
    return Markup("".join(f"<code>{part}</code>" if odd % 2 else part for odd, part in enumerate(parts)))


def fields_named(text: str) -> str:
    """A message with the fields of the form in place of options and of keys of bodies."""
    text = re.sub(r"--([a-z-]+)", lambda flag: flag[1].replace("-", " "), text)
    return KEYS.sub(lambda key: key[0].replace("_", " "), text)


@cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= GLOBALS | {
        "address": address,
        "version": __version__,
        "visitor": VISITOR.get,
        "change_mark": change_mark,
        "mean_mark": mean_mark,
    }
    environment.filters |= FILTERS | {
        "codes": codes,
        "flags": fields_named,
        "when": lambda seconds: time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds)),
    }
    return environment
