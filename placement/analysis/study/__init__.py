"""What grouping and maps by domain rest on, measured on a trace: the study of "Expert Activation Patterns"
(arXiv 2604.23150) on one's own traffic."""

from placement.analysis.study.findings import LayerStudy, Study
from placement.analysis.study.study import characterize

__all__ = ["LayerStudy", "Study", "characterize"]
