"""What is recorded of the model of `changed_models` before anything is changed."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], tuple[Any, ...]]:
    from changed_models import NEW, generate, make_model  # these need torch

    found = generate(make_model(), tmp_path_factory.mktemp("plain") / "t")
    assert sorted(found) == [(name, at) for name in "ab" for at in range(6 + NEW - 1)]
    return found
