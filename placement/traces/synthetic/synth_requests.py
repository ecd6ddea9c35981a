"""The requests of a synthetic trace: lengths, domains and categories."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from placement.errors import OptionError
from placement.traces.format import RequestEntry

MAX_TOKENS = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticRequests:
    """entries [Q]; length_Q and prompt_Q (included in the length) in tokens, domain_Q and category_Q indexes, int64."""

    entries: tuple[RequestEntry, ...]
    length_Q: npt.NDArray[np.int64]
    prompt_Q: npt.NDArray[np.int64]
    domain_Q: npt.NDArray[np.int64]
    category_Q: npt.NDArray[np.int64]


def plan_requests(
    generator: np.random.Generator, num_tokens: int, num_requests: int, num_domains: int, num_categories: int
) -> SyntheticRequests:
    """Requests whose lengths sum to `num_tokens`. Domain d is 1 / (d + 1) as frequent as the first, categories of a
    domain are equally frequent. Raises OptionError."""
    for name, value in (("requests", num_requests), ("domains", num_domains), ("categories", num_categories)):
        if value < 1:
            raise OptionError(f"{name}={value} must be at least 1")
    if num_tokens < num_requests:
        raise OptionError(f"tokens={num_tokens} must be at least requests={num_requests}: each has one token or more")
    if num_tokens > MAX_TOKENS:
        raise OptionError(f"tokens={num_tokens} is out of range: at most {MAX_TOKENS} are allowed")
    length_Q = _lengths(generator, num_tokens, num_requests)
    prompt_Q = np.round(length_Q * generator.uniform(0.1, 0.5, num_requests)).astype(np.int64)
    frequency_D = 1 / np.arange(1, num_domains + 1)
    domain_Q = generator.choice(num_domains, num_requests, p=frequency_D / frequency_D.sum())
    category_Q = generator.integers(num_categories, size=num_requests)
    entries = [
        RequestEntry(
            id=f"synthetic/{number}", domain=f"domain-{domain}", category=f"domain-{domain}/category-{category}"
        )
        for number, (domain, category) in enumerate(zip(domain_Q.tolist(), category_Q.tolist(), strict=True))
    ]
    return SyntheticRequests(
        entries=tuple(entries),
        length_Q=length_Q,
        prompt_Q=np.maximum(prompt_Q, 1),
        domain_Q=domain_Q,
        category_Q=domain_Q * num_categories + category_Q,
    )


def _lengths(generator: np.random.Generator, num_tokens: int, num_requests: int) -> npt.NDArray[np.int64]:
    """At least 1 each, roughly log-normal, exact sum: the ends of the requests are rounded, not the lengths."""
    share_Q = np.clip(generator.lognormal(0.0, 0.8, num_requests), 0.1, 4.0)
    ends = np.rint(np.cumsum(share_Q) / share_Q.sum() * (num_tokens - num_requests)).astype(np.int64)
    return np.asarray(np.diff(ends, prepend=0) + 1, dtype=np.int64)
