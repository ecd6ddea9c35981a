"""What `advise` answers, in sentences: of every question the short answer first."""

from __future__ import annotations

from placement.analysis.advise.advice import Advice, Carried
from placement.analysis.advise.capacity_factor import IN_ORDER, MIXED, WHOLE, CapacityFactors, Dropping
from placement.analysis.advise.decay import Decay
from placement.analysis.advise.map_cost import EPLB, LINEAR, LITTLE, SOLVED
from placement.analysis.advise.redundancy import SLOT_PRICE
from placement.cost.transports import TRANSPORTS
from placement.errors import printable
from placement.pipeline.by_class_solution import ONE
from placement.report.advice.advice_steps import step_words
from placement.report.drawing.numbers import human_bytes, number, percent, plural

QUESTIONS = {
    "worth": "Is placing experts worth it here?",
    "transports": "On which all-to-all backend?",
    "redundancy": "How many redundant experts?",
    "phases": "One map, or one for prefill and one for decode?",
    "grouping": "Are requests worth grouping by node?",
    "steps": "Does the gain hold in steps of few tokens?",
    "capacity": "Which capacity factor?",
    "drift": "How fast does the gain decay when traffic shifts?",
}
VIEWS = {WHOLE: "all tokens at once", MIXED: "steps, requests mixed", IN_ORDER: "steps, request after request"}
SIZES = (
    "Bytes, bandwidths and speeds are the defaults (experts of DeepSeek-V3 in bf16, 400 Gbit/s): describe yours in the "
    "cluster, with --cluster FILE or in a request."
)


def answers(advice: Advice) -> dict[str, list[str]]:
    """Question -> sentences; of an absent answer why it is."""
    said = {
        "worth": worth_words(advice),
        "transports": transport_words(advice),
        "redundancy": redundancy_words(advice),
        "phases": phase_words(advice),
        "grouping": grouping_words(advice),
        "steps": [] if advice.steps is None else step_words(advice.steps),
        "capacity": capacity_words(advice.capacity, advice.cluster.num_ranks),
        "drift": [sentence for one in advice.drift for sentence in drift_words(one)],
    }
    for name, why in advice.absent.items():
        said[name.split()[0]].append(f"Not answered{name.removeprefix(name.split()[0])}: {why}.")
    return said


def basis(advice: Advice) -> str:
    """What maps are compared by."""
    return "rank imbalance" if advice.worth.maps[SOLVED].step_us is None else "modelled MoE step"


def worth_words(advice: Advice) -> list[str]:
    worth = advice.worth
    linear, eplb, solved = (worth.maps[name] for name in (LINEAR, EPLB, SOLVED))
    begin = {"hardly": "Hardly", "some": "Somewhat", "much": "Yes"}[worth.verdict]
    told = [
        f"{begin}: with the solved map the {basis(advice)} is {_less(worth.over_linear)} than with experts in order of "
        f"their ids (linear) and {_less(worth.over_eplb)} than with eplb, on {advice.measured_on} requests."
        + (_called_little() if worth.verdict == "hardly" else "")
    ]
    figures = f"rank imbalance is {number(linear.imbalance)} under linear, {number(eplb.imbalance)} under eplb, "
    figures += f"{number(solved.imbalance)} solved"
    if solved.sends is not None:
        figures += (
            f"; sends per token and layer are {number(linear.sends)}, {number(eplb.sends)} and {number(solved.sends)}"
        )
    told.append(f"{figures[0].upper()}{figures[1:]}.")
    if worth.verdict != "hardly" and worth.over_eplb < LITTLE:
        told.append(f"Where eplb runs already, hardly anything is left to gain: {percent(worth.over_eplb)}.")
    elif worth.verdict != "hardly":
        told.append(f"Balancing by loads alone (eplb) saves {percent(worth.eplb_over_linear)} of linear's.")
    if solved.step_us is not None:
        told.append(
            "The modelled step is that of the MoE layers alone, where all GPUs wait for the busiest; of a whole step "
            "the share is smaller."
        )
    return told


def _less(gain: float) -> str:
    """22.0% less, or 3.10% more."""
    return f"{percent(abs(gain))} {'less' if gain >= 0 else 'more'}"


def _called_little() -> str:
    return f" Less than {_round(LITTLE)} is called hardly anything here."


def _round(share: float) -> str:
    """Of a share that somebody chose: 0.02 -> 2%."""
    return f"{100 * share:g}%"


def transport_words(advice: Advice) -> list[str]:
    told = []
    for one in advice.transports or ():
        linear, solved = one.maps[LINEAR], one.maps[SOLVED]
        carrier = TRANSPORTS.make(one.transport)
        name = f"{one.transport} ({carrier.engines})"
        if carrier.everywhere:
            told.append(
                f"{name} sends every token everywhere: no map changes its {_bytes(one, SOLVED)} per token and layer; "
                f"all that a map can change is rank imbalance, from {number(linear.imbalance)} to "
                f"{number(solved.imbalance)}."
            )
        elif one.fixed:
            told.append(
                f"{name} sends as much under every map here, {_bytes(one, SOLVED)} per token and layer, since no two "
                f"experts of a token share a copy; rank imbalance goes from {number(linear.imbalance)} to "
                f"{number(solved.imbalance)}."
            )
        elif not linear.bytes_per_token:
            told.append(f"{name} sends nothing between nodes here.")
        else:
            told.append(
                f"{name}: {_bytes(one, LINEAR)} per token and layer between nodes under linear, {_bytes(one, EPLB)} "
                f"under eplb, {_bytes(one, SOLVED)} under a map solved for it "
                f"({_less(one.saved or 0.0)} than linear)."
            )
    for name in TRANSPORTS if advice.transports is not None else ():
        fault = TRANSPORTS.make(name).fault(advice.cluster)
        told += [f"{name} is left out: {fault}."] if fault else []
    moving = [one for one in advice.transports or () if (one.saved or 0) >= LITTLE]
    if advice.transports is not None:
        best = max(moving, key=lambda one: one.saved or 0, default=None)
        short = (
            f"On none: no map saves {_round(LITTLE)} or more of what goes between nodes."
            if best is None
            else f"On {_listed([one.transport for one in moving])}; most on {best.transport}, where "
            f"{percent(best.saved)} of the bytes between nodes are saved."
        )
        told.insert(0, short)
    return told


def _bytes(one: Carried, name: str) -> str:
    moved = one.maps[name].bytes_per_token
    return "unknown bytes" if moved is None else human_bytes(moved)


def redundancy_words(advice: Advice) -> list[str]:
    found = advice.redundancy
    first, best, last = found.rows[0], found.recommended, found.rows[-1]
    if best is first:
        least = f"No more than the {first.redundant} that fill the slots" if first.redundant else "No redundant experts"
        short = f"{least}: further slots save too little."
    else:
        cost = best.maps[SOLVED].cost
        short = (
            f"{best.redundant} ({best.slots_per_gpu} slots of a GPU in each layer, {best.further} more than are "
            f"needed): the {basis(advice)} is {_less(1 - cost / first.maps[SOLVED].cost)} than with {first.redundant}, "
            f"for {human_bytes(best.given_up_bytes)} of weights per GPU that the KV cache gives up"
            + ("." if best.kv_share is None else f", {percent(best.kv_share)} of it.")
        )
    told = [
        short,
        f"The rule: every further slot of a GPU must save {_round(SLOT_PRICE)} of the {basis(advice)} with the fewest.",
    ]
    if best is last and best is not first:
        told.append("It is the most that was tried; more may save more.")
    return told


def phase_words(advice: Advice) -> list[str]:
    found = advice.phases
    if found is None:
        return []
    gains = _listed([f"{_less(one.own_gain)} in {one.name}" for one in found.phases])
    short = "One map is enough" if found.verdict == ONE else "One for each"
    return [
        f"{short}: with a map of its own the modelled step is {gains} than with one map for both."
        + (_called_little() if found.verdict == ONE else "")
    ]


def grouping_words(advice: Advice) -> list[str]:
    found = advice.grouping
    if found is None:
        return []
    begin = {"hardly": "Hardly", "some": "Somewhat", "much": "Yes"}[found.verdict]
    seen = "prefill" if found.home_from == "prefill" else f"first {_round(float(found.home_from))}"
    best, random = found.maps[found.best], found.maps[SOLVED]
    return [
        f"{begin}: where a router chooses the home of a request from its {seen}, the modelled step of the rest is "
        f"{_less(found.gain)} than with random homes under the solved map."
        + (_called_little() if found.verdict == "hardly" else ""),
        f"Sends go from {number(random.sends)} to {number(best.sends)} per token and layer, of "
        f"{plural(found.requests, 'held-out request')}; whether your front end can choose the node of a request is "
        f"yours to know.",
    ]


def capacity_words(found: CapacityFactors, num_ranks: int) -> list[str]:
    told, size = [], plural(found.step_tokens // num_ranks, "token")
    for name, dropping in found.overall.items():
        view = VIEWS[name]
        if name != WHOLE:
            view = f"{plural(found.steps[name], 'step')} of {size} a GPU, {view.removeprefix('steps, ')}"
        told.append(f"{view[0].upper()}{view[1:]}: {_factor(found, dropping)}.")
    by = IN_ORDER if IN_ORDER in found.overall else WHOLE
    largest = max(found.layers, key=lambda layer: (layer.by[by].peak, -layer.layer_id))
    told.append(
        f"Without a limit the busiest expert has {number(found.overall[by].peak)} times the mean load ({VIEWS[by]}), "
        f"most in layer {largest.layer_id}, {number(largest.by[by].peak)} times. The table has the factor of every "
        f"layer."
    )
    if IN_ORDER not in found.overall:
        told.append(
            f"Loads are those of the whole input: there is no full step of {size} a GPU to look at. A step is "
            f"less even than that."
        )
    else:
        told.append(
            "Which steps are like yours: decode mixes many requests, prefill takes one prompt after another. What "
            "dropping does to answers only an evaluation tells."
        )
    return [_short_factor(found), *told]


def _short_factor(found: CapacityFactors) -> str:
    factors = [one.factor for name, one in found.overall.items() if name != WHOLE] or [
        found.overall[WHOLE].factor,
    ]
    known = [factor for factor in factors if factor is not None]
    limit = f"at most {_round(found.most_dropped)} of the assignments dropped"
    if len(known) < len(factors):
        return f"More than {found.factors[-1]:g} for {limit}."
    low, high = min(known), max(known)
    return f"{low:g}{'' if low == high else f' to {high:g}'} for {limit}."


def _factor(found: CapacityFactors, dropping: Dropping) -> str:
    if dropping.factor is None:
        return f"more than {found.factors[-1]:g}, which drops {percent(dropping.dropped[-1])}"
    return f"{dropping.factor:g}, which drops {percent(dropping.dropped[found.factors.index(dropping.factor)])}"


def drift_words(found: Decay) -> list[str]:
    names = [printable(name) for name in found.names]
    shifts = found.shifts()
    if not shifts:
        return [
            f"Between {_parts(found)} there is hardly any gain to lose: maps solved for each save less than "
            f"{_round(LITTLE)} of the modelled step."
        ]
    told = []
    least, v, w = shifts[0]
    if found.by == "domain":
        told.append(
            f"After the traffic shifts from one domain to another, a map keeps on average {percent(found.mean_kept)} "
            f"of the gain over linear that a map solved for the new traffic has."
        )
        told.append(
            f"Least: solved for {names[v]}, after the traffic shifts to {names[w]} the map {_keeps(least)}. "
            f"Most: {_most(found, names)}."
        )
    else:
        later = [(names[w], kept) for w in range(1, len(names)) if (kept := found.kept(0, w)) is not None]
        told.append(
            f"Solved for {names[0]} of the trace, the map keeps "
            f"{_listed([f'{percent(kept)} in {name}' for name, kept in later])} of the gain that solving anew has; "
            f"windows are in the order in which the trace holds its requests."
            if later
            else f"After {names[0]} of the trace there is hardly any gain to keep."
        )
    all_kept = [(kept, w) for w in range(len(names)) if (kept := found.all_kept(w)) is not None]
    least, w = min(all_kept)
    mean = sum(kept for kept, _ in all_kept) / len(all_kept)
    told.append(
        f"One map for all {_parts(found)} keeps {percent(mean)} on average, least in {names[w]}: {percent(least)}."
    )
    if max(kept for kept, _ in all_kept) > 1 or shifts[-1][0] > 1:
        told.append("More than 100%: solving anew from the few requests there did worse than that map.")
    return told


def _most(found: Decay, names: list[str]) -> str:
    kept, v, w = found.shifts()[-1]
    return f"from {names[v]} to {names[w]} it {_keeps(kept)}"


def _keeps(kept: float) -> str:
    return f"keeps {percent(kept)} of it" if kept >= 0 else f"is worse than linear ({percent(kept)})"


def _parts(found: Decay) -> str:
    return f"{len(found.names)} {'domains' if found.by == 'domain' else 'windows'}"


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
