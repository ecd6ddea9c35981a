"""What a name and an alias may look like: they stand in addresses and in folders."""

from __future__ import annotations

import re

from placement_api.problems import Problem

WORD = r"[A-Za-z0-9][A-Za-z0-9._-]*"
NAME, ALIAS = re.compile(rf"{WORD}(?:/{WORD})*"), re.compile(WORD)
LONGEST_NAME, LONGEST_ALIAS = 200, 60


def check_name(name: str) -> None:
    """Raise Problem (422) for what is no name."""
    _check_word(NAME, name, LONGEST_NAME, "name", "deepseek-v3/decode")


def check_alias(alias: str) -> None:
    """Raise Problem (422) for what is no alias."""
    _check_word(ALIAS, alias, LONGEST_ALIAS, "alias", "production")
    if alias.isdecimal():
        raise Problem(422, f"the alias {alias!r} is a number, as versions are", "give it a name, as production")


def _check_word(pattern: re.Pattern[str], text: str, longest: int, what: str, example: str) -> None:
    if len(text) > longest or not pattern.fullmatch(text):
        raise Problem(
            422,
            f"{text[:80]!r} is no {what}",
            f"give letters, digits, '.', '_' and '-'{' between slashes' if '/' in example else ''}, as {example}",
        )
