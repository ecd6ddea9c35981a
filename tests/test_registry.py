"""Plug-ins are found by name, and imported only when they are made."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from placement.errors import OptionError
from placement.support.registry import Registry


def test_plug_ins_are_imported_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name is checked without the module, whose class is called when the plug-in is made."""
    (tmp_path / "plug_in_of_a_test.py").write_text("class Mine:\n    name = 'mine'\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry: Registry[object] = Registry("kind=", {"mine": "plug_in_of_a_test:Mine"})
    registry.check("mine")
    assert "mine" in registry and list(registry) == ["mine"] and len(registry) == 1
    assert "plug_in_of_a_test" not in sys.modules
    assert vars(type(registry.make("mine")))["name"] == "mine"


def test_an_unknown_name_is_told_with_those_that_are_known() -> None:
    """Names that the option takes beside those of plug-ins are told first."""
    registry: Registry[object] = Registry("--from ", {"a": "nowhere:A", "b": "nowhere:B"}, others=("auto",))
    for ask in (registry.check, registry.make):
        with pytest.raises(OptionError, match=r"^--from 'c' is unknown; choose one of auto, a, b$"):
            ask("c")
