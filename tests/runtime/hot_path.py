"""Device operations and waits of what a GPU would run, counted on a CPU.

Tensors say that they are on a GPU, so the runtime takes that path. An operation is a call of torch that writes memory:
views and uninitialised memory are none; a Triton kernel is one; an exchange is apart. What makes the host wait for a
GPU, or copies from pageable memory, is noted by name, except the one copy of a hop in `Group.host`.
"""

from __future__ import annotations

import sys
import types
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from moe import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from placement.runtime import choice_on_device, kernels, reduce
from placement.runtime.choice_on_device import DeviceChooser
from placement.runtime.transport.lockstep import LockstepGroup

WAITS = {"tolist", "item", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "nonzero", "masked_select"}
WAITS |= {"unique", "bincount", "equal", "tensor", "as_tensor", "from_numpy", "argwhere", "is_nonzero", "pin_memory"}
NO_LAUNCH = {"empty", "empty_like", "new_empty", "empty_strided", "_unsafe_view", "lift_fresh", "_local_scalar_dense"}


class Counted:
    """Names of operations with how often each was launched, exchanges, and what waits."""

    def __init__(self) -> None:
        self.launched: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.exchanges = 0

    @property
    def total(self) -> int:
        return sum(self.launched.values())


class _Launches(TorchDispatchMode):
    def __init__(self, counted: Counted) -> None:
        super().__init__()
        self._counted = counted

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        view = any(one.alias_info is not None and not one.alias_info.is_write for one in func._schema.returns)
        if not view and name not in NO_LAUNCH:
            self._counted.launched[name] += 1
        if name == "_local_scalar_dense":
            self._counted.waits[name] += 1
        if name in ("index", "index_put", "index_put_") and any(
            one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1]
        ):
            self._counted.waits[f"{name} by a mask"] += 1
        return func(*args, **(kwargs or {}))


class _Waits(TorchFunctionMode):
    def __init__(self, counted: Counted) -> None:
        super().__init__()
        self._counted = counted

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in WAITS:
            self._counted.waits[name] += 1
        if name == "repeat_interleave" and (kwargs or {}).get("output_size") is None:
            self._counted.waits[name] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def apart() -> Iterator[None]:
    """Nothing inside is counted."""
    with _disable_current_modes(), torch._C.DisableTorchFunction():
        yield


@contextmanager
def parked() -> Iterator[Counted | None]:
    """Other ranks may have their turn inside: nothing is counted."""
    counted, _now[0] = _now[0], None
    with apart():
        yield counted
    _now[0] = counted


@contextmanager
def counting() -> Iterator[Counted]:
    """Counts what this thread does."""
    counted = _now[0] = Counted()
    with _Waits(counted), _Launches(counted):
        yield counted
    _now[0] = None


_now: list[Counted | None] = [None]


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors say `is_cuda`; Triton's kernels are stood in for by torch, one launch each."""

    def one(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def launch(*args: Any) -> Any:
            if _now[0] is not None:
                _now[0].launched[name] += 1
            with apart():
                return run(*args)

        return launch

    def exchange(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def swap(self: Any, *args: Any, **kwargs: Any) -> Any:
            with parked() as counted:
                got = run(self, *args, **kwargs)
            if counted is not None and self._me == 0:
                counted.exchanges += name == "all_to_all"
                counted.launched[name] += name == "host"  # the copy to pinned memory
            return got

        return swap

    def gather(source: Any, index: Any, out: Any) -> Any:
        assert not len(index) or int(index.min()) >= 0  # a kernel reads before the rows
        return out.copy_(source[index])

    def add(values: Any, order: Any, start: Any, weight: Any, out: Any) -> Any:
        for row in range(len(out)):
            these = order[start[row] : start[row + 1]]
            part = values[these].float()
            out[row] = (part if weight is None else part * weight[these, None]).sum(dim=0)
        return out

    stand_in = types.ModuleType("placement.runtime.kernels.gpu")
    stand_in.gather_rows, stand_in.sum_rows = one("gather kernel", gather), one("sum kernel", add)
    monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    monkeypatch.setattr(kernels, "gpu", stand_in, raising=False)
    for module in (reduce, choice_on_device):
        monkeypatch.setattr(module, "has_triton", lambda: True)
    monkeypatch.setattr(DeviceChooser, "by_kernel", one("choice kernel", DeviceChooser.in_torch))
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda _: True))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    for name in ("all_to_all", "host"):
        monkeypatch.setattr(LockstepGroup, name, exchange(name, getattr(LockstepGroup, name)))
