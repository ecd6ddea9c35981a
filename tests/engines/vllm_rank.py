"""One of several processes in which vLLM's own balancer starts: `vllm_rank.py RANK RANKS WHEEL MEETING OUTPUT`.

Weights are tensors on the CPU, as vLLM has loaded them (slot p holds expert p mod E, each weight full of its expert's
number), and the groups are gloo's. vLLM's own loader finds the plugin, and one step is made.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from partial_package import PartialPackage

LAYERS, EXPERTS, SLOTS = 2, 6, 8
EPLB = "vllm.distributed.eplb"
PARTS = ("eplb_state", "eplb_communicator", "eplb_utils", "rebalance_execute", "migration_scheduler")
POLICY = (f"{EPLB}.policy", f"{EPLB}.policy.abstract", f"{EPLB}.policy.default")


class NoEvent:
    """Stands for torch.Event, which needs an accelerator."""

    def __init__(self, **_: Any) -> None: ...

    def record(self, *_: Any) -> None: ...

    def synchronize(self) -> None: ...

    def elapsed_time(self, _: Any) -> float:
        return 0.0


class Model:
    """What the balancer asks of a model (`MixtureOfExperts`)."""

    num_moe_layers, num_logical_experts, num_routed_experts = LAYERS, EXPERTS, EXPERTS
    num_physical_experts, num_redundant_experts, num_expert_groups = SLOTS, SLOTS - EXPERTS, 1
    moe_layers: tuple[Any, ...] = ()

    def __init__(self, rank: int, ranks: int) -> None:
        self.num_local_physical_experts = SLOTS // ranks
        loaded = torch.arange(SLOTS).reshape(ranks, -1)[rank] % EXPERTS
        self.expert_weights = [
            [(100 * layer + loaded).float().repeat(width, 1).T.contiguous() for width in (3, 5)]
            for layer in range(LAYERS)
        ]

    def set_eplb_state(self, *_: Any) -> None: ...


def main(rank: int, ranks: int, wheel: str, meeting: str, output: str) -> None:
    sys.meta_path.insert(
        0, PartialPackage(Path(wheel), "vllm", ("vllm.plugins", EPLB, *(f"{EPLB}.{part}" for part in PARTS), *POLICY))
    )
    torch.Event = NoEvent
    dist.init_process_group("gloo", f"file://{meeting}", timedelta(seconds=60), ranks, rank)
    group = SimpleNamespace(device_group=dist.group.WORLD, cpu_group=dist.group.WORLD, world_size=ranks)

    from typing import Literal

    import vllm.config.parallel as config
    import vllm.distributed.parallel_state as parallel
    import vllm.distributed.stateless_coordinator as stateless
    import vllm.distributed.utils as utils
    import vllm.envs as envs
    import vllm.platforms as platforms
    import vllm.plugins as plugins
    import vllm.utils.gpu_sync_debug as sync
    import vllm.utils.torch_utils as torch_utils

    config.EPLBPolicyOption = Literal["default"]
    parallel.get_ep_group = parallel.get_eplb_group = lambda: group
    parallel.get_node_count = lambda: 2
    stateless.StatelessGroupCoordinator = utils.StatelessProcessGroup = NoEvent
    platforms.current_platform.is_rocm = lambda: False
    sync.gpu_sync_allowed = nullcontext
    torch_utils.PIN_MEMORY = False

    envs.VLLM_PLUGINS = None
    plugins.load_general_plugins()

    from vllm.distributed.eplb.eplb_state import EplbState

    eplb = SimpleNamespace(
        use_async=False,
        window_size=1,
        step_interval=1_000_000_000,
        policy="default",
        communicator="torch_nccl",
        log_balancedness_interval=1,
    )
    settings = SimpleNamespace(eplb_config=eplb, enable_elastic_ep=False, num_ubatches=0)
    state = EplbState(settings, torch.device("cpu"))
    model = Model(rank, ranks)
    state.add_model(model, SimpleNamespace(model="m", compute_hash=lambda: "m"))
    mapped = state.model_states["m"]
    before = mapped.physical_to_logical_map.numpy().copy()
    state.step(is_profile=True)
    profiled = mapped.physical_to_logical_map.numpy().copy()
    state.step(is_dummy=True)
    np.savez(
        output,
        before=before,
        profiled=profiled,
        after=mapped.physical_to_logical_map.numpy(),
        logical_to_physical=mapped.logical_to_physical_map.numpy()[:, :, :SLOTS],
        copies=mapped.logical_replica_count.numpy(),
        **{f"weight{index}": np.stack([layer[index].numpy() for layer in model.expert_weights]) for index in (0, 1)},
    )
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:6])
