"""The Markdown result: one table a case, and the verdict."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from machine import describe_machine, input_file
from verdict import Point, better_on_both, distance

DEFAULT = "ours, weight 1.5"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One method on one split, held out; sends and imbalance are means over layers, `worst` is that of the worst."""

    seed: int
    sends: float
    imbalance: float
    worst: float
    seconds: float
    peak_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One method on all splits of a case."""

    case: str
    name: str
    splits: tuple[Measured, ...]

    @property
    def ours(self) -> bool:
        return self.name.startswith("ours")

    def point(self) -> Point:
        return Point(mean(one.sends for one in self.splits), mean(one.imbalance for one in self.splits))


def load(path: Path) -> tuple[list[Row], list[str]]:
    """Rows, and what was not run and why, as `run.py` keeps them."""
    document = json.loads(path.read_text())
    rows = [
        Row(case=row["case"], name=row["name"], splits=tuple(Measured(**split) for split in row["splits"]))
        for row in document["rows"]
    ]
    return rows, document["skipped"]


def input_result(text: str) -> Path:
    """The type of an argument that names a file which `load` reads."""
    path = input_file(text)
    try:
        load(path)
    except (ValueError, KeyError, TypeError) as error:
        raise argparse.ArgumentTypeError(f"{text} is no result of run.py: {error!r}; give a DATE-peers.json") from None
    return path


HEAD = """# Peers: the same traces, splits and evaluator

{machine}

Held-out requests (30%), means over layers and splits ± their spread over splits. *Sends* and *rank imbalance* are
those of `placement evaluate` under the replica choice `min-nodes`, for every row. *CPU s/layer*: every method on one
thread, the fastest split. *Peak MB* is how far the resident memory of the method's own process rose (`getrusage`), the
import of its package included. Ours are `auto` without its bound at several balance weights; **1.5 is the default**.
*All links alike*: ours with `busy_share` 0, which counts sends as the peers do, and not those of the busiest link.

Graph partitioners give nodes; sizes are repaired to the slots, and every node's experts go onto its GPUs by load,
heaviest first, the same way for all. *load*: vertices weigh as much as their load where the package takes weights,
and swaps then bring the nodes within 5% of the mean load: help from us that these peers do not bring, so that they
are judged on both figures. With redundant experts, peers that have no replication of their own get EPLB's counts of
copies; *hottest on every node* puts the hottest experts once on every node instead. EPLB hierarchical takes the
model's routing groups, or 2 a node where there are none. MoETuner and *hops* are written after papers that published
no code. The integer programs get 0.2 units of CP-SAT's deterministic time and at most 3 s a step, which leaves them
unproven, at 256 experts often at their start; papers give theirs far more, so read these rows as a budget, not as what
the model can do. *hops* assumes nodes in a chain: in a tree with random homes its objective is the same for all maps.

*Beyond our front*: empty if one of our points is at least as good as the peer on both figures; else what the nearest
point lacks, in the worse of its two figures. A row beyond the front is a trade that ours does not offer; a row that
says YES in the column before it is plainly better than the default.
"""


def report(rows: Sequence[Row], skipped: Sequence[str]) -> str:
    titles = list(dict.fromkeys(row.case for row in rows))
    lines = [HEAD.format(machine=describe_machine()), "## Verdict", ""]
    for title in titles:
        lines += verdict_lines([row for row in rows if row.case == title])
    for title in titles:
        chosen = [row for row in rows if row.case == title]
        lines += ["", f"## {title}", "", f"Splits {', '.join(str(one.seed) for one in chosen[0].splits)}.", ""]
        lines += case_lines(chosen)
    if skipped:
        lines += ["", "## Not run", "", *(f"- {why}" for why in skipped)]
    return "\n".join(lines) + "\n"


def verdict_lines(rows: Sequence[Row]) -> list[str]:
    """One line: who is better than the default on both figures, and who lies beyond the front and by how much."""
    default, front = next(row for row in rows if row.name == DEFAULT), [row.point() for row in rows if row.ours]
    peers = [row for row in rows if not row.ours]
    better = [f"{row.name} ({_answer(row, default)})" for row in peers if better_on_both(row.point(), default.point())]
    beyond = sorted(((distance(row.point(), front), row.name) for row in peers), reverse=True)
    beyond_text = "; ".join(f"{name} by {miss:.2%}" for miss, name in beyond if miss > 0)
    return [
        f"- **{rows[0].case}**: better than the default on both: {', '.join(better) or 'none'} (of {len(peers)}); "
        f"beyond our front: {beyond_text or 'none'}."
    ]


def _answer(peer: Row, default: Row) -> str:
    """Whether the peer's means are better on both, and on how many of the splits that both were measured on it is."""
    if not better_on_both(peer.point(), default.point()):
        return "no"
    theirs, mine = ({one.seed: Point(one.sends, one.imbalance) for one in row.splits} for row in (peer, default))
    shared = theirs.keys() & mine.keys()
    return f"YES, on {sum(better_on_both(theirs[seed], mine[seed]) for seed in shared)} of {len(shared)} splits"


def case_lines(rows: Sequence[Row]) -> list[str]:
    default = next(row for row in rows if row.name == DEFAULT)
    eplb = next(row.point() for row in rows if row.name == "EPLB global")
    front = [row.point() for row in rows if row.ours]
    lines = [
        "| method | sends/token | of eplb's | rank imbalance | worst layer | CPU s/layer | peak MB "
        "| better than default on both | beyond our front |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in [row for row in rows if row.ours] + sorted(
        (row for row in rows if not row.ours), key=lambda row: row.point().sends
    ):
        point = row.point()
        beyond = 0.0 if row.ours else distance(point, front)
        name = f"**{row.name}**" if row.name == DEFAULT else row.name
        lines.append(
            f"| {name} | {_spread([one.sends for one in row.splits])} | {point.sends / eplb.sends:.3f} "
            f"| {_spread([one.imbalance for one in row.splits])} | {max(one.worst for one in row.splits):.2f} "
            f"| {min(one.seconds for one in row.splits):.3f} | {max(one.peak_bytes for one in row.splits) / 1e6:.0f} "
            f"| {'' if row.ours else _answer(row, default)} "
            f"| {f'{beyond:.2%}' if beyond else ''} |"
        )
    return lines


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")
