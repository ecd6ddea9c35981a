"""The ASGI application: our own three pages, and all else to a backend."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from placement_api.proxy.asked import PROMPT_PATHS
from placement_api.proxy.connection import Broken
from placement_api.proxy.decide import Decider
from placement_api.proxy.doors import Headers
from placement_api.proxy.homes import Homes
from placement_api.proxy.lengths import Usage
from placement_api.proxy.limits import Limits
from placement_api.proxy.metrics import CONTENT_TYPE, Metrics
from placement_api.proxy.upstream import BODILESS, HOP, HOP_OF_ANSWERS, Away, Upstream, passed_on

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


WATCH_S = 0.01  # from when on somebody looks whether the client is there: most of a task for answers that take less
DRAIN_S = 5.0  # how long the rest of a body that is too long is read, and thrown away


class Refused(Exception):
    """A request that is answered here: `status` and why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why


class Gone(Exception):
    """The client went away."""


class Proxy:
    """Passes requests on.

    Args:
        decider: Gives requests their homes.
        make_upstream: Makes the pool of connections, in the loop that runs.
        limits: What a client may take.
        metrics: The series.
    """

    def __init__(
        self, decider: Decider, make_upstream: Callable[[], Upstream], limits: Limits, metrics: Metrics
    ) -> None:
        self.decider, self.limits, self.metrics = decider, limits, metrics
        self.running = 0
        self._make_upstream = make_upstream
        self._upstream: Upstream | None = None
        metrics.watch("placement_route_running", "Requests at this moment", lambda: self.running)
        metrics.watch_loads(self.homes.tables.router.num_nodes, self.homes.load_N)

    @property
    def homes(self) -> Homes:
        return self.decider.homes

    @property
    def upstream(self) -> Upstream:
        if self._upstream is None:
            self._upstream = self._make_upstream()
        return self._upstream

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            own = {"/healthz": self._health, "/readyz": self._ready, "/metrics": self._series}.get(scope["path"])
            if own is not None and scope["method"] in ("GET", "HEAD"):
                await own(send)
                return
            try:
                await self._pass(scope, receive, send)
            except Refused as refused:
                if refused.status == 413:  # who is still sending might never read the answer
                    with suppress(TimeoutError):
                        async with asyncio.timeout(DRAIN_S):
                            await _rest(receive)
                self.metrics.answers.labels(str(refused.status)).inc()
                await _answer(send, refused.status, _error(refused), b"application/json", close=True)
            except Gone:
                self.metrics.cancelled.inc()

    async def _pass(self, scope: Message, receive: Receive, send: Send) -> None:
        if not scope["raw_path"].startswith(b"/"):  # behind the address of a backend it could name another one
            raise Refused(400, "the target must begin with /")
        if self.running >= self.limits.requests:
            raise Refused(503, f"there are {self.running} requests already; come back later")
        self.running += 1
        try:
            headers = dict(scope["headers"])
            body = await self._body(receive, headers)
            async with _while_here(receive):
                await self._relay(scope, headers, body, send)
        finally:
            self.running -= 1

    async def _body(self, receive: Receive, headers: dict[bytes, bytes]) -> bytes | None:
        """The whole body; None: the request has none. Raises Refused, Gone."""
        if b"content-length" not in headers and b"transfer-encoding" not in headers:
            return None
        most = self.limits.body_bytes
        if int(headers.get(b"content-length", b"0")) > most:
            raise Refused(413, f"the body is longer than {most} bytes")
        parts, size, more = [], 0, True
        while more:
            try:
                async with asyncio.timeout(self.limits.stall_s):
                    message = await receive()
            except TimeoutError:
                raise Refused(408, f"nothing of the body came for {self.limits.stall_s:g} s") from None
            if message["type"] == "http.disconnect":
                raise Gone
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > most:
                raise Refused(413, f"the body is longer than {most} bytes")
            more = message.get("more_body", False)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _relay(self, scope: Message, headers: dict[bytes, bytes], body: bytes | None, send: Send) -> None:
        start = time.perf_counter()
        choice, read = self.homes.anywhere(), None
        if scope["method"] == "POST" and scope["path"] in PROMPT_PATHS and body is not None:
            choice, read = await self.decider.choose(body, headers)
        away = self.upstream.away()
        if len(away) == len(self.upstream.backends):
            away = frozenset()
        first = True
        while (at := self.homes.target(choice, away)) is not None:
            with self.homes.running(at, choice.tokens) as target:
                sent: bytes | None = body
                added: Headers = ()
                if read is not None and body is not None:
                    sent, added = self.decider.hand_over(body, read, headers, target.rank)
                if first and choice.tokens:
                    self.metrics.homes.labels(str(target.node), choice.why).inc()
                    self.metrics.seconds.observe(time.perf_counter() - start)
                try:
                    tokens = await self._exchange(scope, target.backend, [*scope["headers"], *added], sent, send)
                    if read is not None:
                        self.decider.learn(read, tokens)
                    return
                except Away as error:
                    self.metrics.failures.labels(str(target.backend), str(error)).inc()
                    away |= {target.backend}
                except Broken as error:
                    self.metrics.failures.labels(str(target.backend), str(error)).inc()
                    why = (
                        "answered with what is no HTTP/1.1"
                        if error.refused
                        else "ended the connection before it answered"
                    )
                    raise Refused(502, f"the backend {why}") from None
                first = False
            self.metrics.elsewhere.inc()
        raise Refused(502, "no backend can be reached")

    async def _exchange(
        self, scope: Message, backend: int, headers: list[tuple[bytes, bytes]], body: bytes | None, send: Send
    ) -> int | None:
        """One request to one backend, and its answer to the client as it comes; the tokens that the backend counted.

        Raises Away, Broken.
        """
        path, query = scope["raw_path"], scope["query_string"]
        target = b"%b?%b" % (path, query) if query else path
        async with self.upstream.ask(backend, scope["method"], target, headers, body) as answer:
            self.metrics.answers.labels(str(answer.status)).inc()
            await send(
                {
                    "type": "http.response.start",
                    "status": answer.status,
                    "headers": passed_on(answer.headers, HOP if answer.status in BODILESS else HOP_OF_ANSWERS),
                }
            )
            usage, whole = Usage(), False
            try:
                while not whole:
                    part = await answer.more()
                    whole = answer.whole  # the end goes with the last part where both came together: in one write
                    usage.see(part)
                    await send({"type": "http.response.body", "body": part, "more_body": not whole})
            except Broken as error:
                # the client learns it by an end without an end: uvicorn closes its connection
                self.metrics.failures.labels(str(backend), f"midway {error}").inc()
                return None
            return usage.tokens() if answer.status < 300 else None

    async def _health(self, send: Send) -> None:
        await _answer(send, 200, b"ok\n", b"text/plain")

    async def _ready(self, send: Send) -> None:
        """Ready as soon as one backend is."""
        answers = await asyncio.gather(*(self.upstream.healthy(at) for at in range(len(self.upstream.backends))))
        ready = any(answers)
        await _answer(send, 200 if ready else 503, b"ready\n" if ready else b"no backend is healthy\n", b"text/plain")

    async def _series(self, send: Send) -> None:
        await _answer(send, 200, self.metrics.text(), CONTENT_TYPE.encode())

    async def _live(self, receive: Receive, send: Send) -> None:
        while (message := await receive())["type"] != "lifespan.shutdown":
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
        if self._upstream is not None:
            self._upstream.close()
        await send({"type": "lifespan.shutdown.complete"})


async def _rest(receive: Receive) -> None:
    while (await receive()).get("more_body", False):
        pass


@asynccontextmanager
async def _while_here(receive: Receive) -> AsyncIterator[None]:
    """Ends what is within when the client goes away. Raises Gone."""
    relaying, went, ended = asyncio.current_task(), False, False

    def leave(_: asyncio.Task[None]) -> None:
        nonlocal went
        if not ended and relaying is not None:
            went = True
            relaying.cancel()

    gone: asyncio.Task[None] | None = None

    def look() -> None:
        nonlocal gone
        gone = asyncio.create_task(_gone(receive))
        gone.add_done_callback(leave)

    later = asyncio.get_running_loop().call_later(WATCH_S, look)
    try:
        yield
    except asyncio.CancelledError:
        if went and relaying is not None and not relaying.uncancel():
            raise Gone from None
        raise
    finally:
        ended = True
        later.cancel()
        if gone is not None:
            gone.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _answer(send: Send, status: int, body: bytes, kind: bytes, *, close: bool = False) -> None:
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body))]
    headers += [(b"connection", b"close")] if close else []
    headers += [(b"retry-after", b"1")] if status == 503 else []
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _error(refused: Refused) -> bytes:
    """As OpenAI's interface writes errors."""
    return json.dumps({"error": {"message": refused.why, "type": "placement_route", "code": refused.status}}).encode()
