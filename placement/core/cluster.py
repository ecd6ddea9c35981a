"""The cluster that the experts are placed on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from placement.core.shape import Shape
from placement.core.topology import EVEN, Topology
from placement.errors import ClusterError, InfeasibleError

MOST_NODES = 64  # sets of nodes are 64-bit words in the kernels
RUN_TIME_BALANCES = ("none", "node")
SPEEDS = ("inter_gbps", "intra_gbps", "gpu_tflops", "memory_gbps")
TIMES = ("copy_us", "latency_us")
SIZES = ("expert_bytes", "weight_bits", "dispatch_bytes", "combine_bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster(Shape):
    """Nodes, GPUs and slots, and what the hardware does.

    Attributes:
        inter_gbps: Network bandwidth of one GPU to other nodes, Gbit/s.
        intra_gbps: Bandwidth of one GPU to the others of its node, Gbit/s.
        gpu_tflops: Dense throughput that an expert's matrix products reach on a GPU of speed 1, TFLOP/s.
        memory_gbps: Bandwidth at which a GPU of speed 1 reads the weights of experts, Gbit/s.
        copy_us: What a GPU takes to pack one copy of a token that leaves its node, and to unpack it, microseconds.
        latency_us: What a layer takes with hardly any token, microseconds: launches, and the latency of two exchanges.
        gpu_speeds: Relative speed of every rank, as the engine numbers ranks; empty means all alike.
        topology: How the links between nodes differ: racks, unequal nodes, or any matrix of costs between ranks, as the
            engine numbers ranks.
        expert_bytes: Weights of one expert (default: DeepSeek-V3 in bf16).
        weight_bits: Bits of a weight of an expert: with `expert_bytes` they say how many operations a token takes.
        dispatch_bytes: One copy of a token on its way to its experts (default: DeepEP fp8 with scales, hidden size
            7168).
        combine_bytes: One copy of a token on its way back (default: DeepEP bf16, hidden size 7168).
        run_time_balance: Who shares load at run time, whichever slots hold the experts: `none`, or the GPUs of a
            `node`, each as much as its speed allows (MoonEP, UltraEP): only the load of nodes is then left to place.
    """

    inter_gbps: float = 400.0
    intra_gbps: float = 3600.0
    gpu_tflops: float = 400.0
    memory_gbps: float = 26_800.0
    copy_us: float = 0.0
    latency_us: float = 40.0
    gpu_speeds: tuple[float, ...] = ()
    topology: Topology = EVEN
    expert_bytes: int = 88_080_384
    weight_bits: float = 16.0
    dispatch_bytes: int = 7472
    combine_bytes: int = 14384
    run_time_balance: str = "none"

    def __post_init__(self) -> None:
        for name, value in zip(("num_nodes", "gpus_per_node", "slots_per_gpu"), self.shape, strict=True):
            if value < 1:
                raise ClusterError(f"{name}={value} must be at least 1")
        if self.num_nodes > MOST_NODES:
            raise ClusterError(
                f"num_nodes={self.num_nodes} is out of range: 1 to {MOST_NODES} nodes may form an EP group"
            )
        self.settle_hosts()
        for name in SPEEDS + SIZES:
            number = getattr(self, name)
            if not 0 < number < 1e18:
                raise ClusterError(f"{name}={str(number)[:24]} must be a positive number below 1e18")
        for name in TIMES:
            number = getattr(self, name)
            if not 0 <= number < 1e18:
                raise ClusterError(f"{name}={str(number)[:24]} must be 0 or more, and below 1e18")
        if self.gpu_speeds and len(self.gpu_speeds) != self.num_ranks:
            raise ClusterError(
                f"gpu_speeds has {len(self.gpu_speeds)} values for {self.num_ranks} ranks; give one a rank, or none"
            )
        for speed in self.gpu_speeds:
            if not 0 < speed < 1e18:
                raise ClusterError(f"gpu_speeds has {str(speed)[:24]}; positive numbers below 1e18 are allowed")
        self.topology.check(self.num_nodes, self.gpus_per_node)
        if self.run_time_balance not in RUN_TIME_BALANCES:
            raise ClusterError(
                f"run_time_balance={str(self.run_time_balance)[:24]!r} is unknown; choose one of "
                f"{', '.join(RUN_TIME_BALANCES)}"
            )

    def speed_G(self) -> npt.NDArray[np.float64]:
        """Relative speed of each rank, float64 [G], mean 1."""
        if not self.gpu_speeds:
            return np.ones(self.num_ranks)
        speed = np.asarray(self.gpu_speeds, dtype=np.float64)[self.engine_rank_G()]
        return np.asarray(speed / speed.mean())

    def served_XG(self, load_XG: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """What ranks serve, float64 [..., G], of what their slots get: with `run_time_balance` a part of the node's."""
        if self.run_time_balance == "none":
            return load_XG
        speed_Ng = self.speed_G().reshape(self.num_nodes, -1)
        load_XN1 = load_XG.reshape(*load_XG.shape[:-1], *speed_Ng.shape).sum(axis=-1, keepdims=True)
        return np.asarray((load_XN1 * (speed_Ng / speed_Ng.sum(axis=1, keepdims=True))).reshape(load_XG.shape))

    def balanced(self) -> Cluster:
        """The cluster whose ranks are all that a map can balance: with `run_time_balance` every node is one rank."""
        if self.run_time_balance == "none":
            return self
        speed_N = self.speed_G().reshape(self.num_nodes, -1).mean(axis=1)
        costs = Topology(rank_cost=tuple(map(tuple, self.node_cost_NN().tolist())))
        return replace(
            self,
            gpus_per_node=1,
            slots_per_gpu=self.slots_per_node,
            rank_hosts=(),
            gpu_speeds=tuple(speed_N.tolist()) if self.gpu_speeds else (),
            topology=costs if self.topology.rank_cost else self.topology,
            run_time_balance="none",
        )

    def node_cost_NN(self) -> npt.NDArray[np.float64]:
        """Cost of one copy from node to node, float64 [N, N]; see `Topology.node_cost_NN`."""
        return self._links().node_cost_NN(self.num_nodes, self.gpus_per_node, self.inter_gbps)

    def rank_cost_NG(self) -> npt.NDArray[np.float64]:
        """Mean cost of one copy from the ranks of a node to a rank, float64 [N, G]; see `Topology.rank_cost_NG`."""
        return self._links().rank_cost_NG(self.num_nodes, self.gpus_per_node, self.inter_gbps)

    def priced_within_nodes(self) -> tuple[int, int, float] | None:
        """(rank, rank, cost) of a link between two ranks of a node that `rank_cost` prices; None: it prices none."""
        found = self._links().priced_within(self.gpus_per_node)
        if found is None:
            return None
        rank_G = self.engine_rank_G()
        return int(rank_G[found[0]]), int(rank_G[found[1]]), found[2]

    def flat(self) -> Cluster:
        """The same ranks, each a node of its own, all links alike."""
        order = tuple(np.argsort(self.engine_rank_G()).tolist()) if self.rank_hosts else ()
        return replace(
            self, num_nodes=self.num_ranks, gpus_per_node=1, topology=EVEN, rank_hosts=order, run_time_balance="none"
        )

    def _links(self) -> Topology:
        return self.topology.reordered(self.engine_rank_G()) if self.rank_hosts else self.topology

    def check_fits(self, num_experts: int) -> None:
        """Refuse a model that does not fit the slots.

        Args:
            num_experts: Experts of a layer.

        Raises:
            InfeasibleError: An expert gets no slot, or a rank would hold one expert twice.
        """
        if self.num_slots < num_experts:
            need = -(-num_experts // self.num_ranks)
            raise InfeasibleError(
                f"{self.num_nodes} nodes x {self.gpus_per_node} GPUs x {self.slots_per_gpu} slots = {self.num_slots} "
                f"slots are fewer than the {num_experts} experts of a layer; use --slots-per-gpu {need} or more, or "
                f"the least --redundant-experts that fits, {need * self.num_ranks - num_experts}"
            )
        if self.slots_per_gpu > num_experts:
            raise InfeasibleError(
                f"slots_per_gpu={self.slots_per_gpu} is more than the {num_experts} experts of a layer, so a GPU would "
                f"hold one twice; use --slots-per-gpu {num_experts} or fewer"
            )

    @staticmethod
    def of(shape: Shape) -> Cluster:
        """The cluster of this shape whose hardware is the default."""
        return Cluster(**shape.sizes())

    @staticmethod
    def fit(
        num_experts: int,
        *,
        num_nodes: int,
        gpus_per_node: int | None = None,
        slots_per_gpu: int | None = None,
        redundant_experts: int | None = None,
    ) -> Cluster:
        """The cluster for a model, with what is not given filled in.

        Args:
            num_experts: Experts of a layer.
            num_nodes: Machines of the EP group.
            gpus_per_node: GPUs of a machine; None: the largest of 8, 4, 2, 1 for which every GPU gets an expert.
            slots_per_gpu: Experts that a GPU holds of each layer; None: as many as `redundant_experts` needs.
            redundant_experts: Slots of a layer beyond one for each expert; None: 0. The ranks must divide the slots.

        Raises:
            ClusterError: A number is out of range, or two of them contradict each other.
            InfeasibleError: The slots cannot be shared evenly by the GPUs, or are fewer than the experts.
        """
        if not 1 <= num_nodes <= MOST_NODES:
            raise ClusterError(f"num_nodes={num_nodes} is out of range: 1 to {MOST_NODES} nodes may form an EP group")
        if redundant_experts is not None and redundant_experts < 0:
            raise ClusterError(f"redundant_experts={redundant_experts} must be 0 or more")
        if slots_per_gpu is not None and redundant_experts is not None:
            raise ClusterError("slots_per_gpu and redundant_experts say the same thing; give one of them")
        total = num_experts + (redundant_experts or 0)
        if gpus_per_node is None:
            sizes = [size for size in (8, 4, 2, 1) if num_nodes * size <= total]
            if slots_per_gpu is None:
                sizes = [size for size in sizes if total % (num_nodes * size) == 0] or sizes
            gpus_per_node = sizes[0] if sizes else 1
        num_ranks = num_nodes * gpus_per_node
        if num_ranks < 1:
            raise ClusterError(f"gpus_per_node={gpus_per_node} must be at least 1")
        if slots_per_gpu is None:
            if total % num_ranks:
                low, high = (
                    total // num_ranks * num_ranks - num_experts,
                    -(-total // num_ranks) * num_ranks - num_experts,
                )
                allowed = f"{low} or {high}" if low >= 0 else f"{high}"
                raise InfeasibleError(
                    f"{num_experts} experts + {total - num_experts} redundant = {total} slots cannot be shared evenly "
                    f"by {num_nodes} x {gpus_per_node} = {num_ranks} GPUs; use --redundant-experts {allowed}"
                )
            slots_per_gpu = total // num_ranks
        cluster = Cluster(num_nodes=num_nodes, gpus_per_node=gpus_per_node, slots_per_gpu=slots_per_gpu)
        cluster.check_fits(num_experts)
        return cluster
