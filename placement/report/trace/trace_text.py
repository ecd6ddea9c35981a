"""What a study found, in sentences."""

from __future__ import annotations

import math

from placement.analysis.info import Study
from placement.analysis.info.findings import HomeFindings
from placement.errors import printable
from placement.report.drawing.numbers import change, number, percent, plural

LITTLE, MUCH = 0.02, 0.06  # shares of a request's assignments: gains hardly worth their trouble, large gains
PUBLISHED = "the study that this follows found 0.82, 0.68 and 0.55 for three models, from prefill to decode"


def headline(study: Study) -> str:
    """The most important findings, as far as the trace allows them."""
    said = []
    skew = study.mean("load_skew")
    said.append(f"The busiest expert of a layer has {number(skew)} times the mean load.")
    if study.homes is not None:
        gain = study.homes.first - study.homes.all
        said.append(
            f"Knowing a request's {study.first_part} lets its home serve up to {points(gain)} more of its assignments: "
            f"grouping requests has {_amount(gain)} to gain here."
        )
    return " ".join(said)


def findings(study: Study) -> dict[str, list[str]]:
    """What was found, in sentences under their titles; only what the trace allows."""
    said = {
        "load": [load_words(study)],
        f"how the {_plural(study)} differ": domain_words(study),
        f"telling the {study.by}": telling_words(study),
        "foretelling": foretelling_words(study),
        "what tokens share": overlap_words(study),
        "what can be gained": gain_words(study),
    }
    return {title: sentences for title, sentences in said.items() if sentences}


def load_words(study: Study) -> str:
    worst = max(study.layers, key=lambda layer: layer.load_skew)
    ranks = study.num_nodes * study.gpus_per_node
    text = (
        f"The busiest expert of a layer has {number(study.mean('load_skew'))} times the mean load (worst: layer "
        f"{worst.layer_id}, {number(worst.load_skew)}), and the busiest tenth of the experts takes "
        f"{percent(study.mean('top_share'))} of the assignments. With experts in order of their ids, the busiest of "
        f"{plural(study.num_nodes, 'node')} has {number(study.mean('node_imbalance'))} times the mean"
    )
    if ranks > study.num_nodes:
        text += f", the busiest of {ranks} ranks {number(study.mean('rank_imbalance'))} times"
    return text + "."


def domain_words(study: Study) -> list[str]:
    found = study.similarity
    if found is None:
        return []
    most, least = found.most[0], found.least[0]
    told = [
        f"The loads of a {study.by} lie {number(study.mean('drift'))} from those of all (total variation, 0 to 1); "
        f"requests dealt to random {_plural(study)} would lie {number(study.mean('drift_chance'))} from them.",
        f"Most alike are {_name(most.one)} and {_name(most.other)} (cosine {number(most.similarity)}, total variation "
        f"{number(most.distance)}), least alike {_name(least.one)} and {_name(least.other)} "
        f"({number(least.similarity)}, {number(least.distance)}).",
    ]
    alike = found.as_halves()
    if alike:
        told.append(
            f"{plural(len(alike), 'pair')} of {_plural(study)} {'is' if len(alike) == 1 else 'are'} as alike as the "
            f"halves of either, {_name(alike[0].one)} and {_name(alike[0].other)} first of all: their requests can "
            f"hardly be told apart."
        )
    return told


def telling_words(study: Study) -> list[str]:
    telling = study.telling
    if telling is None:
        return []
    error = math.sqrt(telling.first.accuracy * (1 - telling.first.accuracy) / telling.requests)
    told = [
        f"From its {telling.first.seen} alone, the {study.by} of {percent(telling.first.accuracy)} of "
        f"{plural(telling.requests, 'held-out request')} is told right (standard error {points(error)}); from all its "
        f"tokens, of "
        f"{percent(telling.whole.accuracy)}. Always naming the most frequent of {len(telling.domains)} "
        f"{_plural(study)} is right for {percent(telling.majority)}."
    ]
    if telling.kinds is not None:
        told.append(
            f"Where {_plural(study)} that are as alike as their halves count as one, {len(set(telling.kinds))} kinds "
            f"are left: the kind is told right for {percent(telling.kind_accuracy)}; always naming the most frequent "
            f"is right for {percent(telling.kind_majority)}."
        )
    sizes = [sum(row) for row in telling.confusion]
    rows = range(len(sizes))
    best = max(rows, key=lambda d: telling.confusion[d][d] / sizes[d])
    told.append(
        f"Best told is {_name(telling.domains[best])}, {telling.confusion[best][best]} of {sizes[best]} requests."
    )
    wrong = [(telling.confusion[a][b], a, b) for a in rows for b in rows if a != b]
    number_wrong, true, named = max(wrong, key=lambda one: (one[0], -one[1], -one[2]))
    if number_wrong:
        told[-1] = told[-1][:-1] + (
            f"; most often mistaken is {_name(telling.domains[true])} for {_name(telling.domains[named])}, "
            f"{number_wrong} of {sizes[true]}."
        )
    return told


def foretelling_words(study: Study) -> list[str]:
    own = study.mean("own")
    if own is None:
        return []
    first, rest = parts(study)
    text = f"The counts of experts in {first} of a request correlate {number(own)} with those in {rest}"
    same, other = study.mean("same_domain"), study.mean("other_domain")
    if same is not None and other is not None:
        text += (
            f"; with those of another request of its {study.by} {number(same)}, with those of a request of another "
            f"{study.by} {number(other)}"
        )
    return [f"{text} (mean over layers; {PUBLISHED})."]


def overlap_words(study: Study) -> list[str]:
    chance = study.mean("overlap_chance")
    following, request, domain = (study.mean(f"overlap_{what}") for what in ("next", "request", "domain"))
    said = [
        f"{percent(value)} with {what}"
        for value, what in (
            (following, "the token before it"),
            (request, "any other token of its request"),
            (domain, f"a token of another request of its {study.by}"),
        )
        if value is not None
    ]
    if not said:
        return []
    told = [f"A token shares of its experts {', '.join(said)}; popularity alone gives {percent(chance)}."]
    if study.request_share is not None:
        between = f"{percent(study.request_share)} lies between requests"
        if study.domain_share is not None:
            between += f" ({percent(max(study.domain_share, 0.0))} between {_plural(study)})"
        told.append(
            f"So of what decides which experts a token visits, {between}; the rest differs from token to token within "
            f"a request, and no grouping of requests can use it."
        )
    return told


def gain_words(study: Study) -> list[str]:
    told = [] if study.homes is None else _homes_words(study, study.homes)
    shared, own = study.mean("balance_shared"), study.mean("balance_own")
    if shared is not None and own is not None:
        ranks = study.num_nodes * study.gpus_per_node
        told.append(
            f"Balance: packed by load on {plural(ranks, 'rank')}, one map for all has rank imbalance {number(shared)} "
            f"on the traffic of one {study.by}, a map of its own {number(own)} ({change(own, shared)}, on requests "
            f"that neither was packed for): maps by {study.by} have {_amount((shared - own) / shared)} to gain in "
            f"balance."
        )
    return told


def _homes_words(study: Study, homes: HomeFindings) -> list[str]:
    by_domain = None if homes.domain is None else homes.domain - homes.all
    told = [
        f"Grouping has {_amount(homes.first - homes.all)} to gain: a home with the experts that a request's "
        f"{study.first_part} used most serves {percent(homes.first)} of the assignments of {parts(study)[1]}, one "
        f"with those that all requests use most {percent(homes.all)}, and no home more than {percent(homes.best)}."
    ]
    if by_domain is not None:
        told.append(
            f"Homes by {study.by} have {_amount(by_domain)} to gain: the experts of the {study.by} serve "
            f"{percent(homes.domain)}. These are ceilings: an expert lies on one node, and other groups want it too."
        )
    saved, most = (1 - value / homes.sends_random for value in (homes.sends_first, homes.sends_best))
    told.append(
        f"Homes alone, with experts left in order of their ids, save {percent(saved)} of the "
        f"{number(homes.sends_random)} sends per token, and at the very best {percent(most)}"
        + (": experts have to be placed for the groups." if most < MUCH else ".")
    )
    return told


def parts(study: Study) -> tuple[str, str]:
    """What the two parts of a request are called."""
    return ("the prefill", "the decode") if study.first_part == "prefill" else ("the first quarter", "the rest")


def points(share: float) -> str:
    return f"{number(100 * share)} points"


def _amount(share: float) -> str:
    return "hardly anything" if share < LITTLE else "something" if share < MUCH else "much"


def _plural(study: Study) -> str:
    return "categories" if study.by == "category" else "domains"


def _name(name: str) -> str:
    return printable(name)
