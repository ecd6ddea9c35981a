"""Traffic is parted as documented: small parts are merged or left out, and each part has its own held-out requests."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from placement import Trace, open_trace
from placement.errors import OptionError
from placement.traces.parts import FEWEST_REQUESTS, FEWEST_TOKENS, parts_of
from placement.traces.split import below_share, draw, request_keys, split_requests

MakeTrace = Callable[..., Trace]


@pytest.fixture
def trace_of(tmp_path: Path, write_trace: Any) -> MakeTrace:
    """A trace whose requests have these domains; None has none. Each request has `each` tokens."""

    def make(domains: Sequence[str | None], each: int | Sequence[int] = 100, ids: Sequence[str] | None = None) -> Trace:
        request_T = np.repeat(np.arange(len(domains)), each)
        folder = tmp_path / f"t{len(list(tmp_path.iterdir()))}"
        write_trace(folder, tokens=len(request_T), request_T=request_T, requests=len(domains))
        manifest = json.loads((folder / "trace.json").read_text())
        names = ids or [f"r{q}" for q in range(len(domains))]
        manifest["requests"] = [
            {"id": name} | ({} if domain is None else {"domain": domain})
            for name, domain in zip(names, domains, strict=True)
        ]
        (folder / "trace.json").write_text(json.dumps(manifest))
        return open_trace(folder)

    return make


def test_domains_are_parts_in_the_order_of_their_names(trace_of: MakeTrace) -> None:
    """Numbers in names count as numbers; requests without a domain are a part of their own."""
    trace = trace_of(["d10", "d9", None, "d9"] * 4)
    parts = parts_of(trace, "domain")
    assert parts.names == ("d9", "d10", "no domain")
    of = [parts.names[w] for w in parts.part_Q]
    assert of == ["d10", "d9", "no domain", "d9"] * 4
    assert parts.left_out == ()


def test_small_domains_are_merged_or_left_out(trace_of: MakeTrace, caplog: pytest.LogCaptureFixture) -> None:
    """Several small ones make `other`; what is too small even so is left out, said and logged."""
    big = ["a"] * FEWEST_REQUESTS + ["b"] * FEWEST_REQUESTS
    parts = parts_of(trace_of([*big, "c", "c", "d", "d"]), "domain")
    assert parts.names == ("a", "b", "other")
    assert parts.part_Q.tolist() == [0] * FEWEST_REQUESTS + [1] * FEWEST_REQUESTS + [2] * 4
    with caplog.at_level(logging.INFO, "placement"):
        parts = parts_of(trace_of([*big, "c", "d"]), "domain")
    assert parts.names == ("a", "b")
    assert parts.left_out == ("c", "d")
    assert parts.part_Q.tolist()[-2:] == [-1, -1]
    assert "c, d left out" in caplog.text


def test_a_part_needs_tokens_as_well_as_requests(trace_of: MakeTrace) -> None:
    """Many requests of few tokens are as little to judge by as few requests."""
    each = [100] * 8 + [FEWEST_TOKENS // 4 - 1] * 4
    assert parts_of(trace_of(["a"] * 4 + ["b"] * 4 + ["c"] * 4, each), "domain").left_out == ("c",)
    each[-1] += 4
    assert parts_of(trace_of(["a"] * 4 + ["b"] * 4 + ["c"] * 4, each), "domain").left_out == ()


def test_windows_are_contiguous_and_have_about_as_many_tokens(trace_of: MakeTrace) -> None:
    """Requests stay whole, in their order; a window is off by no more than one request on each side."""
    each = np.random.default_rng(0).integers(50, 250, 60)
    parts = parts_of(trace_of([None] * 60, each.tolist()), "windows:5")
    assert parts.names == tuple(f"window {w}" for w in range(1, 6))
    assert (np.diff(parts.part_Q) >= 0).all()
    tokens_W = np.bincount(parts.part_Q, weights=each)
    assert np.abs(tokens_W - each.sum() / 5).max() <= each.max()


def test_traces_are_parted_by_folder(tmp_path: Path, write_trace: Any) -> None:
    """Every folder is a part, also where their requests have the same ids; the names are the folders'."""
    folders = [write_trace(tmp_path / name, tokens=400, requests=5).folder for name in ("mon", "tue")]
    parts = parts_of(open_trace(folders), "traces")
    assert parts.names == ("mon", "tue")
    assert parts.part_Q.tolist() == [0] * 5 + [1] * 5


@pytest.mark.parametrize(
    ("by", "told"),
    [
        ("domain", "no request of the trace has a domain"),
        ("category", "no request of the trace has a category"),
        ("traces", "two or more parts"),
        ("windows:1", "unknown"),
        ("windows:", "unknown"),
        ("windows:999", "none was found"),
        ("phase", "domain, category, traces, windows:N"),
        ("", "unknown"),
    ],
)
def test_what_cannot_be_parted_is_refused(trace_of: MakeTrace, by: str, told: str) -> None:
    """One line that says what is allowed."""
    with pytest.raises(OptionError, match=told):
        parts_of(trace_of([None] * 12), by)


def test_one_domain_is_refused(trace_of: MakeTrace) -> None:
    """Of one part, the worst is the mean: it is named in the error."""
    with pytest.raises(OptionError, match="only 'a' was found"):
        parts_of(trace_of(["a"] * 12), "domain")


@pytest.mark.parametrize("seed", range(5))
def test_every_part_has_its_share_held_out(trace_of: MakeTrace, seed: int) -> None:
    """Within each part; entries with the same id stay together even across parts; nothing is lost or doubled."""
    domains = ["a"] * 10 + ["b"] * 20 + ["c"]
    ids = [f"r{q}" for q in range(31)]
    ids[12] = "r3"  # of a and b
    trace = trace_of(domains, ids=ids)
    parts = parts_of(trace, "domain")
    train, held_out = split_requests(trace, 0.3, seed, parts)
    assert train.selected_Q is not None and held_out.selected_Q is not None
    assert (train.selected_Q ^ held_out.selected_Q).all()
    assert held_out.selected_Q[:10].sum() == 3
    assert np.delete(held_out.selected_Q[10:30], 2).sum() == 6, "r3 belongs to part a"
    assert not held_out.selected_Q[30], "what is in no part is fitted"
    assert held_out.selected_Q[3] == held_out.selected_Q[12]
    again = split_requests(trace, 0.3, seed, parts)[1]
    np.testing.assert_array_equal(again.selected_Q, held_out.selected_Q)


def test_the_same_requests_are_held_out_in_any_order_and_at_any_share(trace_of: MakeTrace) -> None:
    """A hash decides: the order of the requests does not, and a larger share only adds requests."""
    ids = [f"request {q}" for q in range(40)]
    drawn = {share: {ids[q] for q in np.flatnonzero(draw(ids, share, 3))} for share in (0.1, 0.25, 0.5)}
    assert [len(names) for names in drawn.values()] == [4, 10, 20]
    assert drawn[0.1] < drawn[0.25] < drawn[0.5]
    back = ids[::-1]
    assert {back[q] for q in np.flatnonzero(draw(back, 0.25, 3))} == drawn[0.25]
    assert {ids[q] for q in np.flatnonzero(draw(ids, 0.25, 4))} != drawn[0.25]
    near = {ids[q] for q in np.flatnonzero(below_share(request_keys(ids, 3), 0.25))}
    assert near <= drawn[0.5] and drawn[0.1] <= near, "counts, made before all requests are known, draw nearly the same"
