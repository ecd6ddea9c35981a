"""Whatever a body holds, a request gets a target, and what fails in the proxy passes it on as it came."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from placement_api.proxy.asked import ID_KEYS, NEW_TOKENS_KEYS, PROMPT_KEYS, SESSION_KEYS, read_asked
from placement_api.proxy.decide import Decider
from placement_api.proxy.doors import DOORS
from placement_api.proxy.homes import Homes
from placement_api.proxy.metrics import Metrics
from placement_api.proxy.tables import Files, targets_of
from placement_api.proxy.tokens import Tokens
from route_front import Sample

KEYS = sorted({*PROMPT_KEYS, *ID_KEYS, *NEW_TOKENS_KEYS, *SESSION_KEYS, "n", "role", "content", "sampling_params"})
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["user", "alpha"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=10,
)
HEADERS = st.dictionaries(
    st.sampled_from([b"x-session-id", b"x-placement-labels", b"content-encoding", b"x-data-parallel-rank"]),
    st.binary(max_size=9),
)


@pytest.fixture
def decider(sample: Sample) -> Decider:
    return Decider(Homes(files(sample).load()), Tokens(sample.tokenizer), DOORS["sglang"](), Metrics())


def files(sample: Sample, **more: Any) -> Files:
    return Files(map_file=sample.map_file, grouping_file=sample.grouping, **({"backends": 1} | more))


def unchanged(decider: Decider, why: str) -> float:
    return decider.metrics.registry.get_sample_value("placement_route_unchanged_total", {"why": why}) or 0.0


@pytest.fixture(scope="module")
def shared(sample: Sample) -> Decider:
    """One for all examples of a property."""
    return Decider(Homes(files(sample).load()), Tokens(sample.tokenizer), DOORS["sglang"](), Metrics())


@given(body=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5) | VALUES, headers=HEADERS)
def test_any_body_gets_a_target_and_nothing_fails(shared: Decider, body: Any, headers: dict[bytes, bytes]) -> None:
    content = json.dumps(body).encode()
    choice, read = asyncio.run(shared.choose(content, headers))
    at = shared.homes.target(choice, frozenset())
    assert at is not None and choice.tokens >= 0
    sent, added = shared.hand_over(content, read, headers, shared.homes.tables.targets[at].rank)
    if read is None or b"x-data-parallel-rank" in headers:
        assert (sent, added) == (content, ())
    elif sent != content:
        assert json.loads(sent)["routed_dp_rank"] == shared.homes.tables.targets[at].rank
    assert unchanged(shared, "failed") == 0


@given(body=st.binary(max_size=30))
def test_any_bytes_get_a_target(shared: Decider, body: bytes) -> None:
    choice, _ = asyncio.run(shared.choose(body, {}))
    assert shared.homes.target(choice, frozenset()) is not None
    assert unchanged(shared, "failed") == 0


@pytest.mark.parametrize("part", ["choose", "tokens", "door"])
def test_what_fails_here_passes_the_request_on(
    decider: Decider, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, part: str
) -> None:
    """And is counted; of the fault its kind alone is logged."""

    def fail(*_: Any, **__: Any) -> None:
        raise KeyError("secretword")

    owner, name = {
        "choose": (Homes, "choose"),
        "tokens": (Tokens, "ids"),
        "door": (DOORS["sglang"], "hand_over"),
    }[part]
    monkeypatch.setattr(owner, name, fail)
    body = b'{"prompt": "beta"}'
    choice, read = asyncio.run(decider.choose(body, {}))
    assert decider.homes.target(choice, frozenset()) is not None
    assert decider.hand_over(body, read, {}, 3) == (body, ())
    assert unchanged(decider, "failed") == 1
    assert "KeyError" in caplog.text and "secretword" not in caplog.text


def test_the_least_loaded_rank_of_the_home_is_taken(decider: Decider) -> None:
    choice, _ = asyncio.run(decider.choose(b'{"prompt": "gamma"}', {}))
    homes = decider.homes
    with homes.running(4, 10):
        assert homes.load_N().tolist() == [0, 0, 10, 0]
        assert homes.target(choice, frozenset()) == 5
        with homes.running(5, 11):
            assert homes.target(choice, frozenset()) == 4
    assert homes.load_N().tolist() == [0, 0, 0, 0]


def test_prompts_that_the_trace_left_out_are_no_load_that_drives_requests_away(sample: Sample) -> None:
    """The trace has requests of 100 tokens without prompts. Those that come have ten times as many with theirs: a node
    still gets a second one while it has one, as it does where requests are as the trace has them, and no fifth."""
    homes = Homes(files(sample).load())
    assert homes.tables.router.prices is not None
    prices = replace(homes.tables.router.prices, ahead_tokens=100.0)
    homes.tables = replace(homes.tables, router=replace(homes.tables.router, prices=prices))
    ids = Tokens(sample.tokenizer).ids("beta " * 450)
    asked = read_asked({"prompt": "beta"}, {})
    for _ in range(100):
        choice = homes.choose(asked, ids)
    home = homes.target(choice, frozenset())
    assert home is not None and homes.tables.targets[home].node == 1
    with homes.running(home, choice.tokens):
        assert choice.tokens > 500
        assert homes.choose(asked, ids).worse_N[1] == -1.0
        with homes.running(home, 3 * choice.tokens):
            assert homes.choose(asked, ids).worse_N[1] != -1.0


def test_prices_follow_the_requests_of_the_proxy_until_the_tables_are_others(sample: Sample) -> None:
    homes = Homes(files(sample).load())
    asked, ids = read_asked({"prompt": "beta"}, {}), Tokens(sample.tokenizer).ids("beta")
    assert homes.recent is not None
    trained = homes.recent.requests
    for _ in range(3):
        homes.choose(asked, ids)
    assert homes.recent.requests == trained + 3
    assert homes.recent.near_NS[:, trained : trained + 3].argmax(axis=0).tolist() == [1, 1, 1]
    homes.swap(files(sample).load())
    assert homes.recent.requests == trained


def test_targets_follow_the_hosts_of_ranks() -> None:
    """An engine that numbers its ranks across the nodes: rank 1 is on the second node."""
    from placement.core.model import Model
    from placement.core.placement import Placement

    model = Model(name="m", layer_ids=(0,), num_experts=4, top_k=1)
    rows = [[0, 1, 2, 3]]
    placed = Placement(
        model=model, num_nodes=2, gpus_per_node=2, slots_per_gpu=1, phy2log_LP=rows, rank_hosts=(0, 1, 0, 1)
    )
    assert [one.node for one in targets_of(placed, 1)] == [0, 1, 0, 1]
    assert [(one.node, one.backend, one.rank) for one in targets_of(placed, 2)] == [(0, 0, None), (1, 1, None)]
    assert [(one.node, one.backend) for one in targets_of(placed, 4)] == [(0, 0), (1, 1), (0, 2), (1, 3)]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"max_tokens": 5, "n": 3}, (5, 3)),
        ({"max_completion_tokens": 4, "max_tokens": 5}, (4, 1)),
        ({"sampling_params": {"max_new_tokens": 7, "n": 2}}, (7, 2)),
        ({"max_tokens": True, "n": -1}, (None, 1)),
        ({"max_output_tokens": 0}, (None, 1)),
    ],
)
def test_the_length_of_answers_is_read(body: dict[str, Any], expected: tuple[int | None, int]) -> None:
    asked = read_asked(body, {})
    assert (asked.new_tokens, asked.answers) == expected


def test_labels_are_read() -> None:
    headers = {b"x-placement-labels": b" domain=code , tenant = a=b,odd,=x"}
    assert read_asked({}, headers).labels == {"domain": "code", "tenant": "a=b"}
