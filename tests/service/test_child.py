"""What the process of a job says of what went wrong."""

from __future__ import annotations

from placement_api.jobs.child import _told
from placement_api.problems import Problem


def test_where_files_lie_here_is_not_told() -> None:
    """Neither the data folder nor a folder of registered traces; the ends of the paths stay, and say which file."""
    task = {"data": "/srv/data", "traces": ["/srv/data/traces/5f0a", "/mnt/monday/decode"]}
    problem = Problem(
        422,
        "/srv/data/traces/5f0a/shard-0 and /mnt/monday/decode/shard-1 differ",
        "write /mnt/monday/decode again",
    )
    told = _told(problem, task)
    assert told["detail"] == "traces/5f0a/shard-0 and decode/shard-1 differ"
    assert told["mend"] == "write decode again"
