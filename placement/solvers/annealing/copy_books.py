"""The bookkeeping of the search with copies: one of three kinds, by the number of nodes.

A kind is a module with a class and these functions of it. Compiled code calls those of the books that it is given. What
each proposal asks is a part of the books of its own (`asked`): a call hands over every array of its arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
from numba.extending import overload

from placement.cost import node_families
from placement.solvers.annealing import family_books, reach_books, reaches, set_histogram, wide_books
from placement.solvers.annealing.anneal_common import Floats, Incidence
from placement.support.kernel import UNCOUNTED

Books = family_books.FamilyBooks | reach_books.ReachBooks | wide_books.WideBooks
Asked = set_histogram.Histogram | wide_books.Entries
F = TypeVar("F", bound=Callable[..., Any])

KINDS: dict[type, ModuleType] = {
    family_books.FamilyBooks: family_books,
    reach_books.ReachBooks: reach_books,
    wide_books.WideBooks: wide_books,
    set_histogram.Histogram: set_histogram,
    wide_books.Entries: wide_books,
}


def books_class(num_nodes: int) -> type:
    """The class of books that so many nodes want."""
    if num_nodes <= node_families.MOST_NODES:
        return family_books.FamilyBooks
    return reach_books.ReachBooks if num_nodes <= reaches.MOST_NODES else wide_books.WideBooks


def books_of(num_experts: int, num_nodes: int, inc: Incidence) -> Books:
    """Books that know no set yet."""
    books: Books = KINDS[books_class(num_nodes)].no_books(num_experts, num_nodes, inc)
    return books


def _of_kind(function: F) -> F:
    """Let compiled code call the function of the same name in the module of its last argument's class."""

    @wraps(function)
    def compiled(*types: Any) -> Any:
        return getattr(KINDS[types[-1].instance_class], function.__name__).py_func

    overload(function, strict=False, jit_options=UNCOUNTED)(compiled)  # type: ignore[arg-type]  # annotations differ
    return function


@_of_kind
def book_sets(books: Books) -> None:
    """Book all sets."""
    KINDS[type(books)].book_sets(books)


@_of_kind
def update_expert(e: int, books: Books) -> None:
    """Bring the sets of an expert, which changed nodes, up to date."""
    KINDS[type(books)].update_expert(e, books)


@_of_kind
def change_of_sends(e: int, before: np.uint64, host: np.uint64, asked: Asked) -> int:
    """Change of N * sends over all sets if expert e alone moved from the nodes `before` to the nodes `host`."""
    return int(KINDS[type(asked)].change_of_sends(e, before, host, asked))


@_of_kind
def change_of_both(u: int, host_u: np.uint64, v: int, host_v: np.uint64, books: Books) -> int:
    """What the sets that hold both u and v add to the changes of u alone and of v alone."""
    return int(KINDS[type(books)].change_of_both(u, host_u, v, host_v, books))


@_of_kind
def shares_of_load(e: int, host: np.uint64, share_N: Floats, books: Books) -> None:
    """Write the share of e's load that each node serves if e is on the nodes `host`."""
    KINDS[type(books)].shares_of_load(e, host, share_N, books)


@_of_kind
def measure(share_EN: Floats, books: Books) -> float:
    """Write the shares of load that nodes serve, exactly, and return N * sends of all sets."""
    return float(KINDS[type(books)].measure(share_EN, books))


@_of_kind
def add_into(e: int, host: np.uint64, more_N: Floats, books: Books) -> None:
    """Add to `more_N` by how much more goes into each node, N times, if expert e alone moved to the nodes `host`."""
    KINDS[type(books)].add_into(e, host, more_N, books)
