"""A few processes with a gloo group between them, on the loopback interface alone."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def run_processes(count: int, folder: Path, program: Callable[[int], Any], *, seconds: float = 40) -> list[Any]:
    """What `program(rank)` returned or raised in each of `count` processes; None for one that died."""
    context = multiprocessing.get_context("fork")
    processes, readers = [], []
    for rank in range(count):
        reader, writer = context.Pipe(duplex=False)
        process = context.Process(target=_one, args=(rank, count, folder / "store", program, writer), daemon=True)
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


def _one(rank: int, count: int, store: Path, program: Callable[[int], Any], pipe: Connection) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=count, timeout=timedelta(seconds=30)
        )
        result = program(rank)
    except Exception as error:
        result = error
    pipe.send(result)
    pipe.close()
    time.sleep(600)  # still there, until the parent has all results and kills it
