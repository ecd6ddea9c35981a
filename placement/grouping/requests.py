"""The requests of a trace: entries with the same id, in one folder or several, are one request and have one home."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from placement.traces.prompts import TokenLists
from placement.traces.trace import Trace

UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """ids and domains of the requests, and `request_E`, int32, the request of every entry of the trace."""

    ids: tuple[str, ...]
    domains: tuple[str, ...]
    request_E: npt.NDArray[np.int32]

    def labels_of(self, request: int) -> dict[str, str]:
        """The labels that a router may be told of a request: its domain, where one is known."""
        return {} if self.domains[request] == UNKNOWN else {"domain": self.domains[request]}

    def lists(self, lists_E: TokenLists) -> TokenLists:
        """The tokens of each request, of those of the entries of the trace: the first entry that has any."""
        entry_Q = np.full(len(self.ids), -1, dtype=np.int64)
        known_E = np.flatnonzero(lists_E.length_Q > 0)[::-1]
        entry_Q[self.request_E[known_E]] = known_E
        return lists_E.take(entry_Q)

    def sum(self, value_EX: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Sums over the entries of each request."""
        total = np.zeros((len(self.ids), *value_EX.shape[1:]), dtype=value_EX.dtype)
        np.add.at(total, self.request_E, value_EX)
        return total


def requests_of(trace: Trace) -> Requests:
    """All requests of a trace, selected or not; without a domain they are of the domain `unknown`."""
    number: dict[str, int] = {}
    request_E = np.array([number.setdefault(entry.id, len(number)) for entry in trace.requests], dtype=np.int32)
    domain: dict[str, str] = {}
    for entry in trace.requests:
        if entry.domain is not None:
            domain.setdefault(entry.id, entry.domain)
    return Requests(ids=tuple(number), domains=tuple(domain.get(name, UNKNOWN) for name in number), request_E=request_E)


def domain_counts(domains: list[str]) -> dict[str, int]:
    """How many requests of each domain, most first."""
    return dict(sorted(Counter(domains).items(), key=lambda item: (-item[1], item[0])))
