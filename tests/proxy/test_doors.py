"""How a rank is handed over: what the client wrote stays, byte for byte where that can be."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from placement_api.proxy.doors import DOORS, with_keys

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
SPACE = st.text(" \t\r\n", max_size=3).map(str.encode)
BODY_DOORS = sorted(set(DOORS) - {"vllm"})


@given(body=st.dictionaries(st.text(), JSON, max_size=4), before=SPACE, within=SPACE)
def test_a_key_is_put_in_front_and_nothing_else_changes(body: dict[str, Any], before: bytes, within: bytes) -> None:
    content = before + b"{" + within + json.dumps(body)[1:].encode()
    changed = with_keys(content, {"routed_dp_rank": 3})
    pairs = json.loads(changed, object_pairs_hook=list)
    assert pairs[0] == ("routed_dp_rank", 3)
    assert json.loads(changed) == {"routed_dp_rank": 3} | body
    assert changed.endswith(content.lstrip(b" \t\r\n")[1:])


@pytest.mark.parametrize("engine", BODY_DOORS)
@given(body=st.dictionaries(st.text(), JSON, max_size=4))
def test_the_rest_of_the_body_stays(engine: str, body: dict[str, Any]) -> None:
    told = DOORS[engine]().hand_over(json.dumps(body).encode(), body, {}, 5)
    assert told is not None
    changed = json.loads(told[0])
    assert {key: value for key, value in changed.items() if key in body and key != "nvext"} == {
        key: value for key, value in body.items() if key != "nvext"
    }


@pytest.mark.parametrize(
    ("engine", "body", "headers"),
    [
        ("vllm", {}, {b"x-data-parallel-rank": b"1"}),
        ("sglang", {}, {b"x-data-parallel-rank": b"1"}),
        ("sglang", {"routed_dp_rank": 0}, {}),
        ("sglang", {"data_parallel_rank": 0}, {}),
        ("sglang-disagg", {"disagg_prefill_dp_rank": 1}, {}),
        ("dynamo", {"nvext": {"dp_rank": 0}}, {}),
        ("dynamo", {"nvext": {"backend_instance_id": 7}}, {}),
        ("dynamo", {"nvext": {"decode_worker_id": 7}}, {}),
    ],
)
def test_a_client_that_chose_keeps_its_choice(engine: str, body: dict[str, Any], headers: dict[bytes, bytes]) -> None:
    assert DOORS[engine]().hand_over(json.dumps(body).encode(), body, headers, 3) is None


@pytest.mark.parametrize(
    ("engine", "body", "expected"),
    [
        ("sglang", {"routed_dp_rank": None, "text": "ä"}, {"routed_dp_rank": 3, "text": "ä"}),
        ("dynamo", {"nvext": None}, {"nvext": {"dp_rank": 3}}),
        ("dynamo", {"nvext": {"dp_rank": None, "a": [1]}}, {"nvext": {"dp_rank": 3, "a": [1]}}),
    ],
)
def test_a_key_that_is_there_is_not_there_twice(engine: str, body: dict[str, Any], expected: dict[str, Any]) -> None:
    told = DOORS[engine]().hand_over(json.dumps(body).encode(), body, {}, 3)
    assert told is not None
    pairs = json.loads(told[0], object_pairs_hook=list)
    assert len(pairs) == len({key for key, _ in pairs})
    assert json.loads(told[0]) == expected


@pytest.mark.parametrize(
    ("engine", "content"),
    [
        ("sglang", b"\xef\xbb\xbf{}"),
        ("sglang", '{"text": "a"}'.encode("utf-16")),
        ("dynamo", b'{"nvext": 7}'),
        ("dynamo", b'{"nvext": {"a": NaN}}'),
        ("dynamo", b'{"nvext": {"a": "\\ud800"}}'),
        ("dynamo", b'{"nvext": {"a": 1e999}}'),
    ],
)
def test_what_cannot_be_added_to_is_left_alone(engine: str, content: bytes) -> None:
    with pytest.raises(ValueError):  # of several kinds; the proxy passes such a body on
        DOORS[engine]().hand_over(
            content, json.loads(content.decode("utf-8-sig") if content[:1] == b"\xef" else content), {}, 3
        )


def test_dynamo_is_told_the_worker_of_the_rank() -> None:
    told = DOORS["dynamo"]((11, 12)).hand_over(b"{}", {}, {}, 3)
    assert told is not None
    assert json.loads(told[0]) == {"nvext": {"backend_instance_id": 12, "dp_rank": 3}}
