"""Which target a request gets, and the tokens in flight at each: the state of the proxy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from placement.errors import OptionError
from placement.grouping.sessions import Sessions
from placement_api.proxy.asked import Asked
from placement_api.proxy.lengths import Lengths
from placement_api.proxy.tables import Tables, Target
from placement_api.proxy.tokens import Ids

MOST_IDS = 1 << 16  # of a prompt, that a home is told from: what takes longer would hold up other requests
FIRST, MEMORY = 8, 1000  # requests that the mean of training counts as, and that the mean of requests goes back


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Where a request goes.

    Attributes:
        worse_N: By how much each node is worse than the home, which has the least.
        why: What the home was told from, as `placement.grouping.router.Home` says.
        tokens: Tokens that the request is taken to have, its answers included.
    """

    worse_N: tuple[float, ...]
    why: str
    tokens: int


class Homes:
    """Decides one request after another; of one thread.

    Args:
        tables: What homes are decided from.
    """

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.recent = tables.router.recent()
        self.sessions = Sessions(tables.router.num_nodes)
        self.lengths = Lengths()
        self.in_flight = [0] * len(tables.targets)  # tokens, by target
        self._requests, self._mean_tokens = FIRST, max(tables.request_tokens, 1.0)
        self._of_node: list[list[int]] = [[] for _ in range(tables.router.num_nodes)]
        for at, target in enumerate(tables.targets):
            self._of_node[target.node].append(at)

    def swap(self, tables: Tables) -> None:
        """Decide from other tables from now on; requests in flight go on.

        Raises:
            OptionError: They are for other nodes or ranks than the backends have.
        """
        if tables.targets != self.tables.targets:
            raise OptionError("the files are for other nodes or ranks than those at the start; start anew for these")
        self.tables, self.recent = tables, tables.router.recent()

    def load_N(self) -> npt.NDArray[np.float64]:
        """Tokens in flight at each node, float64 [N]."""
        return np.array([sum([self.in_flight[at] for at in mine]) for mine in self._of_node], dtype=np.float64)

    def choose(self, asked: Asked, ids: Ids | None) -> Choice:
        """The home of a request. Raises InputError where the router does."""
        router = self.tables.router
        prompt_tokens = 0 if ids is None else len(ids)
        cached_N = None
        if asked.session is not None:
            cached_N = np.minimum(self.sessions.cached(asked.session), asked.shared * prompt_tokens)
        prompt = None if ids is None else ids[:MOST_IDS]
        # prices know requests as the trace has them, which may be without prompts: loads are told in such requests
        load_N = self.load_N() * (self.tables.request_tokens / self._mean_tokens)
        home = router.assign(
            load=load_N, prompt=prompt, labels=asked.labels or None, cached=cached_N, recent=self.recent
        )
        tokens = prompt_tokens + int(asked.answers * self.lengths.expected(asked, self.tables.request_tokens))
        self._requests = min(self._requests + 1, MEMORY)
        self._mean_tokens = max(self._mean_tokens + (tokens - self._mean_tokens) / self._requests, 1.0)
        worse_N = home.extra_N.copy()
        worse_N[home.node] = -1.0
        if asked.session is not None:
            self.sessions.keep(asked.session, home.node, tokens)
        return Choice(worse_N=tuple(worse_N.tolist()), why=home.why, tokens=tokens)

    def least_loaded(self) -> Choice:
        """Where a request goes of which nothing could be read."""
        return Choice(worse_N=tuple(self.load_N().tolist()), why="load", tokens=int(self.tables.request_tokens))

    def anywhere(self) -> Choice:
        """Where a request goes that generates nothing."""
        return Choice(worse_N=(0.0,) * self.tables.router.num_nodes, why="", tokens=0)

    def target(self, choice: Choice, without: frozenset[int]) -> int | None:
        """The best target whose backend is not left out; within a node the least loaded; None: there is none."""
        targets, worse = self.tables.targets, choice.worse_N
        for node in sorted(range(len(worse)), key=worse.__getitem__):
            usable = [at for at in self._of_node[node] if targets[at].backend not in without]
            if usable:
                return min(usable, key=self.in_flight.__getitem__) if choice.tokens else usable[0]
        return None

    @contextmanager
    def running(self, target: int, tokens: int) -> Iterator[Target]:
        """Count the tokens of a request in flight while it runs."""
        self.in_flight[target] += tokens
        try:
            yield self.tables.targets[target]
        finally:
            self.in_flight[target] -= tokens
