"""Which node has which conversation: its keys and values are there, so it should go on there."""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np
import numpy.typing as npt

MOST_SESSIONS = 100_000


class Sessions:
    """Home and tokens of the sessions (or prefixes) that were used last, by their key; threads may share it.

    Args:
        num_nodes: Nodes, N.
        most: Sessions that are remembered; the one that was not used for longest is forgotten first.
    """

    def __init__(self, num_nodes: int, *, most: int = MOST_SESSIONS) -> None:
        self._num_nodes, self._most = num_nodes, most
        self._known: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self._lock = threading.Lock()

    def cached(self, key: str) -> npt.NDArray[np.float64]:
        """Tokens of the session that each node has, float64 [N], for `Router.assign`; 0 where it is not known."""
        with self._lock:
            node, tokens = self._known.get(key, (0, 0))
        cached_N = np.zeros(self._num_nodes)
        cached_N[node] = tokens
        return cached_N

    def keep(self, key: str, node: int, tokens: int) -> None:
        """Remember that the session ran on `node`, and has `tokens` tokens now."""
        with self._lock:
            self._known[key] = (node, tokens)
            self._known.move_to_end(key)
            while len(self._known) > self._most:
                self._known.popitem(last=False)
