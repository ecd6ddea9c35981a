"""How far off the lengths are that `placement route` expects of answers, beside one mean for all.

python benchmarks/lengths.py TRACE --texts TEXTS.npz [--orders 20]

Requests come in random orders, each answered before the next one comes. The first 30% of an order are learned from and
not counted. No request says how many tokens it allows. TEXTS.npz is as of `homes.py`.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from machine import input_texts, input_trace, run_script

sys.path.append(str(Path(__file__).parents[1] / "api"))
from placement_api.proxy.asked import Asked
from placement_api.proxy.lengths import Lengths

from placement import open_trace

BEFORE = 0.3
ASKED = Asked(text="", ids=[], new_tokens=None, answers=1, session=None, shared=0.0, labels={})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("trace", type=input_trace)
    parser.add_argument("--texts", type=input_texts, required=True)
    parser.add_argument("--orders", type=int, default=20)
    args = parser.parse_args()
    trace = open_trace(args.trace)
    texts = np.load(args.texts, allow_pickle=False)
    tokens_Q = np.diff(texts["offsets"])
    answer_Q = tokens_Q - texts["prompt_tokens"]
    plain = [ASKED] * len(answer_Q)
    labelled = [replace(ASKED, labels={"domain": one.domain or ""}) for one in trace.requests]
    print(f"{trace.model.name}: {len(answer_Q)} answers of {answer_Q.mean():.0f} tokens in the mean.\n")
    print("| expected | off, tokens, mean |\n|---|---|")
    fixed = np.abs(tokens_Q.mean() - answer_Q).mean()
    print(f"| the mean tokens of a request, as before the first answer | {fixed:.0f} |")
    print(f"| learned | {off(plain, answer_Q, tokens_Q.mean(), args.orders):.0f} |")
    print(f"| learned, by domain | {off(labelled, answer_Q, tokens_Q.mean(), args.orders):.0f} |")


def off(asked: list[Asked], answer_Q: np.ndarray, first: float, orders: int) -> float:
    """Tokens between what is expected of a request and what its answer has, mean."""
    found = []
    for seed in range(orders):
        lengths = Lengths()
        for at, q in enumerate(np.random.default_rng(seed).permutation(len(answer_Q)).tolist()):
            if at >= BEFORE * len(answer_Q):
                found.append(abs(lengths.expected(asked[q], first) - answer_Q[q]))
            lengths.learn(asked[q], int(answer_Q[q]))
    return float(np.mean(found))


if __name__ == "__main__":
    run_script(main)
