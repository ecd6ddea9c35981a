"""Fit what one unit of each term takes to measured times: non-negative least squares of the relative errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from placement.cost.step_time import Term

Floats = npt.NDArray[np.float64]
FREE = (Term.PACKING, Term.LATENCY)  # of which a unit may take no time
APART = 1e-3  # least part of a term's shares of the times that no term before it in ORDER explains
UNSURE = 0.5  # largest standard error of what a unit takes, as a share of that
SAME = 4.0  # by how many variances the squares of the errors may grow where a value is none that the times refute
ORDER = (Term.NETWORK, Term.COMPUTE, Term.LATENCY, Term.MEMORY, Term.PACKING, Term.FAN_OUT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What a unit of each term takes.

    Attributes:
        unit_us: Microseconds of a unit of each term, float64 [6].
        kept: Why a term was not fitted, by term.
        modelled_us_R: The fitted times of the rows, float64 [R].
    """

    unit_us: Floats
    kept: Mapping[Term, str]
    modelled_us_R: Floats


def fit_unit_times(count_R6: Floats, time_us_R: Floats, given_us: Floats) -> Fit:
    """The times of a unit for which the rows' modelled times are nearest to the measured ones, in the relative errors.

    A term that no row has, that changes from row to row as others do, or with which the times do not grow, keeps what
    was given.

    Args:
        count_R6: Units of each term in each row, float64 [R, 6].
        time_us_R: Measured microseconds, more than 0, float64 [R].
        given_us: What a unit takes where a term cannot be fitted, float64 [6].
    """
    share_R6 = count_R6 / time_us_R[:, None]
    kept = {term: "no row has a part of this kind" for term in Term if not count_R6[:, term].any()}
    fitted: list[Term] = []
    for term in (one for one in ORDER if one not in kept):
        if _is_apart(share_R6[:, fitted], share_R6[:, term]):
            fitted.append(term)
        else:
            kept[term] = "it changes from row to row as others do"
    unit_us, left = _solved(share_R6, fitted, given_us)
    for term in _unsure(share_R6, fitted, unit_us, left):
        rest = [one for one in fitted if one != term]
        other_us, other_left = _solved(share_R6, rest, given_us)
        if other_left <= left * (1 + SAME / max(len(time_us_R) - len(fitted), 1)):
            fitted, unit_us, left = rest, other_us, other_left
            kept[term] = "the times are too few or too noisy to refute this value"
    while idle := [term for term in fitted if unit_us[term] == 0 and term not in FREE]:
        fitted.remove(idle[-1])
        kept[idle[-1]] = "the times do not grow with it"
        unit_us, left = _solved(share_R6, fitted, given_us)
    return Fit(unit_us=unit_us, kept=kept, modelled_us_R=count_R6 @ unit_us)


def _is_apart(others_RX: Floats, column_R: Floats) -> bool:
    """True if a part of the column is no sum of multiples of the others."""
    if not others_RX.shape[1]:
        return True
    size = np.linalg.norm(others_RX, axis=0)
    factors, *_ = np.linalg.lstsq(others_RX / size, column_R, rcond=None)
    rest_R = column_R - others_RX / size @ factors
    return len(column_R) > others_RX.shape[1] and bool(np.linalg.norm(rest_R) > APART * np.linalg.norm(column_R))


def _solved(share_R6: Floats, fitted: list[Term], given_us: Floats) -> tuple[Floats, float]:
    """(times of a unit, those of `fitted` by non-negative least squares; sum of the squares of the relative errors)."""
    unit_us = np.array(given_us, dtype=np.float64)
    unit_us[fitted] = 0.0
    left_R = 1.0 - share_R6 @ unit_us
    if fitted:
        size = share_R6[:, fitted].max(axis=0)
        unit_us[fitted] = nnls(share_R6[:, fitted] / size, left_R)[0] / size
    return unit_us, float(np.square(share_R6 @ unit_us - 1.0).sum())


def _unsure(share_R6: Floats, fitted: list[Term], unit_us: Floats, left: float) -> list[Term]:
    """Terms whose fitted time of a unit has a standard error above UNSURE of it, the last of ORDER first."""
    share_RX = share_R6[:, fitted] * np.where(unit_us[fitted] > 0, unit_us[fitted], 1.0)
    variance = left / max(len(share_RX) - len(fitted), 1)
    error_X = np.sqrt(variance * np.diag(np.linalg.pinv(share_RX.T @ share_RX)))
    return [term for term, error in zip(fitted[::-1], error_X[::-1], strict=True) if error > UNSURE]
