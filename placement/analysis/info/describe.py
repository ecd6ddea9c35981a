"""`describe`: the facts of a trace, and its study, from one reading."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace

from placement.analysis.info.facts import TraceInfo, facts_of
from placement.analysis.info.reading import read_counts, read_trace
from placement.analysis.info.study import StudyOptions, study_of
from placement.traces.trace import Trace
from placement.workload.counts_file import ExpertCounts


def describe(
    source: Trace | ExpertCounts,
    executor: Executor | None = None,
    progress: Callable[[int], None] | None = None,
    *,
    study: StudyOptions | None = None,
) -> TraceInfo:
    """Describe the kept tokens of a trace, which is read block by block and never held as a whole.

    Overlap compares tokens of the same shard only. Domain drift, and all of the study but loads and the overlap of
    consecutive tokens, is that of a uniform sample of at most 1,024 requests. The answer does not depend on
    the executor.

    Args:
        source: A trace, or counts without tokens, of which little but the load is known.
        executor: Counts layers side by side; None: one after another.
        progress: Called with the tokens of each block that was counted.
        study: What to study besides; None: nothing.

    Raises:
        OptionError: The options of the study do not fit the model.
        TraceError: Expert ids are out of range or repeated in a top-k set, or there are no tokens.
    """
    nodes = None if study is None else study.checked_nodes(source.model)
    by = "domain" if study is None else study.by
    if isinstance(source, ExpertCounts):
        found = read_counts(source, num_nodes=nodes)
    else:
        found = read_trace(source, by=by, num_nodes=nodes, executor=executor, progress=progress)
    info = facts_of(found)
    if study is None or found.sample is None or nodes is None:
        return info
    return replace(info, study=study_of(info, found, found.sample, study, nodes, executor))
