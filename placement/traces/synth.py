"""Synthetic traces from a latent-topic model, with the statistics of real ones.

Token t chooses in layer l the K experts with the highest

    popularity_le + gain_l * W_le . context_t + V_le . token_t + Gumbel noise

context_t, the same in all layers, is the topic: the vectors of the token's domain, category and request, and a process
that drifts slowly along the request. token_t is the token's own latent. W, V and popularity are random for each
layer. Popularity makes load skew; the shared latents of low rank make co-activation; the domains make drift; what
persists of the context from token to token makes the overlap of consecutive tokens. `Strengths` sets how much of each,
and its defaults were fitted on those four statistics of a real GPT-OSS-20B trace, on nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.errors import OptionError
from placement.model import Model
from placement.parallel import run_tasks
from placement.traces.format import SHARD_TOKENS, RequestEntry, id_dtype
from placement.traces.presets import Shape
from placement.traces.synth_kernels import GUMBEL, add_noise, choose_top, keep_best_groups
from placement.traces.synth_requests import Plan, plan_requests
from placement.traces.write import Piece, TraceWriter
