"""Every registered replica choice keeps the contract, and is worth what an independent definition says."""

from __future__ import annotations

import pytest

from placement.cost.choices import REPLICA_CHOICES
from placement.cost.choices.base import ReplicaChoice
from placement.testing.replica_choices import ReplicaChoiceContract


class TestChoices(ReplicaChoiceContract):
    @pytest.fixture(params=REPLICA_CHOICES)
    def choice(self, request: pytest.FixtureRequest) -> ReplicaChoice:
        return REPLICA_CHOICES.make(request.param)

    def test_its_name_is_that_of_the_registry(self, choice: ReplicaChoice) -> None:
        """Reports and files name the choice by its own name."""
        assert type(REPLICA_CHOICES.make(choice.name)) is type(choice)
