"""A document with every part."""

from __future__ import annotations

import json
from typing import Any

import pytest

from placement import Cluster, Options, open_trace, solve
from placement import solution_document as to_document


@pytest.fixture(scope="module")
def full_document(tmp_path_factory: pytest.TempPathFactory, write_trace: Any) -> dict[str, Any]:
    """A document with every part, as `solve` writes it."""
    trace = open_trace(write_trace(tmp_path_factory.mktemp("trace")).folder)
    cluster = Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=3)
    document = to_document(solve(trace, cluster, Options(work_limit=200), workers=1))
    return json.loads(json.dumps(document))  # tuples become the lists that a reader sees
