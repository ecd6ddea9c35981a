"""What users ask before they place experts: is it worth it, on which transport, with how many copies, for how long."""

from placement.advise.advise import advise
from placement.advise.results import Advice

__all__ = ["Advice", "advise"]
