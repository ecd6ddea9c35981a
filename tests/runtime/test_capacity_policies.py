"""Policies that are refused, and factors that differ by layer, those of `advise` among them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from capacity_cases import EXPERTS, SHAPE, SLOTS, TOP_K
from moe import make_placement, make_tokens, torch

from placement import Placement, open_trace
from placement.analysis.advise.capacity_factor import FACTORS, IN_ORDER, capacity
from placement.errors import OptionError
from placement.runtime import CapacityPolicy, Dispatcher, LayerMap, Lockstep, Mesh, MoELayer
from placement.runtime.decision import RankCapacity


def test_bad_policies() -> None:
    """Told in one line."""
    for kwargs, words in (
        ({"mode": "some"}, "mode='some' is unknown; choose one of none, drop, expanded"),
        ({"gamma": 0.0}, "gamma=0.0 must be a positive number"),
        ({"gamma": {0: float("nan")}}, "gamma=nan must be a positive number"),
        ({"classes": {1: 0.0}}, "classes has 1: 0.0; priorities from 0 to 65535 and positive factors"),
        ({"classes": {1 << 16: 1.0}}, "classes has 65536: 1.0; priorities"),
        ({"max_extra": -1}, "max_extra=-1 must be 0 or more"),
    ):
        with pytest.raises(OptionError, match=words):
            CapacityPolicy(**kwargs)
    with pytest.raises(OptionError, match=r"gamma has no value for layer 3; it has layers \[0\]"):
        CapacityPolicy(gamma={0: 1.0}).gamma_of(3)


def test_gamma_by_layer() -> None:
    """Each layer keeps to its own."""
    placement: Placement = make_placement(*SHAPE, SLOTS, EXPERTS, TOP_K, layers=2)
    policy = CapacityPolicy(mode="drop", gamma={0: 0.5, 1: 50.0})
    tokens = make_tokens([20] * 4, EXPERTS, TOP_K, hot=True)

    def program(mesh: Mesh) -> list[int]:
        mine = tokens[mesh.rank]
        return [
            int(
                MoELayer(Dispatcher(mesh, LayerMap.of(placement, layer)), lambda rows, counts: rows, policy)(
                    mine.x, mine.ids, mine.weights
                )[1].dropped
            )
            for layer in (0, 1)
        ]

    dropped = np.array(Lockstep(*SHAPE).run(program))
    assert dropped[:, 0].sum() > 0
    assert dropped[:, 1].sum() == 0


def test_factors_of_advise_drop_what_it_says(tmp_path: Path, write_trace: Any) -> None:
    """Of each layer, when the trace is served in its steps: the advised share, less what rounding C up saves; with
    redundant experts, where the same factor gives the same C, no more."""
    shape = {"num_layers": 2, "num_experts": EXPERTS, "top_k": TOP_K, "tokens": 240, "spread": 2.0}
    written, step = write_trace(tmp_path / "t", **shape), 60
    found = capacity(open_trace(written.folder), step_tokens=step, most_dropped=0.05)
    policy = CapacityPolicy(mode="drop", keep="first", gamma=found.gamma(IN_ORDER))
    ids_LSGTK = torch.from_numpy(written.ids_LTK.astype(np.int64)).view(2, -1, 2, step // 2, TOP_K)

    def program(mesh: Mesh, layer_map: LayerMap, ids_SGTK: Any) -> int:
        choose, dropped = Dispatcher(mesh, layer_map).choose, 0
        decide = RankCapacity(policy, layer_map, mesh.world).decide
        for ids in ids_SGTK[:, mesh.rank]:
            dropped += int(decide(ids, choose(ids), torch.ones(ids.shape), None).dropped)
        return dropped

    for index, layer in enumerate(found.layers):
        told = layer.by[IN_ORDER].dropped[FACTORS.index(policy.gamma_of(index))]
        shares = []
        for slots in (5, 6):
            layer_map = LayerMap.of(make_placement(1, 2, slots, EXPERTS, TOP_K, layers=2), index)
            lost = Lockstep(1, 2).run(lambda mesh, m=layer_map, i=index: program(mesh, m, ids_LSGTK[i]))
            shares.append(sum(lost) / ids_LSGTK[index].numel())
        assert 0 < shares[0] <= told + 1e-6 < shares[0] + EXPERTS / (step * TOP_K)
        assert shares[1] <= shares[0]
