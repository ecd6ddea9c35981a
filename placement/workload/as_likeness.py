"""What counted traffic tells a synthetic trace that is to resemble it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from placement.traces.synthetic.likeness import Likeness, strong_pairs_L
from placement.workload.counts_file import ExpertCounts
from placement.workload.workload import Workload


def likeness_of(counted: Workload | ExpertCounts) -> Likeness:
    """Loads of experts and, of a workload, the strong pairs; the limit on groups of a token is not known."""
    model, pairs_L = replace(counted.model, num_groups=None), None
    if isinstance(counted, ExpertCounts):
        share_LE = counted.load_LE().astype(np.float64) * (counted.unit / counted.num_tokens)
    else:
        share_LE = counted.load_LE.astype(np.float64) / counted.num_tokens
        pairs_L = strong_pairs_L(counted.coact_LEE, counted.load_LE, counted.num_tokens, model.top_k)
    return Likeness(model=model, num_tokens=counted.num_tokens, share_LE=share_LE, pairs_L=pairs_L)
