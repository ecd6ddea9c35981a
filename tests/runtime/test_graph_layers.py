"""Layers in fixed shapes: what a graph captures waits for nothing, and serves other tokens and other maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hot_path import as_on_a_gpu, counting
from moe import make_placement, make_tokens, torch
from torch.fx.experimental.proxy_tensor import make_fx

from placement.runtime import (
    CapacityPolicy,
    Dispatcher,
    GroupedExperts,
    LayerMap,
    Lockstep,
    Mesh,
    StaticLayer,
    choice_on_device,
    reduce,
)

assert as_on_a_gpu  # a fixture
TOKENS = 16
DROP = CapacityPolicy(mode="drop", gamma=1.0, spare_decode=False)
EXPANDED = CapacityPolicy(mode="expanded", gamma=1.0, max_extra=1, spare_decode=False)
EXPERTS, TOP_K, HIDDEN, INNER = 16, 4, 32, 16


def layer_of(mesh: Mesh, slots: int, policy: CapacityPolicy, seed: int = 0) -> StaticLayer:
    layer_map = LayerMap.of(make_placement(2, 2, slots, EXPERTS, TOP_K, seed=seed), 0)
    generator = torch.Generator().manual_seed(0)
    gate_up = torch.randn(EXPERTS, HIDDEN, 2 * INNER, generator=generator) / 4
    down = torch.randn(EXPERTS, INNER, HIDDEN, generator=generator) / 4
    held = [layer_map.logical_P[slot] for slot in layer_map.slots_of_rank(mesh.rank)]
    experts = GroupedExperts(gate_up=gate_up[held], down=down[held])
    dispatcher = Dispatcher(mesh, layer_map, any_map=True)
    return StaticLayer(dispatcher, experts, tokens=TOKENS, top_k=TOP_K, dtype=torch.float32, capacity=policy)


def given_of(seed: int, sizes: list[int]) -> list[tuple[Any, ...]]:
    found = make_tokens(sizes, EXPERTS, TOP_K, hidden=HIDDEN, seed=seed)
    return [(one.x, one.ids, one.weights, one.scores) for one in found]


@pytest.mark.parametrize(
    ("slots", "policy", "most"),
    [(4, CapacityPolicy(), 90), (5, CapacityPolicy(), 90), (5, DROP, 162), (5, EXPANDED, 190)],  # 86 to 184
    ids=["one copy", "replicas", "drop", "expanded"],
)
def test_nothing_waits_for_the_host(
    as_on_a_gpu: None, slots: int, policy: CapacityPolicy, most: int, record_property: Any
) -> None:
    """Of what a GPU would run: no operation synchronises, and exchanges ask the host for nothing."""

    def program(mesh: Mesh) -> Any:
        layer, mine = layer_of(mesh, slots, policy), given_of(0, [TOKENS, 7, 0, 11])[mesh.rank]
        layer(*mine)
        if mesh.rank:
            return layer(*mine)
        with counting() as counted:
            layer(*mine)
        return counted

    counted = Lockstep(2, 2).run(program)[0]
    record_property("operations, waits", (counted.total, counted.launched["host"]))
    assert not counted.waits
    assert counted.launched["host"] == 0
    assert counted.exchanges == 2 + (policy.mode != "none")
    assert counted.total <= most, counted.launched


class Alone:
    """Rank 0 of four, which gets back what it sends: an exchange that can be traced."""

    rank, ranks = 0, (0, 1, 2, 3)

    def all_to_all(self, send: Any, send_rows: Any = None, recv_rows: Any = None, out: Any = None) -> Any:
        assert send_rows is None and recv_rows is None
        return send.clone() if out is None else out.copy_(send)

    def start(self, send: Any, out: Any, send_rows: Any = None, recv_rows: Any = None) -> Any:
        self.all_to_all(send, send_rows, recv_rows, out)
        return lambda: None

    def host(self, tensor: Any) -> list[list[int]]:
        return tensor.tolist()

    def no_graph(self, device: Any) -> None: ...


@pytest.mark.parametrize(
    ("slots", "policy"),
    [(4, CapacityPolicy()), (5, CapacityPolicy()), (5, DROP), (5, EXPANDED)],
    ids=["one copy", "replicas", "drop", "expanded"],
)
def test_what_was_traced_serves_other_tokens(
    as_on_a_gpu: None, monkeypatch: pytest.MonkeyPatch, slots: int, policy: CapacityPolicy
) -> None:
    """Traced on tensors without data, in which whatever asks for data is an error; then run on data, as a graph is: on
    other tokens, and by another map whose tables and weights were written where the trace reads them."""
    for module in (reduce, choice_on_device):
        monkeypatch.setattr(module, "has_triton", lambda: False)
    monkeypatch.setattr(choice_on_device.DeviceChooser, "by_kernel", None)
    groups: Any = {"world": Alone(), "across": Alone(), "within": Alone()}
    groups["across"].ranks = groups["within"].ranks = (0, 1)

    def made(seed: int = 0) -> StaticLayer:
        return layer_of(Mesh(**groups), slots, policy, seed)

    layer, replay = made(), made()
    first, *others = (given_of(seed, [TOKENS])[0] for seed in range(3))
    layer(*first), replay(*first)  # as before a capture: tables come to the device
    traced = make_fx(lambda *given: replay(*given)[0], tracing_mode="fake", _allow_non_fake_inputs=True)(*first)
    for seed in (0, 1, 2):
        if seed:
            layer = made(seed)
            replay.use(made(seed).dispatcher)
            for name in ("gate_up", "down"):
                getattr(replay._experts, name).copy_(getattr(layer._experts, name))
        for given in (first, *others):
            want, _ = layer(*given)
            torch.testing.assert_close(traced(*given), want, rtol=0, atol=1e-5)
            assert float(want.std()) > 0.01


def test_a_trace_sees_data(as_on_a_gpu: None) -> None:
    """Protects the test above: a shape that depends on data cannot be traced."""
    call: Callable[[Any], Any] = lambda x: x[: int(x.sum())]  # noqa: E731
    with pytest.raises(Exception, match=r"_local_scalar_dense|data-dependent"):
        make_fx(call, tracing_mode="fake")(torch.ones(3))
