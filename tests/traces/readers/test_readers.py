"""Every registered reader keeps the contract on every golden recording of its format."""

from __future__ import annotations

from pathlib import Path

import pytest

from placement.readers import READERS, get_reader
from placement.readers.base import Reader
from placement.testing.readers import Golden, ReaderContract

GOLDEN = Path(__file__).parents[2] / "golden" / "readers"
CASES = [(name, case) for name in READERS for case in sorted(path.name for path in (GOLDEN / name).glob("*/"))]


class TestContract(ReaderContract):
    @pytest.fixture(params=CASES, ids="/".join)
    def case(self, request: pytest.FixtureRequest) -> tuple[str, str]:
        if request.param[0] == "parquet":
            pytest.importorskip("pyarrow", reason="pyarrow is not installed: extra [parquet]")
        name, case = request.param
        return name, case

    @pytest.fixture
    def reader(self, case: tuple[str, str]) -> Reader:
        return get_reader(case[0])

    @pytest.fixture
    def golden(self, case: tuple[str, str]) -> Golden:
        return Golden.load(GOLDEN.joinpath(*case))


def test_every_reader_has_a_golden_recording() -> None:
    """A new reader cannot be registered without one, nor a recording lie there unread."""
    assert {name for name, _ in CASES} == set(READERS) == {path.name for path in GOLDEN.glob("*/")}
