"""What `placement route` adds to the first byte: the same requests directly and through the proxy, in turn, in one run.

python benchmarks/proxy.py [--rate 500] [--prompt-tokens 2000] [--seconds 10] [--rounds 3] [--beside CHECKOUT]

An open loop: requests leave at their times whatever the answers take. The engine is a stub that answers at once, so all
that is measured is the way. Client, stub and proxy share the cores of this machine. Prompts are random words of the
docs, a tenth of them random letters, no prompt twice; the tokenizer is a BPE of 8,000 tokens that is trained here.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import numpy as np
import psutil
from machine import checkout, describe_machine
from proxy_stub import CLI, REPOSITORY, Exchange, environment, run, serve_stub

from placement import Cluster, Options, open_trace
from placement.documents.placement import save_placement
from placement.grouping.predictor import Predictor, buckets_for
from placement.grouping.router_part import RouterPart
from placement.pipeline.documents.grouping_document import grouping_file
from placement.pipeline.solution import solution_document
from placement.pipeline.with_homes import solve_grouped

NODES, CONNECTIONS, PROMPTS = 4, 64, 2000
MARK = "00000000"  # every request has its number here


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Milliseconds from the request to the first byte of its answer, and seconds of the proxy's processor."""

    first_byte_ms: np.ndarray
    cpu_s: float
    late_ms: float

    def at(self, percent: float) -> float:
        return float(np.percentile(self.first_byte_ms, percent))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rate", type=float, default=500.0)
    parser.add_argument("--prompt-tokens", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--beside", type=checkout, help="another checkout of the project, whose proxy takes turns with this"
    )
    asked = parser.parse_args()
    if asked.beside is not None and not (asked.beside / "api" / "placement_api" / "proxy").is_dir():
        parser.error(f"--beside {asked.beside} is no checkout of the project with a proxy")
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        bodies = prepare(folder, asked.prompt_tokens)
        port = serve_stub(stack)
        proxies = {"proxy": start_proxy(stack, folder, port, REPOSITORY)}
        if asked.beside is not None:
            proxies[f"proxy of {asked.beside.name}"] = start_proxy(stack, folder, port, asked.beside)
        print(f"# First byte through the proxy: {asked.rate:g} requests/s, {asked.prompt_tokens:,} tokens\n")
        print(f"{describe_machine()}; load average {os.getloadavg()[0]:.1f} before the run")
        print(
            f"{asked.rounds} rounds of {asked.seconds:g} s; bodies of {len(bodies[0]):,} bytes, each prompt another.\n"
        )
        print("| round | way | p10 ms | median | p90 | p99 | left late, p99 | processor ms a request, of the proxy |")
        print("|---|---|---|---|---|---|---|---|")
        for _, at in proxies.values():
            run(warm(at, bodies))
        added: dict[str, list[tuple[float, float]]] = {way: [] for way in proxies}
        for number in range(1, asked.rounds + 1):
            direct = run(measure(port, bodies, asked.rate, asked.seconds, None))
            print(row(number, "direct", direct), flush=True)
            for way, (process, at) in proxies.items():
                one = run(measure(at, bodies, asked.rate, asked.seconds, process))
                print(row(number, way, one), flush=True)
                added[way].append((one.at(50) - direct.at(50), one.at(99) - direct.at(99)))
        print()
        for way, found in added.items():
            medians, tails = zip(*found, strict=True)
            told = f"median {min(medians):.2f} to {max(medians):.2f} ms, p99 {min(tails):.2f} to {max(tails):.2f} ms"
            print(f"Added by the {way}: {told}.")
        print(f"Load average at the end {os.getloadavg()[0]:.1f}.")
        series = httpx.get(f"http://127.0.0.1:{proxies['proxy'][1]}/metrics", trust_env=False).text
        print("\n```text")
        print("\n".join(line for line in series.splitlines() if "homes_total" in line or "unchanged_total" in line))
        print("```")


def row(number: int, way: str, one: Figures) -> str:
    cpu = f"{one.cpu_s / len(one.first_byte_ms) * 1e3:.2f}" if one.cpu_s else "-"
    cells = (number, way, *(f"{one.at(p):.2f}" for p in (10, 50, 90, 99)), f"{one.late_ms:.2f}", cpu)
    return f"| {' | '.join(map(str, cells))} |"


def prepare(folder: Path, prompt_tokens: int) -> list[bytes]:
    """A map, a grouping whose predictor is of full size, a tokenizer, and bodies of requests."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    trace = open_trace(REPOSITORY / "examples" / "traces")
    cluster = Cluster.fit(trace.model.num_experts, num_nodes=NODES, gpus_per_node=2)
    grouped = solve_grouped(trace, cluster, Options(work_limit=300, bound="none"), home_from="0.25", tolerance=0.5)
    save_placement(folder / "placement.json", solution_document(grouped.solution))
    rng = np.random.default_rng(0)
    buckets = buckets_for(NODES)
    predictor = Predictor(
        idf_F=rng.uniform(0, 2, buckets).astype(np.float16),
        weight_NF=rng.normal(0, 0.05, (NODES, buckets)).astype(np.float16),
        mean_N=np.zeros(NODES),
        worth_tokens=50.0,
        least_worth_tokens=1.0,
    )
    router = replace(grouped.homes.router, predictor=predictor)
    part = RouterPart.of(router, keeps=1.0)
    grouping_file(grouped).model_copy(update={"router": part}).write(folder / "grouping.json")

    texts = [path.read_text() for path in sorted((REPOSITORY / "docs").glob("*.md"))]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=8000, show_progress=False, initial_alphabet=letters)
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    words = np.array(sorted({word for text in texts for word in text.split()}))

    def made(length: int) -> str:
        chosen = rng.choice(words, length).tolist()
        for at in rng.integers(0, length, length // 10).tolist():  # what no cache has seen
            chosen[at] = "".join(chr(97 + letter) for letter in rng.integers(0, 26, 7).tolist())
        return f"{MARK} {' '.join(chosen)}"

    length = round(1000 * prompt_tokens / len(tokenizer.encode(made(1000)).ids))
    return [
        json.dumps(
            {"model": "m", "messages": [{"role": "user", "content": made(length)}], "stream": True, "max_tokens": 200}
        ).encode()
        for _ in range(PROMPTS)
    ]


def start_proxy(stack: contextlib.ExitStack, folder: Path, port: int, checkout: Path) -> tuple[psutil.Process, int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        mine = free.getsockname()[1]
    given = ["--map", folder / "placement.json", "--grouping", folder / "grouping.json"]
    given += ["--tokenizer", folder / "tokenizer.json", "--engine", "vllm", "--backend", f"http://127.0.0.1:{port}"]
    command = [sys.executable, "-c", CLI, "route", *map(str, given), "--port", str(mine)]
    process = subprocess.Popen(command, cwd=checkout, env=environment(checkout))
    stack.callback(process.wait)
    stack.callback(process.send_signal, signal.SIGTERM)
    for _ in range(600):
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"http://127.0.0.1:{mine}/readyz", trust_env=False).status_code == 200:
                return psutil.Process(process.pid), mine
        time.sleep(0.1)
    raise SystemExit("the proxy did not start")


async def warm(port: int, bodies: list[bytes]) -> None:
    exchange = await Exchange.open(port)
    for body in bodies[:50]:
        await exchange.ask(body)
    exchange.close()


async def measure(port: int, bodies: list[bytes], rate: float, seconds: float, proxy: psutil.Process | None) -> Figures:
    """Requests at random times of this rate, each on a free connection; two more seconds before are not counted."""
    free = [await Exchange.open(port) for _ in range(CONNECTIONS)]
    rng = np.random.default_rng(1)
    times = np.cumsum(rng.exponential(1 / rate, int(rate * (seconds + 2))))
    took, late, running = [], [], set()
    start = cpu_s = 0.0

    async def one(at: int) -> None:
        exchange = free.pop() if free else await Exchange.open(port)
        begin = time.perf_counter()
        first = await exchange.ask(bodies[at % len(bodies)].replace(MARK.encode(), b"%08d" % at, 1))
        free.append(exchange)
        if times[at] > 2:
            took.append((first - begin) * 1e3)
            late.append((begin - start - times[at]) * 1e3)

    def begin_one(at: int) -> None:
        nonlocal cpu_s
        if proxy is not None and cpu_s == 0.0 and times[at] > 2:
            cpu_s = sum(proxy.cpu_times()[:2])
        task = asyncio.create_task(one(at))
        running.add(task)
        task.add_done_callback(running.discard)

    def leave() -> None:
        """Of a thread: the waits of the loop end at whole milliseconds, so that requests would leave in bunches."""
        for at, when in enumerate(times):
            if (wait := start + when - time.perf_counter()) > 0:
                time.sleep(wait)
            loop.call_soon_threadsafe(begin_one, at)

    loop = asyncio.get_running_loop()
    start = time.perf_counter()
    await asyncio.to_thread(leave)
    await asyncio.gather(*running)
    cpu_s = 0.0 if proxy is None else sum(proxy.cpu_times()[:2]) - cpu_s
    for exchange in free:
        exchange.close()
    return Figures(first_byte_ms=np.array(took), cpu_s=cpu_s, late_ms=float(np.percentile(late, 99)))


if __name__ == "__main__":
    main()
