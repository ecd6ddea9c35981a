"""The extras of our distribution, looked for before a command starts what needs them."""

from __future__ import annotations

from importlib.util import find_spec

from placement.errors import OptionError


def check_extra(what: str, extra: str, *modules: str) -> None:
    """Raise OptionError where modules of an extra are not installed.

    Args:
        what: What needs the modules, as the message says it.
        extra: Name of the extra that installs them.
        modules: Names of the modules, which are found and not imported.
    """
    absent = [name for name in modules if find_spec(name) is None]
    if absent:
        raise OptionError(
            f"{what} needs {', '.join(absent)}, which is not installed; pip install 'expert-placement[{extra}]'"
        )
