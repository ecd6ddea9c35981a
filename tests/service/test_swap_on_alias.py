"""Ranks that serve go over to the map that an alias names, by the example of docs/names.md."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests_service import Server

from placement.client.names import Names, Reference
from placement.client.remote import HttpService
from placement.documents.placement import PlacementFile

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")
from models import layer_ids, make_model
from processes import run_processes
from served_models import error, make_map, prompt, serve

from placement.runtime import attach, torch_mesh

GUIDE = Path(__file__).parents[2] / "docs" / "names.md"
STEPS, EVERY, MOVES_AT = 60, 5, 25


def held(placement: Any) -> list[list[bytes]]:
    """What the ranks of each layer hold; ranks that are alike may trade places."""
    rows = placement.phy2log_LP.reshape(len(placement.phy2log_LP), placement.num_ranks, -1).copy()
    rows.sort(axis=2)
    return [sorted(row.tobytes() for row in ranks) for ranks in rows]


def test_ranks_swap_when_the_alias_moves(server: Server, tmp_path: Path) -> None:
    """Two processes answer right at every step; soon after the alias has moved, both serve by the new version."""
    example = next(
        one for one in re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.S) if "serve_and_swap" in one
    )
    told: dict[str, Any] = {}
    exec(compile(example, str(GUIDE), "exec"), told)  # noqa: S102
    model = make_model("olmoe")
    maps = [make_map(layer_ids(model), seed=seed, num_nodes=1, slots=6) for seed in (0, 1)]
    assert held(maps[0]) != held(maps[1])
    names, where = (
        Names(service=HttpService(url=server.url, token=None, patience_s=10)),
        Reference.parse("toy@production"),
    )
    for placement in maps:
        names.publish("toy", document=PlacementFile.of(placement).document())
    names.promote(where, 1)

    def program(rank: int) -> list[list[list[bytes]]]:
        mine, tokens = copy.deepcopy(model), prompt(rank)
        wanted = serve(mine, tokens, 1)
        attached = attach(mine, maps[0], torch_mesh(1, 2))
        seen = []

        def step() -> None:
            assert error(serve(mine, tokens, 1), wanted) < 1e-5
            seen.append(held(attached.placement))

        def steps() -> Iterator[Any]:
            for number in range(STEPS):
                if number == MOVES_AT and rank == 0:
                    names.promote(where, 2)
                yield step

        told["serve_and_swap"](attached, names, "toy@production", tmp_path / str(rank), steps(), every=EVERY)
        return seen

    for result in run_processes(2, tmp_path, program):
        assert isinstance(result, list), result
        assert result[: MOVES_AT + 1] == [held(maps[0])] * (MOVES_AT + 1)
        assert result[-1] == held(maps[1])
