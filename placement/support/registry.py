"""Plug-ins by name: each is a class in a file of its own, imported when somebody asks for the plug-in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, Generic, TypeVar, cast

from placement.errors import OptionError

T = TypeVar("T")


class Registry(Generic[T]):
    """Names of plug-ins, in the order in which they are told to users; `make` gives the plug-in of a name.

    Args:
        option: What the name is told with in messages, such as "solver=" or "--to ".
        plug_ins: "module:class" of every name. The class is called without arguments.
        others: Further names that users may give; whoever reads the option knows them.
    """

    def __init__(self, option: str, plug_ins: Mapping[str, str], *, others: tuple[str, ...] = ()) -> None:
        self._option, self._plug_ins, self._others = option, dict(plug_ins), others

    def __iter__(self) -> Iterator[str]:
        return iter(self._plug_ins)

    def __len__(self) -> int:
        return len(self._plug_ins)

    def __contains__(self, name: object) -> bool:
        return name in self._plug_ins

    def check(self, name: str) -> None:
        """Refuse a name that no plug-in has; nothing is imported.

        Raises:
            OptionError: No plug-in has the name; the message lists those there are.
        """
        if name not in self._plug_ins:
            raise OptionError(
                f"{self._option}{name!r} is unknown; choose one of {', '.join((*self._others, *self._plug_ins))}"
            )

    def make(self, name: str) -> T:
        """The plug-in of that name.

        Raises:
            OptionError: No plug-in has the name; the message lists those there are.
        """
        self.check(name)
        return cast(T, attribute(self._plug_ins[name])())


def attribute(address: str) -> Any:
    """What "module:name" stands for; the module is imported now."""
    module, name = address.split(":")
    return getattr(import_module(module), name)
