"""A few processes with a gloo group between them, on the loopback interface alone."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from moe import make_placement

from placement.pipeline.warm_up import compile_runtime
from placement.runtime import LayerMap, ReplicaChooser


def run_processes(
    count: int, folder: Path, program: Callable[[int], Any], *, seconds: float = 40, leave: bool = False
) -> list[Any]:
    """What `program(rank)` returned or raised in each of `count` processes; None for one that died.

    With `leave` the store is in rank 0's process, and processes end when they have told their result.
    """
    compile_kernels()
    store = f"tcp://127.0.0.1:{_free_port()}" if leave else f"file://{folder / 'store'}"
    context = multiprocessing.get_context("fork")
    processes, readers = [], []
    for rank in range(count):
        reader, writer = context.Pipe(duplex=False)
        process = context.Process(target=_one, args=(rank, count, store, program, writer, leave), daemon=True)
        process.start()
        writer.close()  # so that the end of a process is the end of its pipe
        processes.append(process)
        readers.append(reader)
    results = []
    try:
        for reader in readers:
            assert reader.poll(seconds), "a process hangs"
            try:
                results.append(reader.recv())
            except EOFError:
                results.append(None)
    finally:
        for process in processes:
            process.kill()
            process.join()
    return results


@cache
def compile_kernels() -> None:
    """Of a rank's first layers, for this process, those that it forks, and numba's cache: ranks have time limits, in
    which they are not to wait for one that compiles."""
    compile_runtime()
    layer_map = LayerMap.of(make_placement(2, 2, 4, 12, 3), 0)
    for choice in ("min-nodes", "min-nodes-balanced"):
        ReplicaChooser(layer_map, 0, choice)(torch.zeros((1, 3), dtype=torch.int64))


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _one(rank: int, count: int, store: str, program: Callable[[int], Any], pipe: Connection, leave: bool) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=count, timeout=timedelta(seconds=30))
        result = program(rank)
    except Exception as error:
        result = error
    pipe.send(result)
    pipe.close()
    if leave:
        os._exit(0)
    time.sleep(600)  # still there, until the parent has all results and kills it
