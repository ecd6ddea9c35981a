"""What users ask before they place experts: is it worth it, on which transport, with how many copies, for how long."""

from placement.analysis.advise.advice import Advice
from placement.analysis.advise.advise import advise

__all__ = ["Advice", "advise"]
