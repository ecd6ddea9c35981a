"""Homes as `placement route` gives them: prompts asked over HTTP, in front of a door for each node."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
from proxy_stub import CLI, environment

from placement.documents.placement import save_placement
from placement.pipeline.documents.grouping_document import grouping_file
from placement.pipeline.grouped_solution import GroupedSolution
from placement.pipeline.solution import solution_document

TOKEN_S = 5e-3  # for which a door holds a request, for each token of its answer


async def homes_by_proxy(
    grouped: GroupedSolution,
    prompts: Sequence[list[int]],
    tokens_Q: npt.NDArray[np.int64],
    folder: Path,
    *,
    at_a_time: int,
    seed: int,
) -> npt.NDArray[np.int64]:
    """The node whose door each request came to, int64 [Q].

    Args:
        grouped: Placement, homes and router; `folder` gets the files that the proxy reads.
        prompts: The ids of each request's prompt.
        tokens_Q: Tokens of each answer: its door holds the request for as long.
        folder: A folder that is there.
        at_a_time: So many requests wait for an answer at most.
        seed: Of the order in which the requests come.
    """
    num_nodes = grouped.solution.cluster.num_nodes
    save_placement(folder / "placement.json", solution_document(grouped.solution))
    grouping_file(grouped).write(folder / "grouping.json")
    home_Q = np.full(len(prompts), -1)

    async def door(node: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await head_of(reader):
            body = await reader.readexactly(int(head.get("content-length", "0")))
            if body:
                q = json.loads(body)["q"]
                home_Q[q] = node
                await asyncio.sleep(int(tokens_Q[q]) * TOKEN_S)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            await writer.drain()
        writer.close()

    servers = [
        await asyncio.start_server(lambda r, w, node=node: door(node, r, w), "127.0.0.1", 0, limit=1 << 20)
        for node in range(num_nodes)
    ]
    ports = [server.sockets[0].getsockname()[1] for server in servers]
    spare = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
    port = spare.sockets[0].getsockname()[1]
    spare.close()
    given = ["--map", str(folder / "placement.json"), "--grouping", str(folder / "grouping.json"), "--port", str(port)]
    given += [word for one in ports for word in ("--backend", f"http://127.0.0.1:{one}")]
    proxy = await asyncio.create_subprocess_exec(sys.executable, "-c", CLI, "route", *given, env=environment())
    try:
        every = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        at = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=at, limits=every, timeout=None, trust_env=False) as client:
            await until_ready(client)
            turn = asyncio.Semaphore(at_a_time)

            async def ask(q: int) -> None:
                body: dict[str, Any] = {"prompt": prompts[q], "q": q}
                async with turn:
                    (await client.post("/v1/completions", json=body)).raise_for_status()

            order = np.random.default_rng(seed).permutation(len(prompts))
            await asyncio.gather(*(ask(int(q)) for q in order))
    finally:
        proxy.terminate()
        await proxy.wait()
        for server in servers:
            server.close()
    return home_Q


async def head_of(reader: asyncio.StreamReader) -> dict[str, str]:
    """The headers of the next request, names in small letters; empty at the end of the connection."""
    try:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return {}
    return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


async def until_ready(client: httpx.AsyncClient) -> None:
    for _ in range(600):
        with contextlib.suppress(httpx.TransportError):
            if (await client.get("/readyz")).status_code == 200:
                return
        await asyncio.sleep(0.1)
    raise SystemExit("the proxy did not start")
