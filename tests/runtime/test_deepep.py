"""The adaptor to DeepEP keeps to the package's own Python contract, here by a stand-in of that contract on the CPU."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
from moe import dense, make_matrices, make_placement, make_tokens, run_experts, torch

from placement.errors import OptionError, RankError
from placement.runtime import LayerMap, Lockstep, Mesh, MoELayer
from placement.runtime.transport.deepep import DeepEPBuffer, DeepEPDispatcher

EXPERTS, TOP_K, HIDDEN, SHAPE, MOST = 12, 3, 16, (2, 2), 20
PLACEMENT = make_placement(*SHAPE, 4, EXPERTS, TOP_K, layers=2)


class Event:
    """There is one only where the caller asked for asynchronous streams."""

    def current_stream_wait(self, release_handle: bool = False) -> Any:
        raise AssertionError("waited for an event of an exchange that was not asynchronous")


class Handle:
    """What `combine` needs of a dispatch."""

    def __init__(self, sent: list[Any], came_rows: list[int], tokens: int, counts: list[int]) -> None:
        self.sent, self.came_rows, self.tokens = sent, came_rows, tokens
        self.num_recv_tokens_per_expert_list, self.num_recv_tokens = counts, sum(came_rows)


class ElasticBuffer:
    """The signatures of deep_ep/buffers/elastic.py, with what they ask of arguments; rows travel in lockstep."""

    made = 0

    def __init__(
        self, group, num_bytes=None, num_cpu_bytes=0, num_max_tokens_per_rank=0, hidden=0, num_topk=0,
        use_fp8_dispatch=False, deterministic=False, allow_hybrid_mode=True, allow_multiple_reduction=True,
        prefer_overlap_with_compute=True, sl_idx=3, num_allocated_qps=0, num_cpu_timeout_secs=300,
        num_gpu_timeout_secs=100, explicitly_destroy=False,
    ) -> None:  # fmt: skip
        ElasticBuffer.made += 1
        self.group, self.most, self.hidden, self.top_k = group, num_max_tokens_per_rank, hidden, num_topk

    def dispatch(
        self, x, topk_idx=None, topk_weights=None, cumulative_local_expert_recv_stats=None, num_experts=None,
        num_max_tokens_per_rank=None, expert_alignment=None, num_sms=0, num_qps=0, previous_event=None,
        previous_event_before_epilogue=None, async_with_compute_stream=False, allocate_on_comm_stream=False,
        handle=None, do_handle_copy=True, do_cpu_sync=None, do_expand=False, do_zero_padding=False,
        use_tma_aligned_col_major_sf=False,
    ) -> Any:  # fmt: skip
        assert x.dtype == torch.bfloat16 and x.is_contiguous() and x.shape[1] == self.hidden
        assert len(x) <= num_max_tokens_per_rank == self.most
        assert topk_idx.dtype == torch.int64 and topk_idx.shape == topk_weights.shape == (len(x), self.top_k)
        assert (
            topk_weights.dtype == torch.float32 and handle is None and not do_expand and not async_with_compute_stream
        )
        ranks = len(self.group.ranks)
        assert num_experts % ranks == 0
        per_rank = num_experts // ranks
        rank_TK = torch.where(topk_idx >= 0, topk_idx // per_rank, -1)
        sent = [torch.nonzero((rank_TK == rank).any(dim=1))[:, 0] for rank in range(ranks)]
        order, rows = torch.cat(sent), [len(one) for one in sent]
        came_rows = self.group.all_to_all(torch.tensor(rows)[:, None]).flatten().tolist()
        got = [self.group.all_to_all(one[order], rows, came_rows) for one in (x, topk_idx, topk_weights)]
        first = self.group.rank * per_rank
        mine = (got[1] >= first) & (got[1] < first + per_rank)
        local = torch.where(mine, got[1] - first, -1)
        counts = torch.bincount(local[mine], minlength=per_rank).tolist()
        return got[0], local, got[2].masked_fill(~mine, 0), Handle(sent, came_rows, len(x), counts), Event()

    def combine(
        self, x, handle, topk_weights=None, bias=None, num_sms=0, num_qps=0, previous_event=None,
        previous_event_before_epilogue=None, async_with_compute_stream=False, allocate_on_comm_stream=False,
    ) -> Any:  # fmt: skip
        assert x.dtype == torch.bfloat16 and x.is_contiguous() and len(x) == handle.num_recv_tokens
        assert not async_with_compute_stream
        back = self.group.all_to_all(x, handle.came_rows, [len(one) for one in handle.sent])
        total = torch.zeros(handle.tokens, x.shape[1]).index_add_(0, torch.cat(handle.sent), back.float())
        return total.to(x.dtype), None, Event()


@pytest.fixture
def _deep_ep(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("deep_ep")
    module.ElasticBuffer = ElasticBuffer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "deep_ep", module)
    ElasticBuffer.made = 0


def buffer_of(mesh: Mesh) -> DeepEPBuffer:
    return DeepEPBuffer(hidden=HIDDEN, top_k=TOP_K, max_tokens=MOST, process_group=mesh.world)  # type: ignore[arg-type]


@pytest.mark.usefixtures("_deep_ep")
def test_two_layers_share_one_buffer() -> None:
    """Sums of a dense layer in bf16, steps of both layers in turn, a rank without tokens; one buffer a rank."""
    tokens = make_tokens([9, 0, 14, 5], EXPERTS, TOP_K, dtype=torch.bfloat16)
    matrices = [make_matrices(EXPERTS, seed=seed) for seed in (1, 2)]

    def program(mesh: Mesh) -> list[torch.Tensor]:
        buffer, layers, mine = buffer_of(mesh), [], tokens[mesh.rank]
        for number in range(2):
            layer_map = LayerMap.of(PLACEMENT, number)
            held = [layer_map.logical_P[p] for p in layer_map.slots_of_rank(mesh.rank)]

            def experts(rows: Any, counts: Any, held: list[int] = held, number: int = number) -> Any:
                return run_experts(rows, counts, held, matrices[number])

            layers.append(MoELayer(DeepEPDispatcher(mesh, layer_map, buffer, device="cpu"), experts))
        return [layer(mine.x, mine.ids, mine.weights)[0] for layer in (*layers, *layers)]

    results = Lockstep(*SHAPE).run(program)
    assert ElasticBuffer.made == 4
    for outputs, mine in zip(results, tokens, strict=True):
        for number, y in enumerate(outputs):
            assert y.dtype == torch.bfloat16
            torch.testing.assert_close(y.float(), dense(mine, matrices[number % 2]), rtol=0, atol=3e-2)


@pytest.mark.usefixtures("_deep_ep")
def test_what_it_does_not_take() -> None:
    """Types and sizes before an exchange; another map when the dispatcher is made, on all ranks; bad ids on their rank,
    while the others go on."""
    tokens = make_tokens([4] * 4, EXPERTS, TOP_K, dtype=torch.bfloat16)
    layer_map = LayerMap.of(PLACEMENT, 0)

    def refuse(mesh: Mesh) -> None:
        dispatcher, mine = DeepEPDispatcher(mesh, layer_map, buffer_of(mesh), device="cpu"), tokens[mesh.rank]
        for x in (mine.x.float(), mine.x.repeat(6, 1), mine.x[:, :8]):
            slots = torch.zeros((len(x), TOP_K), dtype=torch.int64)
            with pytest.raises(OptionError, match=r"bfloat16 and at most \[20, 16\] are allowed"):
                dispatcher.send(x, slots, slots.float())

    Lockstep(*SHAPE).run(refuse)

    def other_map(mesh: Mesh) -> None:
        DeepEPDispatcher(mesh, LayerMap.of(PLACEMENT, int(mesh.rank == 2)), buffer_of(mesh), device="cpu")

    for outcome in Lockstep(*SHAPE).try_run(other_map):
        assert isinstance(outcome, RankError) and outcome.ranks == (2,)

    def bad_ids(mesh: Mesh) -> Any:
        dispatcher, mine = DeepEPDispatcher(mesh, layer_map, buffer_of(mesh), device="cpu"), tokens[mesh.rank]
        ids = mine.ids + 100 * (mesh.rank == 1)
        return len(dispatcher.dispatch(mine.x, ids, mine.weights)[0])

    outcomes = Lockstep(*SHAPE).try_run(bad_ids)
    assert isinstance(outcomes[1], RankError) and outcomes[1].ranks == (1,)
    assert all(isinstance(outcomes[rank], int) for rank in (0, 2, 3))


def test_without_the_package() -> None:
    with pytest.raises(OptionError, match="DeepEP is not installed"):
        DeepEPBuffer(hidden=HIDDEN, top_k=TOP_K, max_tokens=MOST)
