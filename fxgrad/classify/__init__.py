"""Stage 2, classify: every node that depends on the attributed inputs gets a role, a kind and a backward."""

from fxgrad.classify.decision import Classified, Decision
from fxgrad.classify.walk import classify

__all__ = ["Classified", "Decision", "classify"]
