"""The form of an upload: what a recording of an engine does not say of itself, in the words of the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from placement.errors import OptionError
from placement.readers import AUTO, READERS
from placement_api.archives import SUFFIXES
from placement_api.problems import Problem
from placement_api.reading import ReadAs

READ_AS = {  # field: what it is called on the page
    "from": "Recorded by",
    "top_k": "Experts per token (top-k)",
    "experts": "Experts of a layer",
    "layer_ids": "Index of each MoE layer",
    "model": "Name of the model",
}
CHOICES = (AUTO, *READERS)
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")
ENDINGS = (*ARCHIVES, *SUFFIXES)  # of files that are taken


def read_as_of(form: Mapping[str, Any]) -> ReadAs:
    """What is said of a recording: empty fields are left out. Raises Problem with the field's label."""
    given = {name: str(form.get(name) or "").strip() for name in READ_AS}
    try:
        read_as = ReadAs.model_validate({name: text for name, text in given.items() if text})
        read_as.options()
    except ValidationError as error:
        fault = error.errors()[0]
        name = str(fault["loc"][0])
        raise Problem(
            422, f"{READ_AS[name]}: {given[name][:40]!r} is not allowed: {fault['msg']}", "change it, or leave it empty"
        ) from None
    except OptionError as error:  # of the list of layers, which the command line calls by its option
        what, _, mend = str(error).rpartition("; ")
        raise Problem(422, what.replace("--layer-ids", f"{READ_AS['layer_ids']}:"), mend) from None
    return read_as
