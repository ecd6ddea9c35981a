"""What the page of advice draws."""

from __future__ import annotations

from placement.analysis.advise.decay import Decay
from placement.report.advice.advice_charts import kept_cells


def test_losses_are_told_apart_from_what_is_kept() -> None:
    """A map that is worse than linear where it is measured has a colour of its own, the deeper the more it loses."""
    found = Decay(
        by="domain",
        names=("code", "law"),
        training_tokens=(10, 10),
        linear=(100.0, 100.0),
        cost=((80.0, 105.0), (130.0, 80.0)),
        all_cost=(90.0, 100.0),
        left_out=(),
    )
    rows = {name: cells for name, cells in kept_cells(found)}
    assert [cell[:3] for cell in rows["code"]] == [("100%", "", "0.6"), ("−25%", "loses", "0.15")]
    assert [cell[:3] for cell in rows["law"]] == [("−150%", "loses", "0.6"), ("100%", "", "0.6")]
    assert [cell[:3] for cell in rows["all of them"]] == [("50%", "", "0.3"), ("0%", "", "0")]
    assert rows["code"][1][3].startswith("solved for code, measured on law")
