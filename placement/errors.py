"""The error tree. Every message says what is wrong, which value, what is allowed and how to mend it.

The tree::

    PlacementError             exit code 1
    ├── InputError             exit code 2: something given to us is wrong
    │   ├── TraceError         a trace, its manifest or one of its shards
    │   ├── MapError           a placement map
    │   ├── ClusterError       the description of the cluster
    │   ├── OptionError        an option of a command or call
    │   └── OutputError        a file that cannot be written
    ├── InfeasibleError        exit code 3: no placement can satisfy what was asked
    ├── LimitError             exit code 4: none was found within the limit
    │   └── TimeLimitError     a service ended a job that ran for as long as it lets one run
    ├── RankError              exit code 5: a rank of a running group failed, was late or disagreed
    └── WorkerError            exit code 6: workers of other machines failed at a task again and again
"""

from __future__ import annotations

TYPE_URI = "urn:placement:error:"
UNPRINTABLE = "\N{REPLACEMENT CHARACTER}"
LONGEST_MESSAGE = 4000


def printable(text: str) -> str:
    """`text` without the escape sequences, line ends and broken characters that names from files may hold."""
    return "".join(letter if letter.isprintable() else UNPRINTABLE for letter in text)


def shortened(text: str, longest: int = LONGEST_MESSAGE) -> str:
    """`text`, or where it is longer its beginning and its end: what is wrong, and how to mend it."""
    if len(text) <= longest:
        return text
    return f"{text[: longest // 2]} [...] {text[-longest // 4 :]}"


class PlacementError(Exception):
    """Base of all errors that this library raises on purpose; `exit_code` is what the command line returns.

    A message is one line: names in it may come from files, so line ends and terminal codes are made visible, and of a
    very long one the middle is left out.
    """

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(printable(shortened(message)))


class InputError(PlacementError):
    """Something that was given to us is wrong; `faults` lists every fault that was found, not only the first."""

    exit_code = 2

    def __init__(self, message: str, faults: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.faults = faults


class TraceError(InputError):
    """A trace, its manifest or one of its shards is wrong."""


class MapError(InputError):
    """A placement map is invalid."""


class ClusterError(InputError):
    """The description of the cluster is wrong."""


class OptionError(InputError):
    """An option of a command or call is wrong."""


class OutputError(InputError):
    """A file or folder cannot be written."""


class InfeasibleError(PlacementError):
    """No placement can satisfy what was asked."""

    exit_code = 3


class LimitError(PlacementError):
    """No placement that satisfies what was asked was found within the limit."""

    exit_code = 4


class TimeLimitError(LimitError):
    """A job ran for as long as a service lets one run, and was ended."""


class RankError(PlacementError):
    """A rank of a running group failed, came too late or disagrees with the others; `ranks` says which."""

    exit_code = 5

    def __init__(self, message: str, ranks: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.ranks = ranks


class WorkerError(PlacementError):
    """A worker on another machine cannot run our tasks, or a task died again and again with its worker."""

    exit_code = 6


def error_of_type(uri: str) -> type[PlacementError] | None:
    """The class of this tree that a service named as the `type` of a problem (RFC 9457); None of other types."""
    found = globals().get(uri.removeprefix(TYPE_URI)) if uri.startswith(TYPE_URI) else None
    return found if isinstance(found, type) and issubclass(found, PlacementError) else None


def type_of_error(error: PlacementError) -> str:
    """The URI by which a service names the class of an error, or the nearest above it in this tree."""
    return TYPE_URI + next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == __name__)
