"""JSON and YAML that others wrote: everything that may be wrong with the text is a ValueError of one line."""

from __future__ import annotations

import json
from typing import Any


def parse_json(text: bytes | str) -> Any:
    """What a JSON document says. Raises ValueError, also on a key that is there twice."""
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_yaml(text: bytes | str) -> Any:
    """What a YAML document says. Raises ValueError, also on aliases: a few lines of them stand for gigabytes."""
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                name = self.peek_event().anchor  # type: ignore[no-untyped-call]
                raise ValueError(f"it has the alias *{name[:40]}; write out what it stands for")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [key.value for key, _ in getattr(node, "value", ())]
            if len(set(map(str, keys))) < len(keys):
                raise ValueError(f"it has a key twice, of {', '.join(map(str, keys))[:200]}")
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader)  # a SafeLoader
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())[:200]) from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"it has the key {key[:80]!r} twice")
        found[key] = value
    return found
