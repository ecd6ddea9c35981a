"""The error tree. Every message says what is wrong, which value, what is allowed and how to mend it.

PlacementError             exit code 1
├── InputError             exit code 2: something given to us is wrong
│   ├── TraceError         a trace, its manifest or one of its shards
│   ├── MapError           a placement map
│   ├── ClusterError       the description of the cluster
│   ├── OptionError        an option of a command or call
│   └── OutputError        a file that cannot be written
├── InfeasibleError        exit code 3: no placement can satisfy what was asked
└── LimitError             exit code 4: none was found within the limit
"""

from __future__ import annotations


class PlacementError(Exception):
    """Base of all errors that this library raises on purpose; `exit_code` is what the command line returns."""

    exit_code = 1


class InputError(PlacementError):
    exit_code = 2


class TraceError(InputError):
    pass


class MapError(InputError):
    """A placement map is invalid; `faults` lists every fault that was found, not only the first."""

    def __init__(self, message: str, faults: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.faults = faults


class ClusterError(InputError):
    pass


class OptionError(InputError):
    pass


class OutputError(InputError):
    pass


class InfeasibleError(PlacementError):
    exit_code = 3


class LimitError(PlacementError):
    exit_code = 4
