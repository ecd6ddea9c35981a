"""What a trace holds and how its routing looks; on demand what grouping and maps by domain rest on, the study of
"Expert Activation Patterns" (arXiv 2604.23150) on one's own traffic."""

from placement.analysis.info.describe import describe
from placement.analysis.info.facts import LayerInfo, TraceInfo
from placement.analysis.info.findings import LayerStudy, Study
from placement.analysis.info.study import StudyOptions

__all__ = ["LayerInfo", "LayerStudy", "Study", "StudyOptions", "TraceInfo", "describe"]
