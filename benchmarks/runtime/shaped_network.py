"""Machines in network namespaces, joined by links of a given speed: real sockets, real queues, on one computer.

Each node is a namespace with one interface, `eth0`; a further namespace is the switch. Nothing is added to the
computer's own network. Ranks of one node talk over its loopback, which is neither shaped nor counted.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

COUNTER = Path("/sys/class/net/eth0/statistics/tx_bytes")  # of the namespace that it is read in
PREFIX, SUBNET = "placement", "10.77.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapedNetwork:
    """Namespaces, one a node; node `n` has the address SUBNET.(n + 1)."""

    namespaces: tuple[str, ...]

    def start(self, node: int, command: Sequence[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
        """A process on a node; gloo binds to the address of its `eth0` alone. (`ip` becomes the command: same id.)"""
        return subprocess.Popen(
            ["ip", "netns", "exec", self.namespaces[node], *command],
            env={**os.environ, "GLOO_SOCKET_IFNAME": "eth0", **env},
        )


def why_not() -> str | None:
    """Why namespaces cannot be made here; None if they can."""
    if not shutil.which("ip") or not shutil.which("tc"):
        return "ip and tc are missing; install iproute2"
    name = f"{PREFIX}-{os.getpid()}-probe"
    made = _run("ip", "netns", "add", name)
    if made.returncode:
        return f"network namespaces cannot be made ({made.stderr.strip()}); root with CAP_NET_ADMIN is needed"
    try:
        for command in (
            ("ip", "-n", name, "link", "add", "probe0", "type", "veth", "peer", "name", "probe1"),
            ("ip", "-n", name, "link", "add", "probe2", "type", "bridge"),
            ("tc", "-n", name, *_shape("probe0", 100)),
        ):
            if (tried := _run(*command)).returncode:
                return f"the kernel has no veth, bridge or tbf ({tried.stderr.strip()})"
    finally:
        _run("ip", "netns", "del", name)
    return None


@contextmanager
def shaped_network(num_nodes: int, mbit: float) -> Iterator[ShapedNetwork]:
    """`num_nodes` nodes with `mbit` Mbit/s each way (0: as fast as it goes), taken down at the end."""
    _sweep()
    names = [f"{PREFIX}-{os.getpid()}-{what}" for what in ("switch", *range(num_nodes))]
    switch = names[0]
    made: list[str] = []
    try:
        for name in names:
            _must("ip", "netns", "add", name)
            made.append(name)
            _must("ip", "-n", name, "link", "set", "lo", "up")
        _must("ip", "-n", switch, "link", "add", "bridge", "type", "bridge")
        _must("ip", "-n", switch, "link", "set", "bridge", "up")
        for node, name in enumerate(names[1:]):
            port = f"port{node}"
            _must("ip", "-n", switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
            _must("ip", "-n", switch, "link", "set", port, "master", "bridge", "up")
            _must("ip", "-n", name, "addr", "add", f"{SUBNET}.{node + 1}/24", "dev", "eth0")
            _must("ip", "-n", name, "link", "set", "eth0", "up")
            if mbit:
                _must("tc", "-n", name, *_shape("eth0", mbit))  # what the node sends
                _must("tc", "-n", switch, *_shape(port, mbit))  # what it receives
        yield ShapedNetwork(namespaces=tuple(names[1:]))
    finally:
        for name in made:  # interfaces go with their namespaces
            _run("ip", "netns", "del", name)


def _sweep() -> None:
    """Take down what programs of this kind left that were killed outright."""
    for line in _run("ip", "netns", "list").stdout.splitlines():
        name = line.split()[0]
        prefix, _, owner = name.partition("-")
        if prefix == PREFIX and not Path("/proc", owner.split("-")[0]).exists():
            _run("ip", "netns", "del", name)


def _shape(device: str, mbit: float) -> tuple[str, ...]:
    limits = ("rate", f"{mbit}mbit", "burst", "128kb", "latency", "100ms")
    return ("qdisc", "add", "dev", device, "root", "tbf", *limits)


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _must(*command: str) -> None:
    if (done := _run(*command)).returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
