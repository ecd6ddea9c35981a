"""How `make docs` builds the site: README, docs/, results of benchmarks, and the reference of all public names.

The source folder is the repository itself, so a link of a page leads to the same file on the site as elsewhere.
"""

from __future__ import annotations

import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from docutils.nodes import Text
from sphinx.addnodes import desc_annotation
from sphinx.ext.autodoc.mock import mock

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
sys.path.insert(0, str(REPOSITORY))

project = "placement"
author = "the placement project"
root_doc = "README"
include_patterns = [
    "README.md",
    "CONTRIBUTING.md",
    "docs/*.md",
    "docs/site/**.rst",
    "examples/**.md",
    "benchmarks/README.md",
    "benchmarks/results/*.md",
]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_heading_anchors = 4  # as GitHub makes them
suppress_warnings = ["myst.header"]  # results of benchmarks begin at the level that they like

autodoc_mock_imports = ["torch", "pytest", "hypothesis"]  # the reference is built without them
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"
napoleon_custom_sections = [("Attributes", "params_style")]  # fields of dataclasses, under that name
default_role = "py:obj"  # `name` links where the reference has the name

html_theme = "furo"
html_title = "placement"
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_show_search_summary = False  # it would be fetched, which pages that are opened from disk may not
html_static_path = ["static"]
html_css_files = ["site.css"]
html_extra_path = ["start"]  # index.html, which leads to README.html

CONTENTS = (HERE / "contents.md").read_text()
ARRAY = re.compile(
    r"~?(?:numpy\.)?ndarray\[~?tuple\[~?(?:typing\.)?Any, \.\.\.\], ~?(?:numpy\.)?dtype\[~?(?:numpy\.)?(\w+)\]\]"
)

# its names are imported when they are asked for, which autodoc does when torch is mocked no longer
with mock(autodoc_mock_imports):
    runtime = import_module("placement.runtime")
    assert all(hasattr(runtime, name) for name in runtime.__all__)


def add_contents(app: Any, docname: str, source: list[str]) -> None:
    """The list of all pages, which GitHub needs not show, ends the first page."""
    if docname == root_doc:
        source[0] += CONTENTS


def name_arrays(app: Any, what: str, name: str, obj: Any, options: Any, signature: str, returns: str) -> Any:
    """`NDArray[float64]` as in the source, for what the alias stands for."""
    named = [None if text is None else ARRAY.sub(r"NDArray[\1]", text) for text in (signature, returns)]
    return named[0], named[1]


def name_property_arrays(app: Any, domain: str, objtype: str, content: Any) -> None:
    """The same for the types of properties, which have no signature."""
    for node in content.parent.findall(desc_annotation):
        if ARRAY.search(node.astext()):
            node.children = [Text(ARRAY.sub(r"NDArray[\1]", node.astext()))]


def setup(app: Any) -> None:
    app.connect("source-read", add_contents)
    app.connect("autodoc-process-signature", name_arrays)
    app.connect("object-description-transform", name_property_arrays)
